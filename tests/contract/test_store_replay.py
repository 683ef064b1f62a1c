"""A store built again from its events is the same store: after random calls, at any moment, on both databases."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError, StorageError
from agentlightning.schemas import PromptTemplate, RolloutConfig
from agentlightning.store import SqlLightningStore, tables
from agentlightning.store.databases import parse_location
from agentlightning.store.endpoints import open_endpoint
from agentlightning.store.ops import payloads
from agentlightning.store.replay import Replayed, rebuild
from tests.contract.conftest import make_span
from tests.contract.test_store_machine import StoreMachine, TestStoreMachine
from tests.postgres import empty_schema

LARGE = "the same words " * 400

# What liveness and bookkeeping leave behind is not history.
NOT_HISTORY = {
    "attempts": {"last_heartbeat_time", "claim_id", "lease_s", "lease_until", "last_span_sequence_id"},
    "rollouts": {"queue_position"},
    "resources": {"position"},
}
HISTORY = ("rollouts", "attempts", "spans", "resources", "feedback", "preferences", "lineage_steps", "lineages")
ORDER = {"rollouts": ("queue_position", "rollout_id"), "resources": ("position", "resources_id")}


def contents(location: str) -> dict[str, Any]:
    """Everything that is history, with large values put back; rows refer to each other by name."""
    source = open_endpoint(parse_location(location))
    found: dict[str, Any] = {}
    try:
        session = source.session()
        names = {
            "rollouts": dict(source.query("SELECT no, rollout_id FROM rollouts")),
            "attempts": dict(source.query("SELECT no, attempt_id FROM attempts")),
            "lineages": dict(source.query("SELECT no, lineage_id FROM lineages")),
            "lineage_sessions": dict(source.query("SELECT no, session_id FROM lineage_sessions")),
        }
        for name in (*HISTORY, "lineage_sessions", "events"):
            table = tables.metadata.tables[name]
            rows = source.run(select(*table.columns).order_by(table.c.no))
            columns = table.columns.keys()
            blobs = [i for i, column in enumerate(columns) if column.startswith("packed_")]
            told = [dict(zip(columns, row, strict=True)) for row in payloads.resolve(session, rows, *blobs)]
            for row in told:
                for key in table.foreign_keys:
                    row[key.parent.name] = names[key.column.table.name].get(row[key.parent.name])
                if name != "events":
                    del row["no"]
            if name in ORDER:
                position, key = ORDER[name]
                placed = sorted((row for row in told if row[position] is not None), key=lambda row: row[position])
                found[f"order of {name}"] = [row[key] for row in placed]
            found[name] = [{k: v for k, v in row.items() if k not in NOT_HISTORY.get(name, ())} for row in told]
    finally:
        source.close()
    return found


def assert_same(first: str, second: str) -> None:
    mine, theirs = contents(first), contents(second)
    for name, rows in mine.items():
        if name == "spans":  # those of different attempts in any order
            rows, theirs[name] = (sorted(r, key=lambda row: row["attempt_no"]) for r in (rows, theirs[name]))
        assert theirs[name] == rows, name


class ReplayMachine(StoreMachine):
    """Also what the other machine does not do: metadata, resources, releases, judgements."""

    def open_store(self) -> SqlLightningStore:
        self.folder = tempfile.TemporaryDirectory(prefix="agl-replay-")
        self.location = f"{self.folder.name}/store.db"
        return SqlLightningStore(self.location, watchdog_interval_s=3600)

    def teardown(self) -> None:
        try:
            self.build_again()
        finally:
            super().teardown()
            self.folder.cleanup()

    def build_again(self) -> None:
        with tempfile.TemporaryDirectory(prefix="agl-replayed-") as folder:
            replayed = rebuild(self.location, f"{folder}/again.db")
            assert replayed.without_history == 0
            assert_same(self.location, f"{folder}/again.db")

    def ids(self) -> list[str]:
        return list(self.expected)

    @precondition(lambda self: self.expected)
    @rule(which=st.integers(0, 3), change=st.sampled_from(["input", "mode", "metadata", "config", "large"]))
    def change_fields(self, which: int, change: str) -> None:
        rollout_id = self.ids()[which % len(self.ids())]
        values: dict[str, dict[str, Any]] = {
            "input": {"input": None},
            "mode": {"mode": "val"},
            "metadata": {"metadata": None},
            "config": {"config": self.expected[rollout_id].config.model_copy(update={"timeout_seconds": 5000.0})},
            "large": {"input": {"text": LARGE, "n": which}, "metadata": {"m": LARGE}},
        }
        rollout = self.run(self.store.update_rollout(rollout_id, **values[change]))
        self.expected[rollout_id].config = rollout.config

    @precondition(lambda self: any(e.attempts for e in self.expected.values()))
    @rule(which=st.integers(0, 3), large=st.booleans())
    def change_attempt(self, which: int, large: bool) -> None:
        ids = [i for i, e in self.expected.items() if e.attempts]
        metadata = {"m": LARGE if large else 1}
        self.run(self.store.update_attempt(ids[which % len(ids)], "latest", metadata=metadata, worker_id=f"w{which}"))

    @rule(count=st.integers(1, 2))
    def release(self, count: int) -> None:
        """Claim for somebody who has left."""
        from agentlightning.store import verbs
        from agentlightning.store.ops import queue

        async def claim_and_release() -> None:
            claimed = await self.store.execute(verbs.DequeueManyRollouts(limit=count))
            await self.store._database.write(lambda db: queue.release_claims(db, claimed))
            for rollout in claimed:
                again = len(self.expected[rollout.rollout_id].attempts) > 0
                self.expected[rollout.rollout_id].status = "requeuing" if again else "queuing"

        self.run(claim_and_release())

    @rule(which=st.integers(0, 2))
    def resources(self, which: int) -> None:
        known = self.run(self.store.query_resources())
        prompt = {"p": PromptTemplate(template=LARGE if which else "short")}
        if which < 2 or not known.items:
            self.run(self.store.add_resources(prompt))
        else:
            self.run(self.store.update_resources(known.items[0].resources_id, prompt))

    @precondition(lambda self: len(self.expected) > 1)
    @rule(which=st.integers(0, 3), score=st.none() | st.floats(0, 10))
    def judge(self, which: int, score: float | None) -> None:
        ids = self.ids()
        mine, other = ids[which % len(ids)], ids[(which + 1) % len(ids)]
        metadata = {"m": LARGE} if which else None
        self.run(self.store.add_feedback(mine, score=score, comment="ä", metadata=metadata))
        self.run(self.store.add_preference(mine, other, metadata=metadata))

    @precondition(lambda self: len(self.expected) > 1)
    @rule(lock=st.integers(0, 1), unlock=st.booleans())
    def compare(self, lock: int, unlock: bool) -> None:
        session = self.run(self.store.create_lineage_session(lineages=2, metadata={"m": 1}))
        for lineage, rollout_id in zip(session.lineages, self.ids(), strict=False):
            self.run(self.store.add_to_lineage(lineage.lineage_id, rollout_id))
        self.run(self.store.lock_lineage(session.lineages[lock].lineage_id, author="me"))
        if unlock:
            self.run(self.store.unlock_lineage(session.lineages[lock].lineage_id))

    @invariant()
    def statuses_are_as_expected(self) -> None:
        pass  # the other machine's business


SETTINGS = settings(TestStoreMachine.settings, max_examples=40, stateful_step_count=40)


@pytest.mark.slow
def test_after_random_calls() -> None:
    run_state_machine_as_test(ReplayMachine, settings=SETTINGS)


@pytest.mark.slow
def test_after_random_calls_on_postgres(postgres_server: str, postgres_schema: str) -> None:
    class PostgresMachine(ReplayMachine):
        def open_store(self) -> SqlLightningStore:
            empty_schema(postgres_server)
            self.folder = tempfile.TemporaryDirectory(prefix="agl-replay-")
            self.location = postgres_schema
            return SqlLightningStore(self.location, watchdog_interval_s=3600)

    run_state_machine_as_test(PostgresMachine, settings=settings(SETTINGS, max_examples=12))


async def lives(store: SqlLightningStore) -> None:
    """A little of everything; calls that wait together are done together."""
    await store.add_resources({"p": PromptTemplate(template=LARGE)})
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"], unresponsive_seconds=9000.0)

    async def one(n: int) -> None:
        await store.enqueue_rollout({"n": n, "nan": float("inf"), "text": LARGE}, mode="train", config=config)
        (claimed,) = await store.dequeue_many_rollouts(worker_id=f"w{n}", timeout=30, lease_s=60.0)
        key = (claimed.rollout_id, claimed.attempt.attempt_id)
        await store.add_many_spans([make_span(*key, attributes={"a": LARGE, "b": b"\x00"}) for _ in range(3)])
        if n % 3:
            await store.update_attempt(*key, status="succeeded" if n % 2 else "failed", metadata={"n": n})

    await asyncio.gather(*(one(n) for n in range(20)))


async def test_a_store_and_what_is_built_from_its_history(
    location: str, fresh_postgres_url: str, tmp_path: Path
) -> None:
    store = SqlLightningStore(location)
    await lives(store)
    told = await store.query_events(limit=-1)
    file = str(tmp_path / "again.db")
    for target in (file, fresh_postgres_url):
        replayed = rebuild(location, target)  # while it is in use
        assert (replayed.events, replayed.last, replayed.without_history) == (len(told), told[-1].no, 0)
        assert replayed.rows["spans"] == 60
        assert_same(location, target)
    await store.close()
    third = str(tmp_path / "third.db")
    rebuild(fresh_postgres_url, third)  # a history that was copied is a history
    assert_same(location, third)
    again = SqlLightningStore(file)  # and it goes on
    assert await again.query_events(limit=-1) == told
    queued = await again.query_rollouts(status_in=["requeuing"])
    claimed = await again.dequeue_many_rollouts(limit=100)
    assert len(claimed) == len(queued) > 0
    await again.add_span(make_span(claimed[0].rollout_id, claimed[0].attempt.attempt_id))
    assert (await again.query_events(told[-1].no))[-1].kind == "attempt.running"
    assert (await again.get_latest_resources()) is not None
    await again.close()


async def test_the_state_as_it_was(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    store = SqlLightningStore(path)
    started = await store.start_rollout("x")
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    now = time.time()
    await asyncio.sleep(0.01)
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    await store.enqueue_rollout("y")
    told = await store.query_events()
    await store.close()

    async def state(name: str, **bounds: Any) -> tuple[Replayed, list[str], int]:
        replayed = rebuild(path, tmp_path / name, **bounds)
        built = SqlLightningStore(tmp_path / name)
        statuses = [r.status for r in await built.query_rollouts()]
        count = len((await built.query_many_spans([started.rollout_id]))[started.rollout_id])
        await built.close()
        return replayed, statuses, count

    assert (await state("nothing.db", until_no=0))[1:] == ([], 0)
    first = await state("first.db", until_no=told[0].no)
    assert (first[0].events, first[1:]) == (1, (["preparing"], 0))
    assert (await state("then.db", until_time=now))[1:] == (["running"], 1)
    assert (await state("before.db", until_time=1.0))[1:] == ([], 0)
    last = await state("last.db", until_no=10**9)
    assert last[1:] == (["succeeded", "queuing"], 2)


async def test_what_was_there_before_there_were_events(tmp_path: Path) -> None:
    """Snapshots of a migration; several attempts, spans, a place in the queue."""
    from tests.unit.store.test_migrations import ROWS, write_version_1

    write_version_1(tmp_path / "old.db")
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.executescript(ROWS)
    connection.close()
    store = SqlLightningStore(tmp_path / "old.db")
    claimed = await store.dequeue_rollout()
    assert claimed is not None
    await store.enqueue_rollout("new")
    await store.close()
    rebuild(tmp_path / "old.db", tmp_path / "new.db")
    assert_same(str(tmp_path / "old.db"), str(tmp_path / "new.db"))


async def test_rollouts_without_a_history_are_counted(tmp_path: Path) -> None:
    store = SqlLightningStore(tmp_path / "store.db")
    await store.enqueue_rollout("x", rollout_id="ro-1")
    await store.enqueue_rollout("y", rollout_id="ro-2")
    await store._database.write(lambda db: db.run("DELETE FROM events WHERE rollout_id = 'ro-1'", {}))
    await store.close()
    replayed = rebuild(tmp_path / "store.db", tmp_path / "new.db")
    assert (replayed.events, replayed.without_history) == (1, 1)


async def test_what_cannot_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqlLightningStore(path)
    await store.enqueue_rollout("x")
    await store.close()
    with pytest.raises(BadInputError, match="same"):
        rebuild(path, path)
    with pytest.raises(BadInputError, match="until_no"):
        rebuild(path, tmp_path / "new.db", until_no=-1)
    with pytest.raises(NotFoundError):
        rebuild(tmp_path / "none.db", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    rebuild(path, tmp_path / "full.db")
    with pytest.raises(ConflictError, match="not empty"):
        rebuild(path, tmp_path / "full.db")
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO events (time, kind, packed_data) VALUES (1.0, 'agent.dreamt', x'80')")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match=r"agent\.dreamt") as caught:
        rebuild(path, tmp_path / "newer.db")
    assert "Upgrade" in caught.value.hint
    store = SqlLightningStore(tmp_path / "newer.db")
    assert await store.query_rollouts() == []  # all or nothing
    await store.close()


def test_every_kind_of_event_can_be_folded() -> None:
    from agentlightning.schemas import EVENT_KINDS
    from agentlightning.store.replay import _FOLDS

    assert set(_FOLDS) == set(EVENT_KINDS)
