"""Runners on a Ray cluster of this machine: a head and two nodes, real processes each."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import agentlightning as agl
from agentlightning.kit.errors import ConfigError, MissingExtraError
from agentlightning.runner import RayPool, ray_cluster
from agentlightning.runner.place import RunnerStartError
from agentlightning.schemas import AttemptedRollout, EnqueueRolloutRequest, RolloutConfig
from agentlightning.store import LightningStoreServer, SqlLightningStore
from tests.integration import runner_agents

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOM: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {**ROOM, "num_cpus": 0, "include_dashboard": False, "include_log_monitor": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**ROOM)
    cluster.add_node(**ROOM)
    yield cluster
    cluster.shutdown()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LightningStoreServer]:
    store = SqlLightningStore(tmp_path / "store.db")
    server = LightningStoreServer(store, port=0, launch_mode="asyncio", token="s3cret")
    await server.start()
    yield server
    await server.stop()
    await store.close()


@pytest.fixture
async def start(server: LightningStoreServer, cluster: Any) -> AsyncIterator[Any]:
    pools: list[RayPool] = []

    async def start(agent: Any, **options: Any) -> RayPool:
        options = {"address": cluster.address, "store_url": server.endpoint, "store_token": "s3cret", **options}
        pool = RayPool(agent, drain_timeout_s=2.0, **options)
        pools.append(pool)
        await pool.start()
        return pool

    yield start
    for pool in pools:
        await pool.stop()


async def enqueue(server: LightningStoreServer, tasks: list[Any], **config: Any) -> list[str]:
    requests = [EnqueueRolloutRequest(input={"n": n}, config=RolloutConfig(**config)) for n in tasks]
    return [r.rollout_id for r in await server.store.enqueue_many_rollouts(requests)]


async def latest(server: LightningStoreServer, ids: list[str] | None = None) -> list[AttemptedRollout]:
    """Rollouts with their latest attempts."""
    found = await server.store.query_rollouts(rollout_id_in=ids)
    return [rollout for rollout in found if isinstance(rollout, AttemptedRollout)]


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def are_gone(pids: list[int]) -> bool:
    for _ in range(300):
        if not any(is_alive(pid) for pid in pids):
            return True
        await asyncio.sleep(0.1)
    return False


async def test_rollouts_run_on_both_nodes_and_survive_the_death_of_one(
    server: LightningStoreServer, start: Any, cluster: Any
) -> None:
    ids = await enqueue(server, list(range(200)))
    pool = await start(runner_agents.on_ray, n_runners=2, max_concurrency=4)
    first_pids = [pid for _, pid in pool.hosts()]
    while (await server.store.query_rollouts(status_in=["succeeded"], limit=1)).total < 60:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    doomed = cluster.list_all_nodes()[-1]
    cluster.remove_node(doomed, allow_graceful=False)
    cluster.add_node(**ROOM)
    ended = await server.store.wait_for_rollouts(rollout_ids=ids, timeout=300)
    assert len(ended) == 200
    rollouts = await latest(server, ids)
    assert Counter(r.status for r in rollouts) == {"succeeded": 200}
    spans = await server.store.query_many_spans(ids)
    nodes: set[str] = set()
    for rollout in rollouts:
        own = spans[rollout.rollout_id]
        assert agl.find_final_reward(own) == float(rollout.input["n"])
        assert [s.attributes["step"] for s in own if "step" in s.attributes] == [0, 1, 2]
        nodes |= {agl.get_message_value(s) for s in own} - {None}
    assert len(nodes) >= 2
    assert pool.restarts == 1
    again = Counter(r.attempt.sequence_id for r in rollouts)
    assert set(again) == {1, 2}  # what the dead node had is run again, and nothing else
    assert again[2] <= 4 + 4 * 4  # what ran there, and what had ended there and was not reported yet
    firsts = [(await server.store.query_attempts(r.rollout_id))[0] for r in rollouts]
    lost = [first for first in firsts if first.status != "succeeded"]
    assert len(lost) == again[2]
    assert len({first.worker_id for first in lost}) == 1
    assert {first.metadata["error"]["class"] for first in lost if first.metadata} == {"crashed"}
    assert (await server.store.statistics()).get("total_attempts") == again[1] + 2 * again[2]
    assert pool.failure is None
    pids = first_pids + [pid for _, pid in pool.hosts()]
    await pool.stop()
    assert await are_gone(pids)


async def test_actor_that_dies_or_is_blocked_is_replaced(server: LightningStoreServer, start: Any) -> None:
    (blocked,) = await enqueue(server, ["block"], timeout_seconds=3.0)
    (dead,) = await enqueue(server, ["die"])
    fine = await enqueue(server, list(range(10)))
    pool = await start(runner_agents.on_ray, n_runners=1, max_concurrency=1, policy=agl.FailurePolicy(crashed="drop"))
    assert len(await server.store.wait_for_rollouts(rollout_ids=[blocked, dead, *fine], timeout=300)) == 12
    found = {r.rollout_id: r for r in await latest(server)}
    assert (found[blocked].status, found[blocked].attempt.status) == ("failed", "timeout")
    assert (found[dead].attempt.metadata or {})["error"]["class"] == "crashed"
    assert {found[i].status for i in fine} == {"succeeded"}
    assert pool.restarts == 2


async def test_stop_hands_back_and_leaves_the_cluster(server: LightningStoreServer, start: Any) -> None:
    import ray

    async def sleepy(task: Any) -> float:
        await asyncio.sleep(600)
        return 1.0

    def echo(task: Any, output: float) -> float:
        return output

    ids = await enqueue(server, [0, 1])
    pool = await start(sleepy, n_runners=1, evaluator=echo)
    while (await server.store.query_rollouts(status_in=["preparing", "running"])).total < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    pids = [pid for _, pid in pool.hosts()]
    await pool.stop()
    assert not ray.is_initialized()
    assert await are_gone(pids)
    assert {r.status for r in await server.store.query_rollouts(rollout_id_in=ids)} == {"requeuing"}


async def test_max_rollouts_ends_the_pool(server: LightningStoreServer, start: Any) -> None:
    ids = await enqueue(server, [1, 2, 3])
    pool = await start(runner_agents.on_ray, max_rollouts=2, max_concurrency=1)
    await asyncio.wait_for(pool.wait(), 60)
    assert [r.status for r in await server.store.query_rollouts(rollout_id_in=ids)] == ["succeeded"] * 2 + ["queuing"]


async def test_agent_beside_modules_of_its_own_travels_by_value(
    server: LightningStoreServer, start: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "ray_helper_of_test.py").write_text("def double(n):\n    return 2.0 * n\n")
    agent = folder / "ray_agent_of_test.py"
    agent.write_text("import ray_helper_of_test\n\ndef solve(task):\n    return ray_helper_of_test.double(task['n'])\n")
    for name in ("ray_helper_of_test", "ray_agent_of_test"):  # by Python's own loader: pytest's cannot be pickled
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    shutil.rmtree(folder)  # as on a machine that does not have it
    ids = await enqueue(server, [21])
    pool = await start(sys.modules["ray_agent_of_test"].solve, max_rollouts=1)
    await asyncio.wait_for(pool.wait(), 60)
    assert agl.find_final_reward(list(await server.store.query_spans(ids[0]))) == 42.0


async def test_what_cannot_start_is_said(server: LightningStoreServer, start: Any, tmp_path: Path) -> None:
    with pytest.raises(RunnerStartError, match="does not know the token"):
        await start(runner_agents.on_ray, store_token="other")
    with pytest.raises(RunnerStartError, match=r"does not answer.*AGL_HOST"):
        await start(runner_agents.on_ray, store_url="http://127.0.0.1:9")
    with pytest.raises(RunnerStartError, match="64 processors each"):
        await start(runner_agents.on_ray, num_cpus=64, start_timeout_s=3)


async def test_trainer_on_ray(cluster: Any, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    trainer = agl.Trainer(
        algorithm=agl.Baseline(),
        runner={"type": "ray", "address": cluster.address, "num_cpus": 0.5},
        n_runners=2,
        settings=agl.Settings(home=tmp_path),
        on_event=events.append,
    )
    await trainer.fit_async(runner_agents.on_ray, [{"n": 0.25}, {"n": 0.75}])
    (evaluation,) = [event for event in events if event["type"] == "eval"]
    assert evaluation["n"] == 2
    assert evaluation["accuracy"] == 0.5


DRIVER = """
import asyncio, sys
import agentlightning as agl
from agentlightning.runner import RayPool
from agentlightning.store import LightningStoreServer

