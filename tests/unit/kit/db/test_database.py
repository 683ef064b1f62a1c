"""Group commit, snapshots, what happens to a job that fails, is cancelled, or breaks the whole transaction."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentlightning.kit.db import Params, Session, SqliteDatabase
from agentlightning.kit.db.sqlite import Schema
from agentlightning.kit.errors import BadInputError, StorageError

SCHEMA = Schema(
    ["CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER)"],
    version=3,
    application_id=7,
)


class Harness:
    """A database and what it told its owner."""

    def __init__(self, path: Path | None, **overrides: Any) -> None:
        self.published: list[tuple[str, str]] = []
        self.foreign = 0
        self.watched = False
        self.due = False
        self.periodic: Callable[[Session], object] = lambda db: db.run("INSERT INTO t VALUES ('tick', 1)")
        settings: dict[str, Any] = {"watch_s": 0.02, "periodic_s": 0.02, **overrides}
        self.db = SqliteDatabase(
            path,
            SCHEMA,
            publish=self.published.extend,
            before_commit=self._before_commit,
            on_foreign_commit=self._on_foreign,
            watching=lambda: self.watched,
            is_due=lambda _: self.due,
            periodic=self._run_periodic,
            **settings,
        )

    @staticmethod
    def _before_commit(db: Session, records: Sequence[Params]) -> None:
        db.run_many("INSERT INTO t VALUES (:k, :v)", records)
        db.announce("recorded", str(len(records)))

    def _on_foreign(self) -> None:
        self.foreign += 1

    def _run_periodic(self, db: Session) -> object:
        self.due = False
        return self.periodic(db)

    async def keys(self) -> list[str]:
        return await self.db.read(lambda db: [row[0] for row in db.all("SELECT k FROM t ORDER BY k")])


@pytest.fixture(params=["file", "memory"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    made = Harness(tmp_path / "sub" / "t.db" if request.param == "file" else None)
    yield made
    await made.db.close()


def put(key: str, announce: bool = False) -> Callable[[Session], str]:
    def operation(db: Session) -> str:
        db.run("INSERT INTO t VALUES (:k, 1)", {"k": key})
        if announce:
            db.announce("put", key)
        return key

    return operation


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_write_then_read(harness: Harness) -> None:
    assert await harness.db.write(put("a")) == "a"
    assert await harness.keys() == ["a"]


async def test_failing_job_leaves_its_neighbours_alone(harness: Harness) -> None:
    def half(db: Session) -> None:
        put("half", announce=True)(db)
        raise BadInputError("no")

    results = await asyncio.gather(
        harness.db.write(put("a", announce=True)),
        harness.db.write(half),
        harness.db.write(put("a")),
        harness.db.write(put("b", announce=True)),
        return_exceptions=True,
    )
    assert [type(r) for r in results] == [str, BadInputError, sqlite3.IntegrityError, str]
    assert await harness.keys() == ["a", "b"]
    assert harness.published == [("put", "a"), ("put", "b")]


async def test_answers_come_after_the_commit(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "t.db")
    await harness.db.write(put("a"))
    other = sqlite3.connect(tmp_path / "t.db")
    assert other.execute("SELECT k FROM t").fetchall() == [("a",)]
    other.close()
    await harness.db.close()


async def test_concurrent_writes_share_a_transaction(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "t.db")
    seen: list[int] = []

    def count(db: Session) -> None:
        db.run("INSERT INTO t VALUES (:k, 1)", {"k": str(len(seen))})
        other = sqlite3.connect(tmp_path / "t.db")
        seen.append(other.execute("SELECT count(*) FROM t").fetchone()[0])
        other.close()

    hold = threading.Event()
    blocked = asyncio.ensure_future(harness.db.write(lambda _: hold.wait(5)))
    rest = [asyncio.ensure_future(harness.db.write(count)) for _ in range(5)]
    await asyncio.sleep(0.05)
    hold.set()
    await asyncio.gather(blocked, *rest)
    assert seen == [0] * 5  # none of them was visible outside while the others ran
    await harness.db.close()


async def test_cancelled_job_is_skipped_or_reported(harness: Harness) -> None:
    hold = threading.Event()
    blocked = asyncio.ensure_future(harness.db.write(lambda _: hold.wait(5)))
    await asyncio.sleep(0.02)
    skipped = asyncio.ensure_future(harness.db.write(put("skipped")))
    await asyncio.sleep(0)
    skipped.cancel()
    hold.set()
    await blocked
    await asyncio.gather(skipped, return_exceptions=True)
    assert await harness.keys() == []

    lost: list[str] = []
    hold.clear()

    def slow(db: Session) -> str:
        hold.wait(5)
        return put("lost")(db)

    running = asyncio.ensure_future(harness.db.write(slow, undelivered=lost.append))
    await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.sleep(0)
    hold.set()
    await asyncio.gather(running, return_exceptions=True)
    await eventually(lambda: bool(lost))
    assert lost == ["lost"]
    assert await harness.keys() == ["lost"]


async def test_read_sees_one_snapshot(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "t.db")
    entered, go = threading.Event(), threading.Event()

    def twice(db: Session) -> tuple[int, int]:
        first = len(db.all("SELECT k FROM t"))
        entered.set()
        go.wait(5)
        return first, len(db.all("SELECT k FROM t"))

    reading = asyncio.ensure_future(harness.db.read(twice))
    await asyncio.to_thread(entered.wait, 5)
    await harness.db.write(put("a"))
    go.set()
    assert await reading == (0, 0)
    assert await harness.keys() == ["a"]
    await harness.db.close()


async def test_readers_cannot_write(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "t.db")
    with pytest.raises(StorageError, match="read-only"):
        await harness.db.read(put("a"))
    await harness.db.close()


async def test_brief_reads_stay_in_the_callers_thread(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "x.db")
    await harness.db.write(put("a"))

    def look(db: Session) -> tuple[int, int]:
        return len(db.all("SELECT k FROM t")), threading.get_ident()

    assert await harness.db.read(look, is_brief=True) == (1, threading.get_ident())
    assert (await harness.db.read(look))[1] != threading.get_ident()
    with pytest.raises(StorageError, match="read-only"):
        await harness.db.read(put("b"), is_brief=True)
    assert (await harness.db.read(look, is_brief=True))[0] == 1  # the failure left no transaction open
    await harness.db.write(put("b"))
    assert (await harness.db.read(look, is_brief=True))[0] == 2
    await harness.db.close()
    with pytest.raises(StorageError, match="closed"):
        await harness.db.read(look, is_brief=True)


async def test_brief_reads_of_several_threads(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "x.db")
    await harness.db.write(put("a"))
    inside, leave = threading.Event(), threading.Event()

    def slow(db: Session) -> int:
        inside.set()
        assert leave.wait(10)
        return len(db.all("SELECT k FROM t"))

    first = asyncio.create_task(asyncio.to_thread(asyncio.run, harness.db.read(slow, is_brief=True)))
    assert await asyncio.to_thread(inside.wait, 10)
    assert await harness.db.read(lambda db: len(db.all("SELECT k FROM t")), is_brief=True) == 1  # does not wait for it
    leave.set()
    assert await first == 1
    await harness.db.close()


async def test_periodic_work_runs_when_due_and_announces(harness: Harness) -> None:
    await asyncio.sleep(0.06)
    assert await harness.keys() == []

    def work(db: Session) -> None:
        put("tick", announce=True)(db)

    harness.periodic = work
    harness.due = True
    await eventually(lambda: harness.published == [("put", "tick")])
    assert await harness.keys() == ["tick"]


async def test_periodic_work_that_fails_is_logged_and_the_writer_lives(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    def work(db: Session) -> None:
        put("tick")(db)
        raise RuntimeError("broken")

    harness.periodic = work
    with caplog.at_level(logging.ERROR):
        harness.due = True
        await eventually(lambda: "Periodic work" in caplog.text)
    await harness.db.write(put("a"))
    assert await harness.keys() == ["a"]


async def test_commits_of_others_are_noticed_while_somebody_waits(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "t.db")
    other = Harness(tmp_path / "t.db")
    await other.db.write(put("unwatched"))
    await asyncio.sleep(0.06)
    assert harness.foreign == 0
    harness.watched = True
    await eventually(lambda: harness.foreign == 1)
    await harness.db.write(put("own"))
    await asyncio.sleep(0.06)
    assert harness.foreign == 1
    await other.db.write(put("watched"))
    await eventually(lambda: harness.foreign == 2)
    await harness.db.close()
    await other.db.close()


async def test_everything_queued_is_written_before_closing(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "t.db")
    writes = [asyncio.ensure_future(harness.db.write(put(f"{i:04}"))) for i in range(1200)]
    await asyncio.sleep(0)
    await harness.db.close()
    assert len(await asyncio.gather(*writes)) == 1200
    with pytest.raises(StorageError):
        await harness.db.write(put("late"))
    reopened = Harness(tmp_path / "t.db")
    assert len(await reopened.keys()) == 1200
    await reopened.db.close()


def test_answers_to_a_closed_loop_are_dropped(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "t.db")
    hold = threading.Event()

    async def leave() -> None:
        asyncio.ensure_future(harness.db.write(lambda db: (hold.wait(5), put("a")(db))))  # noqa: RUF006
        await asyncio.sleep(0.05)

    asyncio.run(leave())
    hold.set()
    assert asyncio.run(harness.db.write(put("b"))) == "b"
    harness.db.close_now()


def test_schema_is_created_once_by_many_openers(tmp_path: Path) -> None:
    made: list[Harness] = []
    threads = [threading.Thread(target=lambda: made.append(Harness(tmp_path / "t.db"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    for harness in made:
        harness.db.close_now()


def test_schema_that_is_broken_leaves_nothing(tmp_path: Path) -> None:
    broken = Schema(["CREATE TABLE a (x)", "CREATE TABLE"], version=1, application_id=7)
    connection = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        broken.ensure(connection, "t.db")
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


def test_older_schema_is_named(tmp_path: Path) -> None:
    Harness(tmp_path / "t.db").db.close_now()
    newer = Schema(SCHEMA.statements, version=4, application_id=7)
    connection = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    with pytest.raises(StorageError, match="version 3"):
        newer.ensure(connection, "t.db")
    connection.close()


async def test_value_too_large_is_the_callers_fault(harness: Harness) -> None:
    def huge(db: Session) -> None:
        db.run("INSERT INTO t VALUES ('x', zeroblob(:n))", {"n": 1_500_000_000})

    results = await asyncio.gather(harness.db.write(huge), harness.db.write(put("a")), return_exceptions=True)
    assert [type(r) for r in results] == [BadInputError, str]


async def test_what_operations_record_is_written_together_before_the_commit(harness: Harness) -> None:
    def add(key: str, *, fail: bool = False) -> Callable[[Session], None]:
        def operation(db: Session) -> None:
            db.record({"k": f"recorded {key}", "v": 1})
            db.run("INSERT INTO t VALUES (:k, 1)", {"k": key})
            if fail:
                raise BadInputError("no")

        return operation

    calls = [harness.db.write(add("a")), harness.db.write(add("b", fail=True)), harness.db.write(add("c"))]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), BadInputError, type(None)]
    assert await harness.keys() == ["a", "c", "recorded a", "recorded c"]
    assert sum(int(n) for topic, n in harness.published if topic == "recorded") == 2


async def test_periodic_work_records_too(harness: Harness) -> None:
    harness.periodic = lambda db: db.record({"k": "recorded tick", "v": 1})
    harness.due = True
    async with asyncio.timeout(100):
        while await harness.keys() != ["recorded tick"]:  # noqa: ASYNC110 - the writer's thread has no asyncio event
            await asyncio.sleep(0.01)
    assert ("recorded", "1") in harness.published
