"""Resources, workers, queries over rollouts and attempts, statistics."""

from __future__ import annotations

import time

import pytest

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.schemas import LLM, AttemptedRollout, PromptTemplate, ProxyLLM
from agentlightning.store import LightningStore
from tests.contract.conftest import make_span


async def test_resources_round_trip(store: LightningStore) -> None:
    given = {
        "llm": LLM(endpoint="http://a/v1", model="m", sampling_parameters={"temperature": 0.5}),
        "proxy": ProxyLLM(endpoint="http://b/v1", model="m"),
        "prompt": PromptTemplate(template="Hi {name}"),
    }
    added = await store.add_resources(given)  # type: ignore[arg-type]
    assert (added.version, added.resources) == (1, given)
    assert added.create_time == added.update_time
    found = await store.get_resources_by_id(added.resources_id)
    assert found == added
    assert found is not None
    assert isinstance(found.resources["proxy"], ProxyLLM)


async def test_latest_resources_follow_adding_and_updating(store: LightningStore) -> None:
    assert await store.get_latest_resources() is None
    assert await store.get_resources_by_id("rs-none") is None
    first = await store.add_resources({"p": PromptTemplate(template="1")})
    second = await store.add_resources({"p": PromptTemplate(template="2")})
    assert await store.get_latest_resources() == second
    updated = await store.update_resources(first.resources_id, {"p": PromptTemplate(template="3")})
    assert (updated.version, updated.create_time) == (2, first.create_time)
    assert updated.update_time >= first.update_time
    assert await store.get_latest_resources() == updated
    with pytest.raises(NotFoundError, match="rs-none"):
        await store.update_resources("rs-none", {})


async def test_resources_when_malformed(store: LightningStore) -> None:
    with pytest.raises(BadInputError):
        await store.add_resources({"x": {"resource_type": "llm"}})  # type: ignore[dict-item]
    with pytest.raises(BadInputError):
        await store.add_resources({"x": 3})  # type: ignore[dict-item]
    assert await store.get_latest_resources() is None


async def test_query_resources(store: LightningStore) -> None:
    ids = [(await store.add_resources({})).resources_id for _ in range(3)]
    await store.update_resources(ids[0], {})
    assert [r.resources_id for r in await store.query_resources()] == ids
    assert [r.resources_id for r in await store.query_resources(resources_id=ids[1])] == [ids[1]]
    part = ids[2][-6:]
    assert [r.resources_id for r in await store.query_resources(resources_id_contains=part)] == [ids[2]]
    by_version = await store.query_resources(sort_by="version", sort_order="desc", limit=1)
    assert ([r.resources_id for r in by_version], by_version.total) == ([ids[0]], 3)
    with pytest.raises(BadInputError, match="resources"):
        await store.query_resources(sort_by="resources")


async def test_worker_follows_its_work(store: LightningStore) -> None:
    assert await store.get_worker_by_id("w") is None
    assert await store.dequeue_rollout("w") is None
    idle = await store.get_worker_by_id("w")
    assert idle is not None
    assert (idle.status, idle.last_idle_time) == ("idle", idle.last_dequeue_time)
    queued = await store.enqueue_rollout("x")
    claimed = await store.dequeue_rollout("w")
    assert claimed is not None
    busy = await store.get_worker_by_id("w")
    assert busy is not None
    assert (busy.status, busy.current_rollout_id, busy.current_attempt_id) == (
        "busy",
        queued.rollout_id,
        claimed.attempt.attempt_id,
    )
    assert busy.last_busy_time is not None
    assert busy.last_dequeue_time >= idle.last_dequeue_time  # type: ignore[operator]
    await store.update_attempt(queued.rollout_id, "latest", status="succeeded")
    free = await store.get_worker_by_id("w")
    assert free is not None
    assert (free.status, free.current_rollout_id, free.current_attempt_id) == ("idle", None, None)
    assert await store.dequeue_rollout("w") is None
    still = await store.get_worker_by_id("w")
    assert still is not None
    assert still.last_idle_time == free.last_idle_time


