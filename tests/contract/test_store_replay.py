"""A store built again from its events is the same store, or what it was; also when history came from elsewhere."""

# pyright: reportPrivateUsage=false
# Some states cannot be made through the store's interface: rollouts without events, claims released.

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError, StorageError
from agentlightning.schemas import EVENT_KINDS, EnqueueRolloutRequest, PromptTemplate, RolloutConfig
from agentlightning.store import SqlLightningStore
from agentlightning.store.ops import queue
from agentlightning.store.replay import _FOLDS, Replayed, rebuild_store
from agentlightning.store.transfer import export_store, import_store
from tests.contract.conftest import make_span
from tests.contract.histories import assert_history_is_complete, assert_same
from tests.unit.store.test_migrations import write_version_1

LARGE = "the same words " * 400

# As the first release wrote them: an attempt that failed, one under way with a span, another rollout in the queue.
OLD_ROWS = """
UPDATE rollouts SET status = 'running', attempt_count = 2, queue_position = NULL, packed_config = x'80';
INSERT INTO rollouts (rollout_id, packed_input, start_time, status, packed_config, attempt_count, queue_position)
    VALUES ('ro-next', x'a3616263', 2.0, 'queuing', x'80', 0, 1);
INSERT INTO attempts (rollout_no, attempt_id, sequence_id, start_time, end_time, status, worker_id,
    last_span_sequence_id) VALUES (1, 'at-1', 1, 1.5, 1.7, 'failed', 'w', 0),
    (1, 'at-2', 2, 2.0, NULL, 'running', 'w', 1);
INSERT INTO spans (attempt_no, sequence_id, span_id, trace_id, name, start_time, end_time, status_code, packed_body)
    VALUES (2, 1, 'sp-1', 'tr-1', 'step', 2.1, 2.2, 'OK', x'80');
INSERT INTO resources (resources_id, create_time, update_time, version, packed_resources, position)
    VALUES ('rs-1', 1.0, 1.0, 1, x'80', 1), ('rs-2', 1.0, 1.0, 1, x'80', 2);
"""


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
        replayed = rebuild_store(location, target)  # while it is in use
        assert (replayed.events, replayed.last, replayed.without_history) == (len(told), told[-1].no, 0)
        assert replayed.rows["spans"] == 60
        assert_same(location, target)
    await store.close()
    third = str(tmp_path / "third.db")
    rebuild_store(fresh_postgres_url, third)  # a history that was copied is a history
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
        replayed = rebuild_store(path, tmp_path / name, **bounds)
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
    last = await state("last.db", until_no=told[-1].no, until_time=told[-1].time)
    assert last[1:] == (["succeeded", "queuing"], 2)


async def test_what_the_watchdog_does_is_history_too(location: str) -> None:
    """Time limits, silence, and leases that have run out."""
    store = SqlLightningStore(location, watchdog_interval_s=3600)
    late = RolloutConfig(timeout_seconds=0.01, max_attempts=2, retry_condition=["timeout"])
    silent = RolloutConfig(unresponsive_seconds=0.01)
    for config in (late, silent, None):
        await store.enqueue_rollout("x", config=config)
    assert len(await store.dequeue_many_rollouts(limit=3, lease_s=0.01)) == 3
    await asyncio.sleep(0.05)
    ended = await store.check_timeouts()
    assert ended == 3
    statuses = [r.status for r in await store.query_rollouts()]
    assert "requeuing" in statuses
    kinds = [event.kind for event in await store.query_events(limit=-1)]
    assert kinds.count("attempt.completed") == 3
    await store.close()
    assert_history_is_complete(location)


async def test_what_was_there_before_there_were_events(tmp_path: Path) -> None:
    """Snapshots of a migration; several attempts, spans, a place in the queue."""
    write_version_1(tmp_path / "old.db")
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.executescript(OLD_ROWS)
    connection.close()
    store = SqlLightningStore(tmp_path / "old.db")
    claimed = await store.dequeue_rollout()
    assert claimed is not None
    await store.enqueue_rollout("new")
    await store.close()
    rebuild_store(tmp_path / "old.db", tmp_path / "new.db")
    assert_same(str(tmp_path / "old.db"), str(tmp_path / "new.db"))


async def test_rollouts_without_a_history_are_counted(tmp_path: Path) -> None:
    store = SqlLightningStore(tmp_path / "store.db")
    await store.enqueue_rollout("x", rollout_id="ro-1")
    await store.enqueue_rollout("y", rollout_id="ro-2")
    await store._database.write(lambda db: db.run("DELETE FROM events WHERE rollout_id = 'ro-1'", {}))
    await store.close()
    replayed = rebuild_store(tmp_path / "store.db", tmp_path / "new.db")
    assert (replayed.events, replayed.without_history) == (1, 1)


def files_of(path: Path) -> list[Path]:
    return list(path.parent.glob(f"*{path.name}*"))


async def test_a_target_that_somebody_else_makes_meanwhile_is_theirs(tmp_path: Path) -> None:
    path, new = tmp_path / "store.db", tmp_path / "new.db"
    store = SqlLightningStore(path)
    await store.enqueue_rollout("x")
    await store.close()

    def meanwhile(fraction: float, what: str) -> None:
        if not new.exists():
            new.write_bytes(b"theirs")

    with pytest.raises(ConflictError, match="meanwhile"):
        rebuild_store(path, new, progress=meanwhile)
    assert files_of(new) == [new]
    assert new.read_bytes() == b"theirs"


