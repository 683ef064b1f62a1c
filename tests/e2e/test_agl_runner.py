"""`agl runner` as on another machine: a process that knows an address and a token."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.schemas import AttemptedRollout, EnqueueRolloutRequest, Rollout
from agentlightning.store import LightningStoreClient, SqlLightningStore
from tests.e2e.conftest import Run, command, environment
from tests.integration.test_store_restarts import StoreProcess

TOKEN = "s3cret-of-this-test"
AGENT = """
import asyncio

import agentlightning as agl

async def solve(task, prompt: agl.PromptTemplate):
    agl.emit_message(prompt.format(n=task["n"]))
    await asyncio.sleep(task["seconds"])
    return float(task["n"])
"""


def how_it_ended(rollout: Rollout) -> tuple[str, int]:
    """Status, and how many attempts it took."""
    assert isinstance(rollout, AttemptedRollout)
    return rollout.status, rollout.attempt.sequence_id


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StoreProcess]:
    monkeypatch.setenv("AGL_STORE_TOKEN", TOKEN)
    server = StoreProcess(tmp_path / "store.db")
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
def work(tmp_path: Path, home: Path, server: StoreProcess) -> Any:
    """Start `agl runner`; whatever a test leaves running is killed."""
    (tmp_path / "agent.py").write_text(
        "import agentlightning as agl\n" + AGENT.replace("async def", "@agl.rollout\nasync def")
    )
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command("runner", "--store", server.url, "--agent", "agent.py:solve", *arguments),
            cwd=tmp_path,
            env={**environment(home), "AGL_STORE_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("working for"):
                break
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def enqueue(client: LightningStoreClient, count: int, seconds: float) -> list[str]:
    await client.add_resources({"prompt": agl.PromptTemplate(template="number {n}")})
    tasks = [EnqueueRolloutRequest(input={"n": n, "seconds": seconds}) for n in range(count)]
    return [r.rollout_id for r in await client.enqueue_many_rollouts(tasks)]


def spools(home: Path) -> list[Path]:
    return list(home.glob("runner-spool/*/*.spool"))


async def until(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        value = await value if asyncio.iscoroutine(value) else value
        if value or time.monotonic() > deadline:
            return value
        await asyncio.sleep(0.1)


async def test_rollouts_run_elsewhere_and_ctrl_c_hands_back(server: StoreProcess, work: Any) -> None:
    client = LightningStoreClient(server.url)
    ids = await enqueue(client, 4, 0.05)
    process = await asyncio.to_thread(work, "--concurrency", "2", "--drain", "0.5")
    assert len(await client.wait_for_rollouts(rollout_ids=ids, timeout=60)) == 4
    spans = await client.query_many_spans(ids)
    assert [agl.find_final_reward(spans[i]) for i in ids] == [0.0, 1.0, 2.0, 3.0]
    assert {agl.get_message_value(s) for s in spans[ids[3]]} - {None} == {"number 3"}
    long = await enqueue(client, 2, 600)

    async def both_claimed() -> bool:
        return len(await client.query_rollouts(rollout_id_in=long, status_in=["running"])) == 2

    assert await until(both_claimed)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    output, _ = await asyncio.to_thread(process.communicate, None, 60)
    assert process.returncode == 130
    assert "handed back" in output
    assert {r.status for r in await client.query_rollouts(rollout_id_in=long)} == {"requeuing"}
    await client.close()


@pytest.mark.slow
async def test_killed_while_the_store_was_away_nothing_is_lost(
    server: StoreProcess, work: Any, tmp_path: Path, home: Path
) -> None:
    client = LightningStoreClient(server.url)
    ids = await enqueue(client, 8, 2.0)
    process = await asyncio.to_thread(work, "--concurrency", "8")

    async def all_claimed() -> bool:
        return len(await client.query_rollouts(status_in=["running"])) == 8

    assert await until(all_claimed)
    await server.kill()
    assert await until(lambda: spools(home))
    await asyncio.sleep(5)  # all have ended by now
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    await server.start()
    statuses = Counter(r.status for r in await client.query_rollouts())
    assert statuses["succeeded"] == 0
    again = await asyncio.to_thread(work)
    assert len(await client.wait_for_rollouts(rollout_ids=ids, timeout=60)) == 8
    again.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(again.wait, 60) == 0
    await client.close()
    await server.kill()
    store = SqlLightningStore(tmp_path / "store.db")
    rollouts = await store.query_rollouts()
    assert Counter(how_it_ended(r) for r in rollouts) == {("succeeded", 1): 8}
    spans = await store.query_many_spans(ids)
    assert [agl.find_final_reward(spans[i]) for i in ids] == [float(n) for n in range(8)]
    assert {len(spans[i]) for i in ids} == {2}
    await store.close()
    assert spools(home) == []


@pytest.mark.slow
async def test_what_a_killed_runner_had_goes_to_another(server: StoreProcess, work: Any) -> None:
    client = LightningStoreClient(server.url)
    ids = await enqueue(client, 6, 5.0)
    first = await asyncio.to_thread(work, "--concurrency", "3", "--lease", "3")

    async def three_run() -> bool:
        return len(await client.query_rollouts(status_in=["running"])) == 3

    assert await until(three_run)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    await asyncio.to_thread(work, "--concurrency", "6", "--lease", "3")
    assert len(await client.wait_for_rollouts(rollout_ids=ids, timeout=60)) == 6
    rollouts = await client.query_rollouts(rollout_id_in=ids)
    assert Counter(how_it_ended(r) for r in rollouts) == {("succeeded", 1): 3, ("succeeded", 2): 3}
    await client.close()


@pytest.mark.slow
async def test_wrong_token_and_agents_that_do_not_import_are_said(
    server: StoreProcess, agl: Run, tmp_path: Path
) -> None:
    (tmp_path / "agent.py").write_text("def solve(task):\n    return 1.0\n")
    there = ("runner", "--store", server.url)
    refused = await asyncio.to_thread(agl, *there, "--agent", "agent.py:solve")
    assert refused.returncode == 1
    assert "asks for a token" in refused.stderr
    assert "AGL_STORE_TOKEN" in refused.stderr
    missing = await asyncio.to_thread(agl, *there, "--agent", "agent.py:nothing")
    assert missing.returncode == 1
    assert "nothing" in missing.stderr


def test_bad_use_is_said(agl: Run) -> None:
    assert "no address" in agl("runner", "--store", "10.0.0.5:8005", "--agent", "a.py:b").stderr
    assert "either --agent or --command" in agl("runner", "--store", "http://127.0.0.1:9").stderr
    away = agl("runner", "--store", "http://127.0.0.1:9", "--agent", "a.py:b", "--patience", "0.1")
    assert away.returncode == 1
    assert "Nothing answers at http://127.0.0.1:9" in away.stderr
    assert sys.executable not in away.stderr
