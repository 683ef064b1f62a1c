"""What runs in a Ray actor: a runner, as in a runner process, but without pipes. Knows no cluster and imports no Ray.

The agent is unpacked in the actor, after its environment is set. An actor whose event loop an agent blocks past its
time limit ends itself; whoever placed it notices.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from agentlightning import __version__
from agentlightning.kit.errors import AgentLightningError, ConfigError
from agentlightning.runner.failure import AttemptTimeoutError, Failure
from agentlightning.runner.recovery import settle
from agentlightning.runner.runner import LitAgentRunner
from agentlightning.runner.spool import folder_of
from agentlightning.runner.transport import unpack
from agentlightning.runner.watchdog import LoopWatchdog
from agentlightning.runner.worker import BLOCKING_HINT, EXIT_STUCK, MARKER, WorkerSpec, describe, die, is_stuck
from agentlightning.schemas import AttemptedRollout

logger = logging.getLogger(__name__)

_SETTLE_TIMEOUT_S = 10.0


class RunnerActor:
    """One runner; its methods are called by `RayPool`.

    Args:
        spec: A pickled `WorkerSpec`.
        env: Variables to set before the agent is imported.
        version: Of the package where the pool is.
    """

    def __init__(self, spec: bytes, env: dict[str, str], version: str) -> None:
        os.environ.update(env | {MARKER: "1"})
        self._spec: WorkerSpec = pickle.loads(spec)
        self._version = version
        self._runner: LitAgentRunner[Any] | None = None

    async def prepare(self) -> dict[str, Any]:
        """Unpack the agent and look whether the store answers.

        Returns:
            `host` and `pid`, or `error` with a description.
        """
        try:
            await self._prepare()
        except Exception as error:  # noqa: BLE001 - whatever an agent's module raises is told to the pool
            return {"error": describe(error)}
        return {"host": socket.gethostname(), "pid": os.getpid()}

    async def _prepare(self) -> None:
        from agentlightning.store import LightningStoreClient

        spec = self._spec
        if self._version != __version__:
            raise ConfigError(
                f"The Ray node {socket.gethostname()} has agentlightning {__version__}, the trainer {self._version}.",
                hint="Install the same version on all nodes.",
            )
        _add_paths(spec.sys_path)
        store = LightningStoreClient(spec.store_url, retry_delays=())
        try:
            await store.query_workers(limit=1)
        finally:
            await store.close()
        evaluator = unpack(spec.evaluator) if spec.evaluator is not None else None
        spool = folder_of(spec.store_url, Path(tempfile.gettempdir()) / "agentlightning")
        options: dict[str, Any] = {**spec.options, "spool": spool}
        runner: LitAgentRunner[Any] = LitAgentRunner(evaluator=evaluator, **options)
        runner.init(unpack(spec.agent), hooks=unpack(spec.hooks) if spec.hooks is not None else ())
        self._runner = runner

    async def run(self) -> dict[str, Any]:
        """Work until `stop` is called or enough rollouts have run.

        Returns:
            The runner's `stats()`, or `error` with a description.
        """
        from agentlightning.store import LightningStoreClient

        runner, spec = self._runner, self._spec
        assert runner is not None
        store = LightningStoreClient(spec.store_url)
        runner.init_worker(spec.index, store, worker_name=spec.name)
        watchdog = LoopWatchdog(lambda blocked_s: is_stuck(runner, blocked_s), self._end_stuck)
        watchdog.start()
        try:
            await runner.iter()
            return runner.stats()
        except AgentLightningError as error:
            return {"error": describe(error)}
        finally:
            watchdog.stop()
            runner.teardown_worker(spec.index)
            runner.teardown()
            await store.close()

    def _end_stuck(self, task: asyncio.Task[object] | None, stack: str) -> None:
        """Called from the watchdog's thread: the loop is blocked, so the culprit is settled from another one."""
        assert self._runner is not None
        culprit = self._runner.attempt_of(task)
        try:
            asyncio.run(self._settle_stuck([r for r in self._runner.running() if r.attempt.attempt_id == culprit]))
        except (AgentLightningError, OSError) as error:  # OSError: TimeoutError too
            logger.warning("An attempt that blocked its runner could not be settled: %s", error)
        logger.error("This runner ends, since an agent blocks it past its time limit. It is here:\n%s", stack)
        die(EXIT_STUCK)

    async def _settle_stuck(self, rollouts: list[AttemptedRollout]) -> None:
        from agentlightning.store import LightningStoreClient

        error = AttemptTimeoutError("The agent blocked its process past its time limit.", hint=BLOCKING_HINT)
        store = LightningStoreClient(self._spec.store_url, retry_delays=())
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                for rollout in rollouts:
                    await settle(store, self._spec.options["policy"], rollout, Failure.of(error))
        finally:
            await store.close()

    async def stop(self) -> None:
        """Let what runs finish for the drain time, hand back the rest, and let `run` return."""
        if self._runner is not None:
            self._runner.stop()
        await asyncio.sleep(0)


def _add_paths(paths: list[str]) -> None:
    """Folders of the driver that exist here, too; after Ray's own, so that they hide nothing."""
    sys.path.extend(path for path in paths if path not in sys.path and Path(path).is_dir())
