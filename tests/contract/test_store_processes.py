"""Several processes on one database, and processes that are killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from agentlightning.schemas import EnqueueRolloutRequest
from agentlightning.store import SqlLightningStore

ROOT = Path(__file__).parents[2]


def spawn(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.contract.worker_processes", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_two_claiming_processes_never_share_a_rollout(location: str) -> None:
    store = SqlLightningStore(location)
    processes = [spawn("claim", location, f"w{i}") for i in range(2)]
    queued = []
    for batch in range(10):
        requests = [EnqueueRolloutRequest(input=batch * 20 + i) for i in range(20)]
        queued += [r.rollout_id for r in await store.enqueue_many_rollouts(requests)]
        await asyncio.sleep(0.05)
    ended = await store.wait_for_rollouts(rollout_ids=queued, timeout=30)  # woken by other processes' commits
    outputs = [await asyncio.to_thread(p.communicate, timeout=30) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    claims = Counter(line for out, _ in outputs for line in out.split())
    assert len(queued) == 200
    assert claims == Counter(queued)
    assert {r.status for r in ended} == {"succeeded"}
    statistics = await store.statistics()
    assert (statistics["total_attempts"], statistics["total_spans"]) == (200, 400)
    await store.close()


async def test_waiting_is_woken_by_another_process_soon(location: str) -> None:
    mine, theirs = SqlLightningStore(location), SqlLightningStore(location)
    waiting = asyncio.create_task(mine.dequeue_many_rollouts(timeout=100))
    await asyncio.sleep(0.2)
    before = time.monotonic()
    await theirs.enqueue_rollout("x")
    assert [r.input for r in await waiting] == ["x"]
    assert time.monotonic() - before < 50  # half of the time limit
    await mine.close()
    await theirs.close()


@pytest.mark.parametrize("synchronous", ["normal", "full"])
@pytest.mark.slow
async def test_killed_writer_loses_nothing_it_acknowledged(location: str, synchronous: str) -> None:
    acknowledged: list[str] = []
    for round_ in range(2):
        process = spawn("write", location, synchronous)
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(40 + 17 * round_)]
        process.kill()  # SIGKILL, in the middle of whatever it was doing
        # Not communicate(): it reads past the half line that readline() may have left in its buffer.
        lines += process.stdout.readlines()
        assert not process.stderr.read()
        process.wait(timeout=10)
        process.stdout.close()
        process.stderr.close()
        acknowledged += [line.split()[0] for line in lines if line.endswith("\n")]
    store = SqlLightningStore(location)
    found = await store.query_rollouts(rollout_id_in=acknowledged)
    assert len(acknowledged) >= 97
    assert {r.rollout_id for r in found} == set(acknowledged)
    assert {r.status for r in found} == {"succeeded"}
    spans = await store.query_many_spans(acknowledged)
    assert {len(s) for s in spans.values()} == {3}
    await store.close()
