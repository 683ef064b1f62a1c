"""Runner processes: real ones, talking to a real store over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import agentlightning as agl
from agentlightning.kit.errors import ConfigError
from agentlightning.runner import RunnerPool
from agentlightning.runner.process import RunnerStartError
from agentlightning.store import LightningStoreServer
from tests.integration import runner_agents
from tests.integration.runner_pools import descendants, enqueue, finished
from tests.unit.agent.echo_server import EchoServer


async def test_two_processes_share_the_work_and_leave_nothing(
    server: LightningStoreServer, start: Any, tmp_path: Path
) -> None:
    pool = await start(runner_agents.decorated, n_runners=2, max_concurrency=2, log_path=tmp_path / "r.log")
    assert len(pool.pids()) == 2
    ids = await enqueue(server, list(range(40)))
    rollouts = await finished(server, ids)
    assert [r.status for r in rollouts] == ["succeeded"] * 40
    spans = await server.store.query_many_spans(ids)
    assert [agl.find_final_reward(spans[i]) for i in ids] == [float(n) for n in range(40)]
    pids = {agl.get_message_value(s) for i in ids for s in spans[i]} - {None}
    assert len(pids) == 2
    assert len({r.attempt.worker_id for r in rollouts}) == 2
    await pool.stop()
    assert pool.failure is None
    assert pool.pids() == []
    assert descendants() == []
    assert set(os.listdir(tmp_path)) == {"r-0.log", "r-1.log"}


async def test_module_global_client_finds_the_gateway_and_every_call_its_rollout(
    server: LightningStoreServer, start: Any
) -> None:
    ids = await enqueue(server, [{"question": f"q{i}", "extra": 1} for i in range(60)])
    with EchoServer() as gateway:
        pool = await start(
            "tests.integration.runner_honest_agent:honest",
            gateway_url=f"{gateway.url}/v1",
            model="m",
            n_runners=2,
            max_concurrency=30,
        )
        rollouts = await finished(server, ids)
        await pool.stop()
    assert [r.status for r in rollouts] == ["succeeded"] * 60
    calls: dict[str, list[str]] = {}
    for path, _, body in gateway.requests:
        calls.setdefault(path, []).append(body["messages"][0]["content"])
    expected = {
        f"/rollout/{r.rollout_id}/attempt/{r.attempt.attempt_id}/v1/chat/completions": [r.input["question"]] * 2
        for r in rollouts
    }
    assert calls == expected


async def test_crash_costs_nobody_but_the_culprit(server: LightningStoreServer, start: Any, tmp_path: Path) -> None:
    flag = tmp_path / "crashed-once"
    ids = await enqueue(server, [{"flag": str(flag)}, "fine", "fine"])
    poison = await enqueue(server, ["always"])
    pool = await start(runner_agents.crashing, max_concurrency=3, store=server.store)
    rollouts = await finished(server, ids + poison)
    assert [r.status for r in rollouts] == ["succeeded"] * 3 + ["failed"]
    assert rollouts[0].attempt.sequence_id >= 2
    first = (await server.store.query_attempts(ids[0]))[0]
    assert first.metadata is not None
    assert first.metadata["error"]["class"] == "crashed"
    assert "exit code 11" in first.metadata["error"]["message"]
    assert rollouts[3].attempt.sequence_id == 3
    assert pool.restarts >= 3
    assert pool.failure is None
    await pool.stop()
    assert descendants() == []


async def test_runner_that_keeps_dying_is_given_up(server: LightningStoreServer, start: Any) -> None:
    ids = await enqueue(server, ["always"] * 3)
    policy = agl.FailurePolicy(crashed="score:-1")
    pool = await start(runner_agents.crashing, max_concurrency=1, max_restarts=1, policy=policy)
    with pytest.raises(agl.AgentLightningError, match="died with exit code 9"):
        await asyncio.wait_for(pool.wait(), 60)
    assert pool.failure is not None
    rollouts = await server.store.query_rollouts(rollout_id_in=ids)
    assert [r.status for r in rollouts] == ["succeeded", "succeeded", "queuing"]
    assert agl.find_final_reward(list(await server.store.query_spans(ids[0]))) == -1.0
    await pool.stop()


@pytest.mark.slow
async def test_those_that_ran_beside_a_task_that_always_crashes_succeed(
    server: LightningStoreServer, start: Any
) -> None:
    ids = await enqueue(server, ["fine", "fine", "always", *["fine"] * 17])
    pool = await start(runner_agents.crashing, max_concurrency=8)
    rollouts = await finished(server, ids)
    assert [r.status for r in rollouts] == ["succeeded"] * 2 + ["failed"] + ["succeeded"] * 17
    assert rollouts[2].attempt.metadata["error"]["class"] == "crashed"
    more = await enqueue(server, ["fine"] * 8)  # by now they may all run at once again
    assert {r.status for r in await finished(server, more)} == {"succeeded"}
    assert pool.failure is None
    await pool.stop()


async def test_agent_that_blocks_the_loop_times_out_and_the_others_go_on(
    server: LightningStoreServer, start: Any
) -> None:
    ids = [
        *await enqueue(server, ["fine"], timeout_seconds=120),
        *await enqueue(server, ["block"], timeout_seconds=4),
        *await enqueue(server, ["fine"], timeout_seconds=120),
    ]
    pool = await start(runner_agents.blocking, max_concurrency=3)
    fine, blocked, other = await finished(server, ids)
    assert (fine.status, blocked.status, other.status) == ("succeeded", "failed", "succeeded")
    assert blocked.attempt.status == "timeout"
    await pool.stop()


BROKEN = {
    "needs_more": (
        "import not_there_at_all\ndef agent(task): ...\n",
        "needs 'not_there_at_all', which is not installed",
    ),
    "raises": ("raise RuntimeError('no key')\n", "RuntimeError: no key"),
    "exits": ("import os; os._exit(5)\n", "exit code 5 before it was ready"),
    "quits": ("import sys; sys.exit('bye')\n", "before it was ready"),
    "empty": ("", "has no 'agent'"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_agent_that_does_not_import_is_a_clear_error(
    server: LightningStoreServer, start: Any, tmp_path: Path, name: str
) -> None:
    source, says = BROKEN[name]
    path = tmp_path / f"broken_{name}.py"
    path.write_text(source)
    with pytest.raises(RunnerStartError, match=says):
        await start(f"{path}:agent", n_runners=2)
    assert descendants() == []


async def test_start_that_takes_too_long_is_an_error(server: LightningStoreServer, start: Any, tmp_path: Path) -> None:
    path = tmp_path / "sleepy_agent.py"
    path.write_text("import time; time.sleep(60)\n")
    started = time.monotonic()
    with pytest.raises(RunnerStartError, match="not ready after 2 s"):
        await start(f"{path}:agent", start_timeout_s=2.0, drain_timeout_s=0.1)
    assert time.monotonic() - started < 50
    assert descendants() == []


async def test_commands_of_a_killed_runner_are_ended_and_their_rollouts_queued_again(
    server: LightningStoreServer, start: Any
) -> None:
    marker = f"marker-{os.getpid()}-orphan"
    (rollout_id,) = await enqueue(server, [None])
    pool = await start(agl.CommandAgent(["sh", "-c", "sleep 300 & wait", marker]), max_concurrency=1)
    for _ in range(1000):
        if (
            len(marked(marker)) == 1
        ):  # two while the shell forks: its child has the same command line until it is `sleep`
            break
        await asyncio.sleep(0.1)
    (orphan,) = marked(marker)
    os.kill(pool.pids()[0], signal.SIGKILL)
    for _ in range(1000):
        if pool.restarts and marked(marker):
            break
        await asyncio.sleep(0.1)
    (attempt, second) = await server.store.query_attempts(rollout_id)
    assert attempt.metadata is not None
    assert attempt.metadata["error"]["class"] == "crashed"
    assert "signal SIGKILL" in attempt.metadata["error"]["message"]
    assert second.worker_id != attempt.worker_id
    assert not _is_alive(orphan.pid)
    await pool.stop()
    assert marked(marker) == []


async def test_stop_hands_back_what_runs(server: LightningStoreServer, start: Any) -> None:
    ids = await enqueue(server, [0.1, 60])
    pool = await start(runner_agents.slow, drain_timeout_s=0.5)
    await finished(server, ids[:1])
    started = time.monotonic()
    await pool.stop()
    assert time.monotonic() - started < 50
    assert [r.status for r in await server.store.query_rollouts(rollout_id_in=ids[1:])] == ["requeuing"]


async def test_stop_while_a_successor_starts_leaves_nothing(
    server: LightningStoreServer, start: Any, tmp_path: Path
) -> None:
    path, flag = tmp_path / "slow_second_time.py", tmp_path / "flag"
    path.write_text(
        f"import pathlib, time\nif pathlib.Path({str(flag)!r}).exists(): time.sleep(60)\ndef agent(task): return 1.0\n"
    )
    pool = await start(f"{path}:agent", drain_timeout_s=0.1)
    flag.touch()
    first = pool.pids()
    os.kill(first[0], signal.SIGKILL)
    for _ in range(1000):
        if pool.pids() and pool.pids() != first:
            break
        await asyncio.sleep(0.02)
    assert pool.pids() != first
    await pool.stop()
    assert (pool.pids(), descendants()) == ([], [])
    assert pool.failure is None


async def test_max_rollouts_ends_the_pool(server: LightningStoreServer, start: Any) -> None:
    ids = await enqueue(server, [1, 2, 3])
    pool = await start(runner_agents.decorated, max_rollouts=2, max_concurrency=1)
    await asyncio.wait_for(pool.wait(), 60)
    await pool.stop()
    statuses = [r.status for r in await server.store.query_rollouts(rollout_id_in=ids)]
    assert statuses == ["succeeded", "succeeded", "queuing"]


class Note(agl.Hook):
    async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Any) -> None:
        agl.emit_annotation({"never": 1}, propagate=False)

    async def on_trace_start(self, *, agent: Any, runner: Any, tracer: Any, rollout: Any) -> None:
        agl.emit_annotation({"noted": rollout.input})


async def test_evaluator_hooks_and_closures_travel(server: LightningStoreServer, start: Any) -> None:
    bonus = 0.5

    def exclaim(task: str) -> str:
        return task + "!"

    def score(task: str, output: str) -> float:
        return bonus + (output == "a!")

    ids = await enqueue(server, ["a"])
    pool = await start(
        exclaim,
        evaluator=score,
        hooks=[Note()],
        env={"EXTRA": "1"},
    )
    await finished(server, ids)
    await pool.stop()
    spans = list(await server.store.query_spans(ids[0]))
    assert agl.find_final_reward(spans) == 1.5
    assert spans[0].attributes["noted"] == "a"


async def test_bad_use_is_refused(server: LightningStoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="n_runners"):
        RunnerPool(runner_agents.slow, store_url=server.endpoint, n_runners=0)
    monkeypatch.setenv("AGL_RUNNER_WORKER", "1")
    with pytest.raises(ConfigError, match="__main__"):
        await RunnerPool(runner_agents.slow, store_url=server.endpoint).start()


PARENT = """
import asyncio, signal, sys
import agentlightning as agl
from agentlightning.runner import RunnerPool
from agentlightning.store import LightningStoreServer

