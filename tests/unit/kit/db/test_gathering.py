"""What is asked in one turn of an event loop is read, or handed to the writer, together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from agentlightning.kit.db import Merge, Session
from agentlightning.kit.errors import StorageError
from tests.unit.kit.db.test_database import Harness, put


class Lookups:
    """A merged read that remembers what it was asked together, and fails for `bad`."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.merge = Merge(0, self._run)

    def _run(self, db: Session, keys: Sequence[str]) -> list[int]:
        self.asked.append(list(keys))
        if "bad" in keys:
            raise KeyError("bad")
        return [len(db.all("SELECT 1 FROM t WHERE k = :k", {"k": key})) for key in keys]

    async def of(self, harness: Harness, key: str) -> int:
        return await harness.db.read(lambda db: self._run(db, [key])[0], is_brief=True, merge=self.merge, argument=key)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    made = Harness(tmp_path / "t.db")
    await made.db.write(put("a"))
    yield made
    await made.db.close()


async def test_reads_of_one_turn_share_a_snapshot(harness: Harness) -> None:
    lookups = Lookups()
    assert await asyncio.gather(*(lookups.of(harness, key) for key in "abab")) == [1, 0, 1, 0]
    assert lookups.asked == [["a", "b", "a", "b"]]
    await harness.db.write(put("b"))
    assert await lookups.of(harness, "b") == 1


async def test_one_read_that_fails_leaves_the_others_alone(harness: Harness) -> None:
    lookups = Lookups()
    results = await asyncio.gather(*(lookups.of(harness, key) for key in ("a", "bad", "b")), return_exceptions=True)
    assert results[0] == 1
    assert isinstance(results[1], KeyError)
    assert results[2] == 0


async def test_a_cancelled_read_is_left_out(harness: Harness) -> None:
    lookups = Lookups()
    given_up, kept = (asyncio.ensure_future(lookups.of(harness, key)) for key in "ab")
    await asyncio.sleep(0)
    given_up.cancel()
    assert await kept == 0
    assert lookups.asked == [["b"]]


async def test_gathered_reads_do_not_wait_for_another_loops_read(harness: Harness) -> None:
    lookups = Lookups()
    inside, leave = threading.Event(), threading.Event()

    def slow(db: Session) -> None:
        inside.set()
        assert leave.wait(60)

    other = asyncio.create_task(asyncio.to_thread(asyncio.run, harness.db.read(slow, is_brief=True)))
    assert await asyncio.to_thread(inside.wait, 60)
    results = await asyncio.gather(*(lookups.of(harness, key) for key in ("a", "bad", "b")), return_exceptions=True)
    assert [results[0], results[2]] == [1, 0]
    assert isinstance(results[1], KeyError)
    leave.set()
    await other


async def test_gathered_reads_of_a_closed_database_fail(harness: Harness) -> None:
    lookups = Lookups()
    await lookups.of(harness, "a")
    await harness.db.close()
    with pytest.raises(StorageError, match="closed"):
        await lookups.of(harness, "a")


async def test_writes_of_one_turn_are_done_in_one_transaction(harness: Harness) -> None:
    at_once: list[int] = []

    def together(db: Session, keys: Sequence[str]) -> list[str]:
        at_once.append(len(keys))
        return [put(key)(db) for key in keys]

    merge = Merge(0, together)
    keys = [f"k{i}" for i in range(20)]
    assert await asyncio.gather(*(harness.db.write(put(k), merge=merge, argument=k) for k in keys)) == keys
    assert at_once == [20]


async def test_a_write_of_this_turn_is_done_though_the_database_closes(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "x.db")
    write = asyncio.ensure_future(harness.db.write(put("a")))
    await asyncio.sleep(0)  # submitted; handed over in the next turn only
    harness.db.close_now()
    assert await write == "a"
