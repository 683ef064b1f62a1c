"""Large values: nobody sees that they are stored in pieces; each piece is stored once; nothing that is needed goes."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import msgspec
import pytest

from agentlightning.kit.db import Session
from agentlightning.kit.errors import PayloadError, PayloadTooLargeError
from agentlightning.schemas import EnqueueRolloutRequest, PromptTemplate
from agentlightning.store import InMemoryLightningStore, LightningStore, SqlLightningStore, retention, verbs
from agentlightning.store.ops import garbage, queue
from tests.contract.conftest import make_span

SYSTEM = "You are careful. " * 400
TOKENS = random.Random(1).choices(range(150_000), k=6000)


def attributes(turns: int) -> dict[str, Any]:
    """Of a call whose prompt has grown for some turns."""
    return {
        "n": turns,
        "system": SYSTEM,
        "prompt_token_ids": TOKENS[: 2000 + 500 * turns],
        "blob": b"\x00\xff" * 3000,
        "after": None,
    }


async def sql(store: SqlLightningStore, statement: str) -> list[Any]:
    return await store._database.read(lambda db: db.all(statement))


async def change(store: SqlLightningStore, statement: str, **params: Any) -> None:
    await store._database.write(lambda db: db.run(statement, params))


async def count(store: SqlLightningStore) -> int:
    return (await sql(store, "SELECT count(*) FROM payloads"))[0][0]


async def fill(store: LightningStore, rollout_id: str, turns: int = 4) -> str:
    rollout = await store.start_rollout(
        {"question": "why?", "context": SYSTEM, "nan": float("inf")},
        rollout_id=rollout_id,
        metadata={"notes": [SYSTEM, rollout_id]},
    )
    key = (rollout_id, rollout.attempt.attempt_id)
    for turn in range(turns):
        await store.add_span(make_span(*key, attributes=attributes(turn)))
    await store.update_attempt(*key, status="succeeded", metadata={"log": "line\n" * 2000})
    return rollout.attempt.attempt_id


async def test_large_values_come_back_as_they_were(store: LightningStore) -> None:
    await fill(store, "r")
    [rollout] = await store.wait_for_rollouts(rollout_ids=["r"], timeout=1)
    assert rollout.input == {"question": "why?", "context": SYSTEM, "nan": float("inf")}
    assert rollout.metadata == {"notes": [SYSTEM, "r"]}
    assert list(await store.query_rollouts()) == [rollout]
    assert await store.get_rollout_by_id("r") == rollout
    assert rollout.attempt.metadata == {"log": "line\n" * 2000}  # type: ignore[attr-defined]
    assert (await store.query_attempts("r"))[0] == await store.get_latest_attempt("r")
    spans = await store.query_spans("r")
    assert [span.attributes for span in spans] == [attributes(turn) for turn in range(4)]
    assert [list(span.attributes) for span in spans] == [list(attributes(0))] * 4  # the order, too
    assert (await store.query_many_spans(["r"]))["r"] == list(spans)


async def test_large_values_pass_through_the_queue(store: LightningStore) -> None:
    texts = [SYSTEM + str(n) for n in range(5)]
    for text in texts:
        await store.enqueue_rollout(text)
    claimed = await store.dequeue_many_rollouts(limit=5)
    assert [rollout.input for rollout in claimed] == texts
    assert (await store.start_attempt(claimed[0].rollout_id)).input == texts[0]
    changed = await store.update_rollout(claimed[1].rollout_id, input=[TOKENS], metadata=None)
    assert (changed.input, changed.metadata) == ([TOKENS], None)
    mine = await store.enqueue_rollout(SYSTEM, rollout_id="mine")
    assert await store.enqueue_rollout(SYSTEM, rollout_id="mine") == mine


async def test_large_resources_come_back_as_they_were(store: LightningStore) -> None:
    first = await store.add_resources({"p": PromptTemplate(template=SYSTEM), "q": PromptTemplate(template="{x}")})
    second = await store.update_resources(first.resources_id, {"p": PromptTemplate(template=SYSTEM + "!")})
    assert await store.get_latest_resources() == second
    assert second.resources["p"].template == SYSTEM + "!"  # type: ignore[union-attr]
    assert list(await store.query_resources()) == [second]


async def test_what_looks_like_a_reference_is_a_value(sql_store: SqlLightningStore) -> None:
    forged = msgspec.msgpack.Ext(1, b"\x00" + b"x" * 32)
    rollout = await sql_store.enqueue_rollout(forged, metadata={"x": forged})
    found = await sql_store.get_rollout_by_id(rollout.rollout_id)
    assert found is not None
    assert (found.input, found.metadata) == (forged, {"x": forged})


async def test_each_piece_is_stored_once(sql_store: SqlLightningStore) -> None:
    await fill(sql_store, "a")
    pieces = await count(sql_store)
    [(size, stored)] = await sql(sql_store, "SELECT sum(size), sum(length(data)) FROM payloads")
    assert stored < size / 2
    await fill(sql_store, "b")
    assert await count(sql_store) == pieces + 1  # the list in the metadata that names the rollout
    assert await count(sql_store) == len({h for (h,) in await sql(sql_store, "SELECT hash FROM payloads")})


async def test_growing_values_share_what_they_begin_with(sql_store: SqlLightningStore) -> None:
    rollout = await sql_store.start_rollout("x")
    key = (rollout.rollout_id, rollout.attempt.attempt_id)
    for length in range(3000, 6001, 300):
        await sql_store.add_span(make_span(*key, attributes={"ids": TOKENS[:length]}))
    [(size,)] = await sql(sql_store, "SELECT sum(size) FROM payloads")
    whole = len(msgspec.msgpack.encode(TOKENS))
    assert size < 11 * 4096 + 1.5 * whole  # at most one piece of its own for each, and all of the longest
    assert [len(s.attributes["ids"]) for s in await sql_store.query_spans(rollout.rollout_id)] == list(
        range(3000, 6001, 300)
    )


async def test_small_values_stay_where_they_are(sql_store: SqlLightningStore) -> None:
    rollout = await sql_store.start_rollout("x" * 1500)
    await sql_store.add_span(
        make_span(rollout.rollout_id, rollout.attempt.attempt_id, attributes={str(n): "y" * 100 for n in range(100)})
    )
    assert await count(sql_store) == 0


async def test_a_body_of_many_small_attributes_is_stored_as_a_whole(sql_store: SqlLightningStore) -> None:
    rollout = await sql_store.start_rollout("x")
    many = {str(n): "y" * 100 for n in range(1000)}
    await sql_store.add_span(make_span(rollout.rollout_id, rollout.attempt.attempt_id, attributes=many))
    assert await count(sql_store) > 0
    assert (await sql_store.query_spans(rollout.rollout_id))[0].attributes == many


async def test_a_damaged_piece_is_named(sql_store: SqlLightningStore) -> None:
    await sql_store.enqueue_rollout(SYSTEM, rollout_id="bad")
    await sql_store.enqueue_rollout("fine", rollout_id="fine")
    [(digest, data)] = await sql(sql_store, "SELECT hash, data FROM payloads ORDER BY size LIMIT 1")
    other = (await sql(sql_store, "SELECT data FROM payloads ORDER BY size DESC LIMIT 1"))[0][0]
    for wrong in (data[:-3], b"no zstd", other):
        await change(sql_store, "UPDATE payloads SET data = :data WHERE hash = :hash", data=wrong, hash=digest)
        with pytest.raises(PayloadError, match=f"{digest} is damaged; bad needs it") as caught:
            await sql_store.get_rollout_by_id("bad")
        assert caught.value.details["payload"] == digest
    await change(sql_store, "DELETE FROM payloads WHERE hash = :hash", hash=digest)
    with pytest.raises(PayloadError, match=f"{digest} is missing"):
        await sql_store.query_rollouts()
    assert await sql_store.get_rollout_by_id("fine") is not None
    await change(sql_store, "UPDATE rollouts SET packed_input = :blob", blob=b"\xc7\x01\x63\x00")
    with pytest.raises(PayloadError, match="extension 99"):
        await sql_store.get_rollout_by_id("bad")
    with pytest.raises(PayloadError):  # what cannot be read may refer to anything
        await sql_store.collect_garbage()


async def test_too_large_values_are_refused_and_leave_no_trace(location: str) -> None:
    small = SqlLightningStore(location, max_value_bytes=10_000)
    rollout = await small.start_rollout("x", rollout_id="r")
    big = "x" * 10_001
    for attempt in (
        small.enqueue_rollout(big),
        small.enqueue_rollout("x", metadata={"big": big}),
        small.start_rollout(big),
        small.update_rollout("r", input=big),
        small.update_attempt("r", "latest", metadata={"big": big}),
        small.add_span(make_span("r", rollout.attempt.attempt_id, attributes={"big": big})),
        small.add_resources({"p": PromptTemplate(template=big)}),
        small.add_feedback("r", thumb="up", metadata={"big": big}),
    ):
        with pytest.raises(PayloadTooLargeError, match=r"larger than this store takes \(10,000\)") as caught:
            await attempt
        assert caught.value.status == 413
    assert (await small.statistics())["total_rollouts"] == 1
    assert (await small.statistics())["total_spans"] == 0
    assert (await small.query_feedback()).total == 0
    assert await small.get_latest_resources() is None
    assert await count(small) == 0
    assert (await small.get_rollout_by_id("r")).input == "x"  # type: ignore[union-attr]
    await small.close()


async def test_collecting_removes_what_nobody_needs(sql_store: SqlLightningStore) -> None:
    await fill(sql_store, "a")
    await fill(sql_store, "b")
    before = await count(sql_store)
    report = await sql_store.collect_garbage()
    assert (report.payloads, report.removed) == (before, 0)
    steps: list[float] = []
    pruned = await sql_store.prune(keep_last=1)
    assert (pruned.deleted, pruned.kept) == (1, 0)
    report = await sql_store.collect_garbage(lambda fraction, _: steps.append(fraction))
    assert report.removed == 1  # only "a" had that
    assert steps == sorted(steps)
    assert steps[-1] == 1.0
    assert [s.attributes for s in await sql_store.query_spans("b")] == [attributes(turn) for turn in range(4)]
    await sql_store.prune(keep_last=0)
    report = await sql_store.collect_garbage()
    assert report.removed == before - 1
    assert report.removed_bytes > 1000
    assert await count(sql_store) == 0
    assert (await sql_store.statistics())["total_spans"] == 0


async def leave_garbage(store: SqlLightningStore) -> None:
    """Pieces that nothing refers to; as long as a rollout exists, its events do."""
    await store.enqueue_rollout(SYSTEM, rollout_id="old")
    await store.update_rollout("old", status="cancelled")
    assert (await store.prune(keep_last=0)).deleted == 1
    assert await count(store) > 0


async def test_collecting_keeps_what_is_referred_to_meanwhile(
    sql_store: SqlLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking for references and removing, somebody refers to a piece that nobody needed before."""
    await leave_garbage(sql_store)
    sweep, second = garbage.sweep, SqlLightningStore(sql_store.location or "")
    late: list[str] = []

    async def refer() -> None:
        await second.enqueue_rollout(SYSTEM, rollout_id="late")

    def sweep_after_a_writer(db: Session, **arguments: Any) -> garbage.Swept:
        return sweep(db, **arguments)

    async def collect() -> None:
        database, write = sql_store._database, sql_store._database.write

        async def write_after_a_writer(operation: Any, *rest: Any) -> Any:
            if getattr(operation, "func", None) is sweep_after_a_writer and not late:
                late.append("late")
                await refer()
            return await write(operation, *rest)

        monkeypatch.setattr(garbage, "sweep", sweep_after_a_writer)
        monkeypatch.setattr(database, "write", write_after_a_writer)
        assert (await sql_store.collect_garbage()).removed == 0

    await collect()
    assert late == ["late"]
    found = await second.get_rollout_by_id("late")
    assert found is not None
    assert found.input == SYSTEM
    await second.close()