async def main():
    store = agl.InMemoryLightningStore()
    server = LightningStoreServer(store, port=0, launch_mode="asyncio")
    await server.start()
    await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=None) for _ in range(4)])
    agent = agl.CommandAgent(["sh", "-c", "trap '' TERM; sleep 300 & wait", sys.argv[1]])
    pool = RunnerPool(agent, store_url=server.endpoint, n_runners=2, drain_timeout_s=0.5)
    await pool.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    print("ready", flush=True)
    await stop.wait()
    await pool.stop()
    print("left:", [r.status for r in await store.query_rollouts()], flush=True)
    await server.stop()
    await store.close()

if __name__ == "__main__":
    asyncio.run(main())
"""


def marked(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if marker in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


async def gone(marker: str, pids: list[int]) -> bool:
    for _ in range(1000):
        if not marked(marker) and not any(_is_alive(pid) for pid in pids):
            return True
        await asyncio.sleep(0.1)
    return False


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_nothing_runs_on_when_the_parent_ends(tmp_path: Path, number: signal.Signals) -> None:
    script, marker = tmp_path / "parent.py", f"marker-{os.getpid()}-{number.name}"
    script.write_text(textwrap.dedent(PARENT))
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else is to run meanwhile
        [sys.executable, str(script), marker], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == "ready"
        for _ in range(1000):
            if len(marked(marker)) >= 5:  # the parent itself and four commands
                break
            await asyncio.sleep(0.1)
        children = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
        assert len(children) >= 6
        os.killpg(parent.pid, number)  # as Ctrl-C does, the whole foreground group
        rest = await asyncio.to_thread(parent.stdout.read)
    if number is signal.SIGINT:
        assert parent.returncode == 0
        assert rest.strip() == "left: ['requeuing', 'requeuing', 'requeuing', 'requeuing']"
    assert await gone(marker, children)
