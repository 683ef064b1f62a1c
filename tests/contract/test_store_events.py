"""Training events: what each call records, reading them, and following them live."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from typing import Any

import pytest

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError, StorageError
from agentlightning.schemas import EVENT_KINDS, LLM, EnqueueRolloutRequest, PromptTemplate, RolloutConfig, TrainingEvent
from agentlightning.store import LightningStore, SqlLightningStore, verbs
from tests.contract.conftest import make_span
from tests.contract.test_store_processes import spawn

SOON_S = 100.0
"""Longer than anything here takes."""


def kinds(events: list[TrainingEvent]) -> list[str]:
    return [event.kind for event in events]


async def test_the_whole_life_of_a_rollout(store: LightningStore) -> None:
    queued = await store.enqueue_rollout({"q": 1}, mode="train", metadata={"g": 2})
    claimed = await store.dequeue_rollout(worker_id="w")
    assert claimed is not None
    ids = {"rollout_id": queued.rollout_id, "attempt_id": claimed.attempt.attempt_id}
    spans = [make_span(**ids, span_id="s1"), make_span(**ids, span_id="s2")]
    await store.add_many_spans(spans)
    await store.add_many_spans(spans)  # known already: nothing happens
    await store.update_attempt(**ids, last_heartbeat_time=5.0)  # liveness is no history
    await store.update_worker("w", {"cpu": 1})
    await store.update_attempt(**ids, metadata={"m": b"\x00"})
    await store.update_attempt(**ids, status="running")  # it is
    done = await store.update_attempt(**ids, status="succeeded")
    events = await store.query_events()
    assert kinds(events) == [
        "rollout.enqueued",
        "attempt.started",
        "spans.added",
        "attempt.running",
        "attempt.updated",
        "attempt.completed",
        "rollout.completed",
    ]
    assert [event.no for event in events] == sorted({event.no for event in events})
    assert {event.rollout_id for event in events} == {queued.rollout_id}
    assert [event.attempt_id for event in events] == [None, *[ids["attempt_id"]] * 5, None]
    assert all(queued.start_time <= event.time <= done.end_time + 60 for event in events if done.end_time)
    enqueued, started, added, running, updated, completed, ended = (event.data for event in events)
    assert enqueued == {
        "input": {"q": 1},
        "start_time": queued.start_time,
        "mode": "train",
        "resources_id": None,
        "config": {},
        "metadata": {"g": 2},
    }
    assert started == {"sequence_id": 1, "start_time": claimed.attempt.start_time, "worker_id": "w"}
    assert added == {"span_ids": ["s1", "s2"], "sequence_ids": [1, 2]}
    assert running == {"status": "running", "end_time": None, "rollout_status": "running"}
    assert updated == {"metadata": {"m": b"\x00"}}
    assert completed == {"status": "succeeded", "end_time": done.end_time}
    rollout = await store.get_rollout_by_id(queued.rollout_id)
    assert rollout is not None
    assert ended == {"status": "succeeded", "end_time": rollout.end_time}


async def test_retries_queue_changes_and_resources(store: LightningStore) -> None:
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
    started = await store.start_rollout("x", config=config, worker_id="w")
    key = started.rollout_id
    await store.update_attempt(key, "latest", status="failed")
    await store.start_attempt(key)
    await store.update_attempt(key, "latest", status="running", worker_id="v")
    await store.update_rollout(key, input="y", mode="val", metadata=None, config=RolloutConfig())
    await store.update_rollout(key, status="cancelled", metadata={"why": "late"})
    await store.update_attempt(key, "latest", status="succeeded")  # changes the rollout no more
    await store.update_rollout(key, status="requeuing")
    await store.update_rollout(key, status="requeuing")  # it is
    added = await store.add_resources({"llm": LLM(endpoint="http://x", model="m")})
    await store.update_resources(added.resources_id, {})
    events = await store.query_events()
    data = [(event.kind, {k: v for k, v in event.data.items() if not k.endswith("time")}) for event in events]
    resources = {"endpoint": "http://x", "model": "m"}
    assert data[0][0] == "rollout.started"
    assert events[0].attempt_id == started.attempt.attempt_id
    assert data[0][1]["config"] == {"max_attempts": 2, "retry_condition": ["failed"]}
    assert data[0][1]["attempt"]["worker_id"] == "w"
    assert data[1:-2] == [
        ("attempt.completed", {"status": "failed", "rollout_status": "requeuing"}),
        ("attempt.started", {"sequence_id": 2, "worker_id": None}),
        ("attempt.running", {"status": "running", "worker_id": "v", "rollout_status": "running"}),
        ("rollout.updated", {"input": "y", "mode": "val", "metadata": None, "config": {}}),
        ("rollout.completed", {"status": "cancelled", "metadata": {"why": "late"}}),
        ("attempt.completed", {"status": "succeeded"}),
        ("rollout.updated", {"status": "requeuing"}),
    ]
    assert [d["version"] for _, d in data[-2:]] == [1, 2]
    assert {k: data[-2][1]["resources"]["llm"][k] for k in resources} == resources
    assert data[-1][1]["resources"] == {}


async def test_what_fails_records_nothing(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    before = await store.query_events()
    calls = [
        store.update_attempt(started.rollout_id, "latest", status="nonsense"),  # type: ignore[arg-type]
        store.update_rollout(started.rollout_id, input="y", status="queuing"),
        store.update_rollout("ro-none", input="y"),
        store.add_span(make_span(started.rollout_id, "at-none")),
        store.enqueue_many_rollouts(
            [EnqueueRolloutRequest(input=1), EnqueueRolloutRequest(input=1, resources_id="rs-none")]
        ),
        store.update_resources("rs-none", {}),
    ]
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, (BadInputError, ConflictError, NotFoundError))
    assert await store.query_events() == before


async def test_spans_of_a_superseded_attempt_are_recorded_and_change_nothing(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    await store.start_attempt(started.rollout_id)
    before = await store.query_events()
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    assert kinds((await store.query_events())[len(before) :]) == ["spans.added"]


async def test_reading_by_position_kind_and_rollout(store: LightningStore) -> None:
    assert await store.query_events() == []
    rollouts = [await store.start_rollout(i) for i in range(3)]
    for rollout in rollouts:
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    everything = await store.query_events()
    assert len(everything) == 9
    assert await store.query_events(everything[3].no) == everything[4:]
    assert await store.query_events(everything[-1].no) == []
    assert await store.query_events(10**9) == []
    assert await store.query_events(limit=2) == everything[:2]
    assert await store.query_events(limit=-1) == everything
    assert await store.query_events(limit=0) == []
    wanted = ["rollout.completed", "attempt.completed"]
    assert await store.query_events(kinds=wanted) == everything[3:]
    assert await store.query_events(kinds=[]) == []
    of_one = [event for event in everything if event.rollout_id == rollouts[1].rollout_id]
    assert await store.query_events(rollout_id=rollouts[1].rollout_id) == of_one
    assert len(of_one) == 3
    assert kinds(await store.query_events(of_one[0].no, rollout_id=of_one[0].rollout_id, limit=1)) == [wanted[1]]
    assert await store.query_events(rollout_id="ro-none") == []


async def test_a_page_says_up_to_where_one_has_seen_everything(store: LightningStore) -> None:
    assert (await store.execute(verbs.QueryEvents(after=5))).last == 5
    for i in range(3):
        await store.enqueue_rollout(i)
    newest = (await store.query_events())[-1].no
    not_waiting = store.execute(verbs.QueryEvents(limit=0, timeout=10 * SOON_S))
    assert (await asyncio.wait_for(not_waiting, SOON_S)).last == newest
    assert (await store.execute(verbs.QueryEvents(kind_in=["resource.added"]))).last == newest
    assert (await store.execute(verbs.QueryEvents(limit=2))).last == newest - 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"after": -1},
        {"after": 2**63},
        {"kinds": ["rollout.exploded"]},
        {"kinds": ["rollout"]},
        {"limit": -2},
        {"limit": 2**63},
        {"timeout": math.nan},
        {"timeout": math.inf},
    ],
)
async def test_bad_arguments(store: LightningStore, arguments: dict[str, Any]) -> None:
    with pytest.raises(BadInputError) as caught:
        await asyncio.wait_for(store.query_events(**arguments), SOON_S)
    assert caught.value.hint


async def test_waiting_for_the_next_event(store: LightningStore) -> None:
    await store.enqueue_rollout(0)
    seen = (await store.query_events())[-1].no
    assert await store.query_events(seen, timeout=0.05) == []
    waiting = asyncio.create_task(store.query_events(seen, kinds=["resource.added"], timeout=SOON_S))
    await asyncio.sleep(0.05)
    await store.enqueue_rollout(1)  # wakes it, but is not what it waits for
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.add_resources({})
    assert kinds(await asyncio.wait_for(waiting, SOON_S)) == ["resource.added"]


async def test_watching_from_the_beginning_and_from_now_on(store: LightningStore) -> None:
    await store.enqueue_rollout(0)
    from_now, from_start = store.watch_events(after=None), store.watch_events()
    first = asyncio.create_task(anext(from_now))
    assert kinds([await anext(from_start)]) == ["rollout.enqueued"]
    await asyncio.sleep(0.1)
    await store.add_resources({})
    for event in (await asyncio.wait_for(first, SOON_S), await asyncio.wait_for(anext(from_start), SOON_S)):
        assert event.kind == "resource.added"
    await from_now.aclose()
    await from_start.aclose()


async def test_watching_ends_when_the_store_is_closed(sql_store: SqlLightningStore) -> None:
    watching = asyncio.create_task(anext(sql_store.watch_events()))
    await asyncio.sleep(0.05)
    await sql_store.close()
    with pytest.raises(StorageError):
        await asyncio.wait_for(watching, SOON_S)


async def test_another_process_wakes_the_watcher(location: str) -> None:
    mine, theirs = SqlLightningStore(location), SqlLightningStore(location)
    waiting = asyncio.create_task(mine.query_events(timeout=SOON_S))
    await asyncio.sleep(0.1)
    added = await theirs.add_resources({})
    assert [e.data["resources_id"] for e in await asyncio.wait_for(waiting, SOON_S)] == [added.resources_id]
    await mine.close()
    await theirs.close()


BEFORE = {
    "attempt.started": "rollout.enqueued",
    "spans.added": "attempt.started",
    "attempt.running": "spans.added",
    "attempt.completed": "attempt.running",
    "rollout.completed": "attempt.completed",
}


@pytest.mark.slow
async def test_a_watcher_misses_nothing_of_several_writing_processes(location: str) -> None:
    store = SqlLightningStore(location)
    processes = [spawn("lives", location, "60") for _ in range(3)]
    seen: list[TrainingEvent] = []
    ended = 0
    async with asyncio.timeout(90):
        async for event in store.watch_events():
            seen.append(event)
            ended += event.kind == "rollout.completed"
            if ended == 3 * 60:
                break
    outputs = [await asyncio.to_thread(p.communicate, timeout=30) for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], outputs
    numbers = [event.no for event in seen]
    assert numbers == sorted(set(numbers))
    assert numbers == [event.no for event in await store.query_events(limit=-1)]
    by_rollout: defaultdict[str, list[str]] = defaultdict(list)
    for event in seen:
        assert event.rollout_id is not None
        if event.kind in BEFORE:
            assert by_rollout[event.rollout_id][-1] == BEFORE[event.kind]
        by_rollout[event.rollout_id].append(event.kind)
    assert {len(found) for found in by_rollout.values()} == {6}
    assert len(by_rollout) == 180
    await store.close()


def test_every_kind_is_described() -> None:
    assert all(text.endswith(".") for text in EVENT_KINDS.values())


PROMPT = "the same words " * 1000
LARGE = {"short": 1, "prompt": PROMPT}


async def test_large_values_are_stored_once_and_put_back(sql_store: SqlLightningStore) -> None:
    async def pieces() -> int:
        return await sql_store._database.read(lambda db: db.all("SELECT count(*) FROM payloads")[0][0])

    rollout = await sql_store.start_rollout(LARGE, metadata={"m": PROMPT})
    before = await pieces()
    assert before > 0
    await sql_store.enqueue_rollout(LARGE)
    await sql_store.update_rollout(rollout.rollout_id, input=[PROMPT], metadata=LARGE)
    await sql_store.update_attempt(rollout.rollout_id, "latest", metadata=LARGE)
    listed = await pieces()  # the list begins with other bytes, so its pieces are cut elsewhere
    await sql_store.update_rollout(rollout.rollout_id, input=LARGE)
    assert await pieces() == listed <= 2 * before + 1
    added = await sql_store.add_resources({"p": PromptTemplate(template=PROMPT)})
    events = await sql_store.query_events()
    assert [event.data.get("input") for event in events[:5]] == [LARGE, LARGE, [PROMPT], None, LARGE]
    assert events[2].data["metadata"] == events[3].data["metadata"] == LARGE
    assert events[-1].data["resources_id"] == added.resources_id
    assert events[-1].data["resources"]["p"]["template"] == PROMPT
    sizes = await sql_store._database.read(lambda db: db.all("SELECT max(length(packed_data)) FROM events"))
    assert sizes[0][0] < 1000
    report = await sql_store.collect_garbage()
    assert (report.removed, await sql_store.query_events()) == (0, events)