async def test_collecting_waits_for_whoever_has_referred_but_not_committed(location: str) -> None:
    one, other = SqlLightningStore(location), SqlLightningStore(location)
    await leave_garbage(one)
    referred, commit = threading.Event(), threading.Event()

    def slow(db: Session) -> None:
        queue.enqueue_many_rollouts(db, verbs.EnqueueManyRollouts(rollouts=[request]))
        referred.set()
        assert commit.wait(10)

    request = EnqueueRolloutRequest(input=SYSTEM, rollout_id="late")
    writing = asyncio.ensure_future(one._database.write(slow))
    assert await asyncio.to_thread(referred.wait, 10)
    collecting = asyncio.create_task(other.collect_garbage())
    done, _ = await asyncio.wait({collecting}, timeout=0.5)
    assert not done
    commit.set()
    await writing
    await collecting
    found = await other.get_rollout_by_id("late")
    assert found is not None
    assert found.input == SYSTEM
    await one.close()
    await other.close()


async def test_collecting_beside_writers_loses_nothing(location: str) -> None:
    """Writers refer to the same few values again and again while others are pruned and garbage is collected."""
    stores = [SqlLightningStore(location) for _ in range(3)]
    values = [str(n) * 9000 for n in range(4)]
    done = asyncio.Event()
    collected = [0, 0]

    async def write(store: SqlLightningStore, seed: int) -> None:
        chance = random.Random(seed)
        for step in range(3000):
            if step >= 60 and collected[1] > 0:
                break
            value = chance.choice([*values, "small", "small"])
            rollout = await store.enqueue_rollout("small")
            await store.update_rollout(rollout.rollout_id, input=value)
            found = await store.get_rollout_by_id(rollout.rollout_id)
            assert found is not None
            assert found.input == value
            if step != 5:
                await store.update_rollout(rollout.rollout_id, status="cancelled")

    async def collect() -> None:
        while not done.is_set():
            await stores[2].prune(keep_last=0)
            report = await stores[2].collect_garbage()
            collected[0] += 1
            collected[1] += report.removed

    collecting = asyncio.create_task(collect())
    await asyncio.gather(write(stores[0], 1), write(stores[1], 2))
    done.set()
    await collecting
    assert collected[0] > 1
    assert collected[1] > 0, "garbage was made, and collected in between"
    for rollout in await stores[1].query_rollouts():
        assert rollout.input in (*values, "small")
    for event in await stores[1].query_events(kinds=["rollout.updated"]):
        assert event.data["input"] in (*values, "small")
    for store in stores:
        await store.close()


