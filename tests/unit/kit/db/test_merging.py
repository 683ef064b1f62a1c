"""Writes of one kind that wait together run as one operation, and fail as if they had been alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from agentlightning.kit.db import Merge, Session
from agentlightning.kit.db.session import SqliteSession
from agentlightning.kit.db.sqlite import connect
from agentlightning.kit.errors import BadInputError
from tests.busy_writer import while_busy
from tests.unit.kit.db.test_database import Harness


def insert(db: Session, key: str) -> str:
    if key == "bad":
        raise BadInputError("a bad key")
    db.run("INSERT INTO t VALUES (:k, 1)", {"k": key})
    db.announce("put", key)
    db.record({"k": f"record of {key}", "v": 2})
    return key


class Calls:
    """What a merged operation was asked to do."""

    def __init__(self, rank: int = 0) -> None:
        self.merge = Merge(rank, self.run)
        self.seen: list[list[str]] = []

    def run(self, db: Session, keys: list[str]) -> list[str]:
        self.seen.append(keys)
        return [insert(db, key) for key in keys]


async def blocked(harness: Harness, *writes: Any) -> list[Any]:
    """Results of writes that share a transaction."""
    return await while_busy(harness.db.write, *writes)


def put(harness: Harness, calls: Calls, key: str) -> Any:
    return harness.db.write(lambda db: insert(db, key), merge=calls.merge, argument=key)


@pytest.fixture
async def harness(tmp_path: Path) -> Any:
    made = Harness(tmp_path / "x.db")
    yield made
    await made.db.close()


async def test_waiting_together_is_done_together(harness: Harness) -> None:
    first, later = Calls(), Calls(rank=5)
    order: list[str] = []
    results = await blocked(
        harness,
        put(harness, later, "z1"),
        put(harness, first, "a1"),
        harness.db.write(lambda db: order.append(f"alone after {len(first.seen)}, before {1 - len(later.seen)}")),
        put(harness, later, "z2"),
        put(harness, first, "a2"),
    )
    assert results == ["z1", "a1", None, "z2", "a2"]
    assert (first.seen, later.seen) == ([["a1", "a2"]], [["z1", "z2"]])
    assert order == ["alone after 1, before 1"] or order == ["alone after 0, before 1"]
    assert {key for topic, key in harness.published if topic == "put"} == {"a1", "a2", "z1", "z2"}
    assert "record of z2" in await harness.keys()


async def test_one_alone_is_not_merged(harness: Harness) -> None:
    calls = Calls()
    assert await put(harness, calls, "a") == "a"
    assert calls.seen == []


async def test_one_that_fails_leaves_the_others_alone(harness: Harness) -> None:
    calls = Calls()
    results = await blocked(harness, *(put(harness, calls, key) for key in ("a", "bad", "b")))
    assert results[0] == "a"
    assert isinstance(results[1], BadInputError)
    assert results[2] == "b"
    assert calls.seen == [["a", "bad", "b"]]  # then each by itself
    assert await harness.keys() == ["a", "b", "record of a", "record of b"]


async def test_too_few_results_are_an_error(harness: Harness) -> None:
    broken = Merge(0, lambda db, keys: [])
    writes = [harness.db.write(lambda db, k=key: insert(db, k), merge=broken, argument=key) for key in "ab"]
    results = await blocked(harness, *writes)
    assert results == ["a", "b"]  # done again, each by itself


def test_deferred_statements_run_once_for_all_rows() -> None:
    connection = connect(None)
    connection.execute("CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER)")
    db = SqliteSession(connection)
    upsert = "INSERT INTO t VALUES (:k, :v) ON CONFLICT (k) DO UPDATE SET v = :v"
    with db.deferring():
        for value in range(3):
            db.run(upsert, {"k": "same", "v": value}, once_per="k")
        db.run("INSERT INTO t VALUES (:k, 7)", {"k": "other"})
        assert db.all("SELECT k FROM t") == []
    assert db.all("SELECT k, v FROM t ORDER BY k") == [("other", 7), ("same", 2)]
    with contextlib.suppress(BadInputError), db.deferring():  # raised below on purpose
        db.run("INSERT INTO t VALUES (:k, 8)", {"k": "dropped"})
        raise BadInputError("no")
    db.run("INSERT INTO t VALUES (:k, 9)", {"k": "last"})
    assert [row[0] for row in db.all("SELECT k FROM t ORDER BY k")] == ["last", "other", "same"]
    connection.close()
