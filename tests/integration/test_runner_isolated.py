"""One process for each rollout at a time: what agents do to it harms nobody else."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.kit.errors import ConfigError
from agentlightning.runner import RunnerPool
from agentlightning.store import LightningStoreServer
from tests.integration import runner_agents
from tests.integration.runner_pools import descendants, enqueue, finished


@pytest.mark.slow
async def test_agents_that_crash_block_and_exit_harm_nobody_else(server: LightningStoreServer, start: Any) -> None:
    kinds = {"abort": "SIGABRT", "segfault": "SIGSEGV", "exit 0": "exit code 0"}
    wild = {kind: (await enqueue(server, [kind]))[0] for kind in kinds}
    wild |= {kind: (await enqueue(server, [kind], timeout_seconds=2))[0] for kind in ("stop", "deaf")}
    wild["sys.exit"] = (await enqueue(server, ["sys.exit"]))[0]
    good = await enqueue(server, ["fine"] * 60)
    pool = await start(
        runner_agents.wild, n_runners=3, isolated=True, policy=agl.FailurePolicy(retries=1), max_restarts=1
    )
    rollouts = dict(zip(wild, await finished(server, list(wild.values()), timeout=110), strict=True))
    assert {r.status for r in rollouts.values()} == {"failed"}
    calm = await finished(server, good)
    assert {(r.status, r.attempt.sequence_id) for r in calm} == {("succeeded", 1)}  # not one was touched
    for kind, cause in kinds.items():
        assert rollouts[kind].attempt.sequence_id == 2  # tried again, as the policy says
        error = rollouts[kind].attempt.metadata["error"]
        assert error["class"] == "crashed"
        assert cause in error["message"]
    assert "about to abort" in rollouts["abort"].attempt.metadata["error"]["message"]
    assert "string_at" in rollouts["segfault"].attempt.metadata["error"]["message"]  # where it was
    assert {rollouts[kind].attempt.status for kind in ("stop", "deaf")} == {"timeout"}
    assert rollouts["sys.exit"].attempt.metadata["error"]["class"] == "agent_error"
    assert pool.failure is None
    for _ in range(300):
        if pool.restarts == 7 and len(pool.pids()) == 3:  # two for each crash, one for the process that had stopped
            break
        await asyncio.sleep(0.1)
    assert (pool.restarts, len(pool.pids())) == (7, 3)
    await pool.stop()
    assert descendants() == []


async def test_processes_are_warm_and_replaced_after_so_many(server: LightningStoreServer, start: Any) -> None:
    ids = await enqueue(server, ["fine"] * 10)
    pool = await start(runner_agents.wild, isolated=True, recycle_after=4, max_rollouts=10)
    await finished(server, ids)
    await asyncio.wait_for(pool.wait(), 60)
    spans = await server.store.query_many_spans(ids)
    pids = [agl.get_message_value(span) for i in ids for span in spans[i] if agl.get_message_value(span)]
    assert [count for _, count in Counter(pids).most_common()] == [4, 4, 2]
    assert pool.restarts == 0
    await pool.stop()


async def test_agent_may_block_its_process_as_long_as_its_limit_allows(
    server: LightningStoreServer, start: Any
) -> None:
    ids = await enqueue(server, [4.0, 0.0], timeout_seconds=60)
    # The lease is three heartbeats: the blocked process sends none, its parent does.
    pool = await start(runner_agents.block_for, isolated=True, heartbeat_interval=0.5)
    rollouts = await finished(server, ids)
    assert [(r.status, r.attempt.sequence_id) for r in rollouts] == [("succeeded", 1)] * 2
    assert pool.restarts == 0
    await pool.stop()


async def test_one_at_a_time_is_all_there_is(server: LightningStoreServer) -> None:
    with pytest.raises(ConfigError, match="one rollout at a time"):
        RunnerPool(runner_agents.wild, store_url=server.endpoint, isolated=True, max_concurrency=2)


async def test_process_that_ends_with_code_0_in_the_middle_has_crashed(
    server: LightningStoreServer, start: Any
) -> None:
    (rollout_id,) = await enqueue(server, ["exit 0"])
    pool = await start(runner_agents.wild, policy=agl.FailurePolicy(crashed="drop"))
    (rollout,) = await finished(server, [rollout_id])
    assert rollout.status == "failed"
    assert "exit code 0" in rollout.attempt.metadata["error"]["message"]
    await pool.stop()


async def test_wrong_token_is_given_up_at_once(
    server: LightningStoreServer, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGL_STORE_TOKEN", raising=False)
    guarded = LightningStoreServer(server.store, port=0, token="s3cret", launch_mode="asyncio")
    await guarded.start()
    pool = RunnerPool(runner_agents.decorated, store_url=guarded.endpoint, store_token="other", drain_timeout_s=0.1)
    try:
        await pool.start()
        with pytest.raises(agl.AgentLightningError, match="does not know the token"):
            await asyncio.wait_for(pool.wait(), 60)
        assert pool.restarts == 0
    finally:
        await pool.stop()
    ids = await enqueue(server, [1.0])
    friend = RunnerPool(runner_agents.decorated, store_url=guarded.endpoint, store_token="s3cret", max_rollouts=1)
    await friend.start()
    assert not any("s3cret" in word for process in descendants() for word in process.cmdline())
    await asyncio.wait_for(friend.wait(), 60)
    await friend.stop()
    assert [r.status for r in await finished(server, ids)] == ["succeeded"]
    await guarded.stop()