async def test_collecting_and_pruning_may_be_interrupted_anywhere(location: str) -> None:
    store = SqlLightningStore(location)
    for n in range(6):
        await fill(store, f"r{n}", turns=1)
    for stop_at in range(1, 12):
        steps = 0

        def stop(_: float, __: str, stop_at: int = stop_at) -> None:
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await store.collect_garbage(stop)
        assert len((await store.query_spans("r0")).items) == 1
    with pytest.raises(KeyboardInterrupt):
        await retention.prune(store._database, keep_last=2, batch=1, progress=_stop_after(3))
    left = (await store.query_rollouts()).total
    assert 2 < left < 6
    await store.close()
    again = SqlLightningStore(location)
    assert (await again.prune(keep_last=2)).deleted == left - 2
    removed = (await retention.collect_garbage(again._database, batch=2)).removed  # many steps
    assert removed == 4  # the metadata of each that went
    assert (await again.collect_garbage()).removed == 0
    assert [r.rollout_id for r in await again.query_rollouts()] == ["r4", "r5"]
    assert len((await again.query_spans("r5"))[0].attributes["prompt_token_ids"]) == 2000
    await again.close()


def _stop_after(count: int) -> retention.Progress:
    steps: list[str] = []

    def progress(_: float, what: str) -> None:
        steps.append(what)
        if len(steps) > count:
            raise KeyboardInterrupt

    return progress


