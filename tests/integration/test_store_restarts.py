"""The store server is killed again and again while runners report to it: nothing is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

import agentlightning as agl
from agentlightning.runner import RunnerPool
from agentlightning.schemas import EnqueueRolloutRequest
from agentlightning.store import LightningStoreClient, SqlLightningStore
from tests.integration import runner_agents, store_process
from tests.ports import lasting_port

N = 600


class StoreProcess:
    """A real server process on one file and port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, store_process.__file__, str(self.path), str(self.port), stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert await asyncio.wait_for(self.process.stdout.readline(), 60) == b"ready\n"

    async def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


async def check(path: Path, ids: list[str], *, attempts: int | None = 1) -> Counter[int]:
    """Read the file itself: every rollout has ended once, with all its spans, each there once."""
    store = SqlLightningStore(path)
    rollouts = await store.query_rollouts()
    assert {r.rollout_id for r in rollouts} == set(ids)
    assert Counter(r.status for r in rollouts) == {"succeeded": len(ids)}
    spans = await store.query_many_spans(ids)
    for rollout in rollouts:
        own = spans[rollout.rollout_id]
        steps = [s.attributes["step"] for s in own if "step" in s.attributes]
        assert steps == [0, 1, 2], rollout.rollout_id
        assert agl.find_final_reward(own) == rollout.input["n"]
        assert len(own) == 4
        assert len({s.span_id for s in own}) == 4
    counts = Counter(r.attempt.sequence_id for r in rollouts)
    if attempts is not None:
        assert set(counts) == {attempts}
    assert (await store.statistics())["total_rollouts"] == len(ids)
    await store.close()
    return counts


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("runners_die", [False, True])
async def test_store_killed_under_load(tmp_path: Path, runners_die: bool) -> None:
    random.seed(7)
    server = StoreProcess(tmp_path / "store.db")
    await server.start()
    client = LightningStoreClient(server.url)
    requests = [EnqueueRolloutRequest(input={"n": n}) for n in range(N)]
    ids = [r.rollout_id for r in await client.enqueue_many_rollouts(requests)]
    pool = RunnerPool(
        runner_agents.spans_and_time,
        store_url=server.url,
        n_runners=2,
        max_concurrency=8,
        spool=tmp_path / "spool",
        store_patience_s=120,
        heartbeat_interval=1.0,
        log_path=tmp_path / "runner.log",
        max_restarts=20,
    )
    try:
        await pool.start()
        for round_ in range(6):
            await asyncio.sleep(random.uniform(0.3, 1.2))
            await server.kill()
            await asyncio.sleep(random.choice([0.1, 1.0, 2.5]))
            if runners_die and round_ % 2:
                os.kill(random.choice(pool.pids()), signal.SIGKILL)
                await asyncio.sleep(0.5)
            await server.start()
        await asyncio.wait_for(client.wait_for_rollouts(rollout_ids=ids, timeout=200), 220)
        await pool.stop()
    finally:
        await pool.stop()
        await client.close()
        await server.kill()
    counts = await check(tmp_path / "store.db", ids, attempts=None if runners_die else 1)
    print("attempts:", dict(counts), "restarts:", pool.restarts)
    assert list((tmp_path / "spool").glob("*")) == [] if (tmp_path / "spool").exists() else True