async def test_what_a_killed_replay_left_is_no_hindrance(tmp_path: Path) -> None:
    path, new = tmp_path / "store.db", tmp_path / "new.db"
    store = SqlLightningStore(path)
    await store.enqueue_rollout("x")
    await store.close()
    (tmp_path / ".new.db.replaying").write_bytes(b"half")
    assert rebuild_store(path, new).events == 1
    assert files_of(new) == [new]


async def test_what_cannot_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqlLightningStore(path)
    await store.enqueue_rollout("x")
    await store.close()
    with pytest.raises(BadInputError, match="same"):
        rebuild_store(path, path)
    with pytest.raises(BadInputError, match="until_no"):
        rebuild_store(path, tmp_path / "new.db", until_no=-1)
    with pytest.raises(NotFoundError):
        rebuild_store(tmp_path / "none.db", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    with pytest.raises(NotFoundError, match="the last one is 1"):
        rebuild_store(path, tmp_path / "new.db", until_no=2)
    with pytest.raises(BadInputError, match="until_time"):
        rebuild_store(path, tmp_path / "new.db", until_time=float("nan"))
    rebuild_store(path, tmp_path / "full.db")
    with pytest.raises(ConflictError, match="not empty"):
        rebuild_store(path, tmp_path / "full.db")
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO events (time, kind, packed_data) VALUES (1.0, 'agent.dreamt', x'80')")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match=r"agent\.dreamt") as caught:
        rebuild_store(path, tmp_path / "newer.db")
    assert "Upgrade" in caught.value.hint
    assert not files_of(tmp_path / "newer.db")  # all or nothing
    await SqlLightningStore(tmp_path / "newer.db").close()
    with pytest.raises(StorageError, match=r"agent\.dreamt"):
        rebuild_store(path, tmp_path / "newer.db")
    store = SqlLightningStore(tmp_path / "newer.db")  # was there, and is as it was
    assert list(await store.query_rollouts()) == []
    assert await store.query_events() == []
    await store.close()


async def test_stopped_half_way_it_leaves_nothing(tmp_path: Path, fresh_postgres_url: str) -> None:
    path = tmp_path / "store.db"
    store = SqlLightningStore(path)
    for _ in range(3):
        await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=LARGE) for _ in range(300)])
    await store.close()

    def stop(fraction: float, what: str) -> None:
        if fraction > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild_store(path, tmp_path / "new.db", progress=stop)
    assert not files_of(tmp_path / "new.db")
    with pytest.raises(KeyboardInterrupt):
        rebuild_store(path, fresh_postgres_url, progress=stop)
    for target in (tmp_path / "new.db", fresh_postgres_url):
        assert rebuild_store(path, target).events == 900


async def test_what_was_imported_is_history_too(location: str, tmp_path: Path) -> None:
    """The latest resources stay the latest, and what was queued comes behind what is queued here."""
    here, there = SqlLightningStore(location), SqlLightningStore(tmp_path / "there.db")
    for store, name in ((there, "there"), (here, "here")):
        for number in range(2):
            await store.add_resources({"p": PromptTemplate(template=f"{name} {number}")})
            await store.enqueue_rollout(f"{name} {number}")
        claimed = await store.dequeue_rollout()
        assert claimed is not None
        await store._database.write(lambda db, claimed=claimed: queue.release_claims(db, [claimed]))
    await there.close()
    export_store(tmp_path / "there.db", tmp_path / "archive")
    seen = (await here.query_events(limit=-1))[-1].no
    import_store(tmp_path / "archive", location)
    told = await here.query_events(seen)
    assert told[-1].kind == "store.imported"
    assert [event.kind for event in told].count("store.imported") == 1
    assert sum(import_store(tmp_path / "archive", location).values()) == 0
    assert await here.query_events(told[-1].no) == []  # nothing has happened
    await here.close()
    assert_history_is_complete(location)
    rebuild_store(location, tmp_path / "again.db")
    again = SqlLightningStore(tmp_path / "again.db")
    latest = await again.get_latest_resources()
    assert latest is not None
    assert latest.resources["p"].template == "here 1"  # type: ignore[union-attr]
    assert [r.input for r in await again.dequeue_many_rollouts(limit=9)] == ["here 0", "here 1", "there 0", "there 1"]
    await again.close()


async def test_pruning_takes_the_history_along(location: str) -> None:
    store = SqlLightningStore(location)
    for number in range(3):
        rollout = await store.start_rollout(number, rollout_id=f"ro-{number}")
        await store.add_feedback(rollout.rollout_id, score=1.0)
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    session = await store.create_lineage_session(lineages=2)
    for number, lineage in enumerate(session.lineages):
        await store.add_to_lineage(lineage.lineage_id, f"ro-{number}")
    await store.lock_lineage(session.lineages[0].lineage_id)
    await store.add_preference("ro-2", "ro-1")
    await store.prune(keep_last=1, force=True)
    assert [r.rollout_id for r in await store.query_rollouts()] == ["ro-2"]
    found = await store.get_lineage_session(session.session_id)
    assert found is not None
    assert found.lineages[0].locked
    assert list(await store.query_preferences()) == []
    await store.close()
    assert_history_is_complete(location)


def test_every_kind_of_event_can_be_folded() -> None:
    assert set(_FOLDS) == set(EVENT_KINDS)