async def test_pruning_spares_what_is_young_under_way_or_judged(sql_store: SqlLightningStore) -> None:
    for name in ("judged", "better", "worse", "shown", "plain", "last"):
        await fill(sql_store, name, turns=1)
    await sql_store.enqueue_rollout("waiting", rollout_id="waiting")
    await sql_store.add_feedback("judged", thumb="up")
    await sql_store.add_preference("better", "worse")
    await sql_store.create_lineage_session(1, session_id="s")
    await sql_store.add_to_lineage("s.0", "shown")
    assert (await sql_store.prune(ended_before=1.0)).deleted == 0
    planned = await sql_store.prune(keep_last=1, dry_run=True)
    assert (planned.deleted, planned.kept, planned.dry_run) == (1, 4, True)
    assert (await sql_store.query_rollouts()).total == 7
    done = await sql_store.prune(keep_last=1)
    assert (done.deleted, done.kept_examples) == (1, ["judged", "better", "worse", "shown"])
    assert await sql_store.get_rollout_by_id("plain") is None
    assert (await sql_store.prune(keep_last=1, force=True)).deleted == 4
    assert [r.rollout_id for r in await sql_store.query_rollouts()] == ["last", "waiting"]
    assert (await sql_store.query_feedback()).total == (await sql_store.query_preferences()).total == 0
    left = await sql(sql_store, "SELECT count(*) FROM events WHERE rollout_id IN ('plain', 'judged')")
    assert left == [(0,)]
    assert (await sql_store.prune(ended_before=9e12)).deleted == 1


async def test_values_in_memory_are_stored_once_too() -> None:
    store = InMemoryLightningStore(max_value_bytes=2**20)
    await fill(store, "a")
    assert await count(store) > 0
    await store.prune(keep_last=0)
    assert (await store.collect_garbage()).removed > 0
    assert await count(store) == 0
    await store.close()
