"""What only PostgreSQL can do to the store: several writers at once, connections that break, servers that refuse."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

import psycopg
import pytest

from agentlightning.kit.db.postgres import connection as postgres_connection
from agentlightning.kit.errors import BadInputError, ConfigError, StorageError
from agentlightning.schemas import AttemptedRollout, RolloutConfig
from agentlightning.store import SqlLightningStore
from tests.contract.conftest import make_span
from tests.postgres import SCHEMA, with_schema


async def test_claims_of_several_writers_never_come_back_empty_while_work_is_queued(postgres_url: str) -> None:
    """SKIP LOCKED alone does: what others are claiming is passed over, what was queued since is not seen."""
    stores = [SqlLightningStore(postgres_url) for _ in range(3)]
    claimed: list[str] = []

    async def worker(index: int) -> None:
        store = stores[index % len(stores)]
        for _ in range(15):
            await store.enqueue_rollout(index)  # so there is always one for everybody who asks
            rollout = await store.dequeue_rollout(worker_id=f"w{index}")
            assert rollout is not None
            claimed.append(rollout.rollout_id)

    await asyncio.gather(*(worker(index) for index in range(12)))
    assert len(set(claimed)) == len(claimed) == 180
    for store in stores:
        await store.close()


async def test_writers_that_touch_the_same_rollouts_keep_every_change(postgres_url: str) -> None:
    stores = [SqlLightningStore(postgres_url) for _ in range(3)]
    rollouts = [await stores[0].start_rollout(i) for i in range(5)]
    keys = [(r.rollout_id, r.attempt.attempt_id) for r in rollouts]

    async def worker(index: int) -> None:
        order = keys[index:] + keys[:index]  # each in another order, so that some would lock each other out
        for _ in range(6):
            await asyncio.gather(
                *(stores[index % 3].add_many_spans([make_span(*k), make_span(*k)]) for k in order),
                stores[index % 3].update_worker(f"w{index % 2}", {"n": index}),
            )

    await asyncio.gather(*(worker(index) for index in range(5)))
    for rollout_id, attempt_id in keys:
        numbers = [s.sequence_id for s in await stores[1].query_spans(rollout_id, attempt_id)]
        assert numbers == list(range(1, 61))
    for store in stores:
        await store.close()


async def test_deadlocks_are_tried_again(postgres_url: str) -> None:
    store = SqlLightningStore(postgres_url)
    first, second = await store.start_rollout(1), await store.start_rollout(2)
    lock = f"SELECT 1 FROM {SCHEMA}.rollouts WHERE rollout_id = %s FOR UPDATE"

    def other() -> None:  # takes the same two in the other order
        with psycopg.connect(postgres_url.split("&schema")[0]) as connection:
            connection.execute("SET deadlock_timeout = '10s'")  # ours finds out first, and is the one undone
            connection.execute(lock, (second.rollout_id,))
            time.sleep(0.3)  # the other side takes its first lock meanwhile
            connection.execute(lock, (first.rollout_id,))

    blocked = asyncio.create_task(asyncio.to_thread(other))
    await asyncio.sleep(0.1)
    spans = [make_span(r.rollout_id, r.attempt.attempt_id) for r in (first, second)]
    assert len(await store.add_many_spans(spans)) == 2
    await blocked
    assert [len(await store.query_spans(r.rollout_id)) for r in (first, second)] == [1, 1]
    await store.close()


async def test_the_same_rollout_enqueued_by_two_at_once_is_one(postgres_url: str) -> None:
    stores = [SqlLightningStore(postgres_url) for _ in range(2)]
    for number in range(15):
        calls = [store.enqueue_rollout("x", rollout_id=f"mine.{number}") for store in stores for _ in range(2)]
        made = await asyncio.gather(*calls, *(store.add_resources({}) for store in stores))
        assert {r.rollout_id for r in made[:4]} == {f"mine.{number}"}  # type: ignore[union-attr]
    statistics = await stores[0].statistics()
    assert (statistics["total_rollouts"], statistics["total_resources"]) == (15, 30)
    for store in stores:
        await store.close()


async def test_time_limits_are_applied_once_by_several_watchdogs(postgres_url: str) -> None:
    stores = [SqlLightningStore(postgres_url, watchdog_interval_s=0.02) for _ in range(3)]
    config = RolloutConfig(timeout_seconds=0.05, max_attempts=2, retry_condition=["timeout"])
    ids = [(await stores[0].start_rollout(i, config=config)).rollout_id for i in range(20)]
    await asyncio.gather(*(store.check_timeouts() for store in stores))
    await asyncio.sleep(0.3)
    found = await stores[1].query_rollouts(rollout_id_in=ids)
    assert Counter(r.status for r in found) == {"requeuing": 20}
    assert {r.attempt.status for r in found if isinstance(r, AttemptedRollout)} == {"timeout"}
    for store in stores:
        await store.close()


async def test_connections_cut_at_any_moment_lose_nothing_and_repeat_nothing(
    postgres_server: str, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    store = SqlLightningStore(postgres_url)
    done: list[str] = []
    stop = asyncio.Event()

    async def cut() -> int:
        cuts = 0
        async with await psycopg.AsyncConnection.connect(postgres_server, autocommit=True) as connection:
            while not stop.is_set():
                await asyncio.sleep(0.07)
                cursor = await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s",
                    (f"agentlightning % {SCHEMA}",),
                )
                cuts += cursor.rowcount
        return cuts

    async def worker(index: int) -> None:
        for number in range(25):
            await store.enqueue_rollout([index, number])
            [rollout] = await store.dequeue_many_rollouts(timeout=20, worker_id=f"w{index}")
            key = (rollout.rollout_id, rollout.attempt.attempt_id)
            await store.add_many_spans([make_span(*key) for _ in range(3)])
            await store.update_attempt(*key, status="succeeded")
            done.append(rollout.rollout_id)

    cutting = asyncio.create_task(cut())
    await asyncio.gather(*(worker(index) for index in range(8)))
    stop.set()
    assert await cutting > 3
    found = await store.query_rollouts()
    assert len(found) == 200  # what was repeated would be here twice
    assert Counter(done) == Counter(r.rollout_id for r in found)
    assert {r.status for r in found} == {"succeeded"}
    statistics = await store.statistics()
    assert (statistics["total_attempts"], statistics["total_spans"]) == (200, 600)
    await store.close()


async def test_waiting_goes_on_after_the_notifications_were_cut(postgres_server: str, postgres_url: str) -> None:
    mine, theirs = SqlLightningStore(postgres_url), SqlLightningStore(postgres_url)
    waiting = asyncio.create_task(mine.dequeue_many_rollouts(timeout=100))
    await asyncio.sleep(0.1)
    async with await psycopg.AsyncConnection.connect(postgres_server, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s",
            (f"agentlightning listener {SCHEMA}",),
        )
    await theirs.enqueue_rollout("x")  # perhaps nobody listens at this moment
    before = time.monotonic()
    assert [r.input for r in await waiting] == ["x"]
    assert time.monotonic() - before < 50
    await mine.close()
    await theirs.close()


async def test_many_ends_at_once_are_announced_to_others(postgres_url: str) -> None:
    mine, theirs = SqlLightningStore(postgres_url), SqlLightningStore(postgres_url)
    ids = [f"a-rather-long-name-for-a-rollout-{i:05}" for i in range(600)]  # more than one notification can name
    started = await asyncio.gather(*(theirs.start_rollout("x", rollout_id=i) for i in ids))
    waiting = asyncio.create_task(mine.wait_for_rollouts(rollout_ids=ids, timeout=100))
    await asyncio.sleep(0.1)
    ends = (theirs.update_attempt(r.rollout_id, r.attempt.attempt_id, status="succeeded") for r in started)
    await asyncio.gather(*ends)
    before = time.monotonic()
    assert len(await waiting) == 600
    assert time.monotonic() - before < 50
    await mine.close()
    await theirs.close()


async def test_foreign_notifications_are_passed_over(postgres_server: str, postgres_url: str) -> None:
    store = SqlLightningStore(postgres_url)
    async with await psycopg.AsyncConnection.connect(postgres_server, autocommit=True) as connection:
        for payload in ("", "hello", "[]", '["x", 3]'):
            await connection.execute("SELECT pg_notify(%s, %s)", (f"agl_{SCHEMA}", payload))
    await store.enqueue_rollout("x")
    assert await store.dequeue_rollout() is not None
    await store.close()


async def test_lock_held_by_somebody_who_stopped(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_connection, "LOCK_WAIT_S", 0.3)
    store = SqlLightningStore(postgres_url)
    started = await store.start_rollout("x")
    with psycopg.connect(postgres_url.split("&schema")[0]) as other:
        other.execute(f"SELECT 1 FROM {SCHEMA}.rollouts FOR UPDATE")
        results = await asyncio.gather(
            store.update_rollout(started.rollout_id, status="running"),
            store.enqueue_rollout("y"),
            return_exceptions=True,
        )
        assert isinstance(results[0], StorageError)
        assert "held a lock" in results[0].message
        assert not isinstance(results[1], BaseException)  # its neighbour is not punished
    await store.update_rollout(started.rollout_id, status="running")
    await store.close()


async def test_values_that_postgres_cannot_hold(postgres_url: str) -> None:
    store = SqlLightningStore(postgres_url)
    started = await store.start_rollout("x")
    key = (started.rollout_id, started.attempt.attempt_id)
    results = await asyncio.gather(
        store.add_span(make_span(*key, name="a\x00b")),
        store.add_span(make_span(*key, name="fine")),
        store.add_span(make_span(*key, span_id="x" * 100_000_000)),
        store.add_span(make_span(*key, sequence_id=2**70)),
        store.add_span(make_span(*key, name="fine, too")),
        return_exceptions=True,
    )
    refused = [r for r in results if isinstance(r, BaseException)]
    assert [type(r) for r in refused] == [BadInputError] * 3, refused
    assert [s.name for s in await store.query_spans(key[0])] == ["fine", "fine, too"]
    await store.close()


async def test_a_read_that_fails_spoils_none_that_share_its_transaction(postgres_url: str) -> None:
    store = SqlLightningStore(postgres_url)
    rollout = await store.enqueue_rollout("x")
    reads = [store.get_rollout_by_id(i) for i in (rollout.rollout_id, "bad\0id", "ro-unknown", rollout.rollout_id)]
    good, bad, unknown, again = await asyncio.gather(*reads, return_exceptions=True)
    assert isinstance(bad, BadInputError)
    assert good == again == rollout
    assert unknown is None
    await store.close()


async def test_calls_wait_for_a_server_that_is_away_but_not_for_ever(postgres_url: str) -> None:
    store = SqlLightningStore(postgres_url)
    database = store._database
    database._writer._patience_s = database._readers._patience_s = 0.3  # type: ignore[attr-defined]
    nowhere = postgres_connection.Address("postgresql:///x?host=/nowhere", SCHEMA)
    database._writer._address = database._readers._address = nowhere  # type: ignore[attr-defined]
    database._writer._connection.close()  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="cannot be reached"):
        await store.enqueue_rollout("x")
    with pytest.raises(StorageError, match="cannot be reached"):
        await store.query_rollouts()
    await store.close()


def test_addresses_that_are_wrong_say_so_without_the_password() -> None:
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        SqlLightningStore("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in repr(caught.value.as_dict())
    assert "127.0.0.1:1/db" in caught.value.message
    with pytest.raises(ConfigError, match="schema"):
        SqlLightningStore("postgresql://localhost/db?schema=a;b")
    with pytest.raises(ConfigError, match="no URL"):
        SqlLightningStore("postgresql://localhost/db?colour=red")


def test_database_or_tables_of_somebody_else(postgres_server: str, fresh_postgres_url: str) -> None:
    with pytest.raises(StorageError, match="does not exist") as caught:
        SqlLightningStore(postgres_server.replace("/postgres?", "/nothere?"))
    assert "createdb" in caught.value.hint
    schema = fresh_postgres_url.rsplit("=", 1)[1]
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")  # type: ignore[arg-type]
        connection.execute(f"CREATE TABLE {schema}.theirs (x int)")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="another program") as caught:
        SqlLightningStore(fresh_postgres_url)
    assert "?schema=" in caught.value.hint


async def test_tables_are_created_once_by_many_openers(fresh_postgres_url: str) -> None:
    stores = await asyncio.gather(*(asyncio.to_thread(SqlLightningStore, fresh_postgres_url) for _ in range(5)))
    await stores[0].enqueue_rollout("x")
    assert await stores[1].dequeue_rollout() is not None
    for store in stores:
        await store.close()


async def test_tables_of_another_version(postgres_server: str, fresh_postgres_url: str) -> None:
    await SqlLightningStore(fresh_postgres_url).close()
    schema = fresh_postgres_url.rsplit("=", 1)[1]
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"UPDATE {schema}.alembic_version SET version_num = '9999'")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="9999") as caught:
        SqlLightningStore(fresh_postgres_url)
    assert "Upgrade" in caught.value.hint


async def test_two_schemas_are_two_stores(postgres_server: str, postgres_url: str, fresh_postgres_url: str) -> None:
    one, other = SqlLightningStore(postgres_url), SqlLightningStore(fresh_postgres_url)
    assert with_schema(postgres_server, SCHEMA) == postgres_url
    await one.enqueue_rollout("x")
    assert len(await other.query_rollouts()) == 0
    await one.close()
    await other.close()