async def agent(task):
    await asyncio.sleep(600)

async def main():
    store = agl.InMemoryLightningStore()
    server = LightningStoreServer(store, port=0, launch_mode="asyncio")
    await server.start()
    await store.enqueue_rollout("x")
    pool = RayPool(agent, store_url=server.endpoint, address=sys.argv[1])
    await pool.start()
    print(*[pid for _, pid in pool.hosts()], flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_actors_end_with_their_driver(cluster: Any, tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else is to run meanwhile
        [sys.executable, str(script), cluster.address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        assert driver.stdout is not None
        pids = [int(word) for word in driver.stdout.readline().split()]
        assert pids
        driver.send_signal(number)
        await asyncio.to_thread(driver.wait, 60)
    assert await are_gone(pids)


async def test_address_that_does_not_answer_is_a_clear_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_JOIN_TIMEOUT_S", 3.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address, says in (
            ("127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1"),
            ("nonsense", "no address of a Ray cluster"),
            ("host:port", "no address of a Ray cluster"),
        ):
            before = time.monotonic()
            with pytest.raises(ConfigError, match=says):
                await RayPool(runner_agents.on_ray, store_url="http://127.0.0.1:9", address=address).start()
            assert time.monotonic() - before < 60
        # Something that listens and is no Ray: tried in a process of its own, since Ray keeps trying in its thread.
        code = f"""
import asyncio
from agentlightning.runner import RayPool, ray_cluster
ray_cluster._JOIN_TIMEOUT_S = 3.0
try:
    asyncio.run(RayPool(print, store_url="http://127.0.0.1:9", address="127.0.0.1:{silent.getsockname()[1]}").start())
except Exception as error:
    print(type(error).__name__, error)
"""
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
        )
    assert "ConfigError No Ray cluster answers at 127.0.0.1" in done.stdout


async def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"agentlightning\[ray\]"):
        RayPool(runner_agents.on_ray, store_url="http://127.0.0.1:9")


def test_bad_numbers_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{"n_runners": 0}, {"num_cpus": -1}]
    for options in wrong:
        with pytest.raises(ConfigError):
            RayPool(runner_agents.on_ray, store_url="http://127.0.0.1:9", **options)