async def test_worker_is_assigned_and_lost_through_attempts(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    await store.update_attempt(started.rollout_id, "latest", worker_id="w")
    worker = await store.get_worker_by_id("w")
    assert worker is not None
    assert (worker.status, worker.current_rollout_id) == ("busy", started.rollout_id)
    await store.update_attempt(started.rollout_id, "latest", status="unresponsive")
    worker = await store.get_worker_by_id("w")
    assert worker is not None
    assert (worker.status, worker.current_rollout_id) == ("unknown", None)


async def test_update_worker_is_a_heartbeat_only(store: LightningStore) -> None:
    first = await store.update_worker("w", heartbeat_stats={"cpu": 0.5})
    assert (first.status, first.heartbeat_stats) == ("unknown", {"cpu": 0.5})
    second = await store.update_worker("w")
    assert second.heartbeat_stats == {"cpu": 0.5}
    assert second.last_heartbeat_time is not None
    assert abs(second.last_heartbeat_time - time.time()) < 60


async def test_query_workers(store: LightningStore) -> None:
    for name in ("alpha", "beta", "gamma"):
        await store.update_worker(name)
    await store.dequeue_rollout("beta")
    assert [w.worker_id for w in await store.query_workers()] == ["alpha", "beta", "gamma"]
    assert [w.worker_id for w in await store.query_workers(status_in=["idle"])] == ["beta"]
    either = await store.query_workers(status_in=["idle"], worker_id_contains="gam", filter_logic="or")
    assert [w.worker_id for w in either] == ["beta", "gamma"]
    both = await store.query_workers(status_in=["idle"], worker_id_contains="gam")
    assert (list(both), both.total) == ([], 0)
    page = await store.query_workers(sort_by="worker_id", sort_order="desc", limit=2, offset=1)
    assert ([w.worker_id for w in page], page.total) == (["beta", "alpha"], 3)


async def test_query_rollouts(store: LightningStore) -> None:
    queued = [await store.enqueue_rollout(i, "train" if i % 2 else "val") for i in range(4)]
    ids = [r.rollout_id for r in queued]
    await store.dequeue_rollout()
    every = await store.query_rollouts()
    assert [r.rollout_id for r in every] == ids
    assert isinstance(every[0], AttemptedRollout)
    assert not isinstance(every[1], AttemptedRollout)
    assert [r.rollout_id for r in await store.query_rollouts(status_in=["preparing"])] == ids[:1]
    assert [r.rollout_id for r in await store.query_rollouts(status=["preparing"])] == ids[:1]
    assert [r.rollout_id for r in await store.query_rollouts(rollout_ids=[ids[2]])] == [ids[2]]
    both = await store.query_rollouts(status_in=["queuing"], rollout_id_in=[ids[0], ids[3]])
    assert [r.rollout_id for r in both] == [ids[3]]
    either = await store.query_rollouts(status_in=["preparing"], rollout_id_contains=ids[3][-8:], filter_logic="or")
    assert [r.rollout_id for r in either] == [ids[0], ids[3]]
    assert list(await store.query_rollouts(rollout_id_in=[])) == []
    newest = await store.query_rollouts(sort_by="start_time", sort_order="desc", limit=2)
    assert ([r.rollout_id for r in newest], newest.total) == ([ids[3], ids[2]], 4)
    modes = await store.query_rollouts(sort_by="mode")
    assert [r.mode for r in modes] == ["train", "train", "val", "val"]
    with pytest.raises(BadInputError, match="input"):
        await store.query_rollouts(sort_by="input")


async def test_query_attempts(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    for _ in range(2):
        await store.start_attempt(started.rollout_id)
    attempts = await store.query_attempts(started.rollout_id)
    assert [a.sequence_id for a in attempts] == [1, 2, 3]
    assert all(a.rollout_id == started.rollout_id for a in attempts)
    newest = await store.query_attempts(started.rollout_id, sort_order="desc", limit=1)
    assert ([a.sequence_id for a in newest], newest.total) == ([3], 3)
    latest = await store.get_latest_attempt(started.rollout_id)
    assert latest == newest[0]
    with pytest.raises(BadInputError):
        await store.query_attempts(started.rollout_id, sort_by="metadata")


async def test_statistics(store: LightningStore) -> None:
    started = await store.start_rollout("x", worker_id="w")
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    await store.add_resources({})
    found = await store.statistics()
    assert {k: v for k, v in found.items() if k.startswith("total")} == {
        "total_rollouts": 1,
        "total_attempts": 1,
        "total_spans": 1,
        "total_resources": 1,
        "total_workers": 1,
    }
    assert found["uptime"] >= 0
    assert found["name"].endswith("LightningStore")


def test_capabilities(store: LightningStore) -> None:
    assert store.capabilities["async_safe"]
    assert store.capabilities["thread_safe"]
    if store.capabilities["otlp_traces"]:
        assert store.otlp_traces_endpoint().endswith("/v1/traces")
    else:
        with pytest.raises(NotImplementedError):
            store.otlp_traces_endpoint()
