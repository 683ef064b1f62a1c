"""Runner processes: started, watched, restarted when they die, and taken down without a trace.

Knows nothing of the algorithm. The agent travels by import path or by value; environment variables are set before it is
imported, so clients that it makes at import time talk to the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import agentlightning
from agentlightning.agent.hook import Hook
from agentlightning.kit.errors import AgentLightningError, ConfigError
from agentlightning.kit.ids import new_id
from agentlightning.runner import groups
from agentlightning.runner.failure import AttemptTimeoutError, Failure, RunnerCrashedError
from agentlightning.runner.policy import FailurePolicy
from agentlightning.runner.recovery import attempts_of, settle
from agentlightning.runner.transport import Parcel, pack
from agentlightning.runner.worker import EXIT_FAILED, EXIT_STUCK, MARKER, STATUS_FD, WorkerSpec
from agentlightning.store.base import LightningStore

logger = logging.getLogger(__name__)

_TAIL_BYTES = 8_192
_RESTART_WINDOW_S = 300.0
_SETTLE_TIMEOUT_S = 30.0
_PACKAGE_ROOT = str(Path(agentlightning.__file__).resolve().parent.parent)


class RunnerStartError(AgentLightningError):
    """A runner process could not begin its work, most often because the agent's module does not import."""

    code = "RUNNER_NOT_STARTED"


class RunnerPool:
    """Runs an agent in processes of its own.

    Args:
        agent: Anything `as_agent` understands.
        store_url: Address of the store.
        n_runners: Processes.
        max_concurrency: Rollouts at once in each.
        evaluator: See `LitAgentRunner`.
        policy: See `FailurePolicy`.
        gateway_url: Base URL of the gateway; agents get it as `OPENAI_BASE_URL` and the like.
        model: Name of the model; agents get it as `OPENAI_MODEL`.
        env: More environment variables; they have the last word.
        log_path: File for the output of the runner; with several, each gets one with its number.
        max_rollouts: End after so many, each.
        hooks: Callbacks around rollouts.
        store: The store itself where it is at hand, to settle what a dead process leaves; else reached by its address.
        max_restarts: How often one runner may die within five minutes before it is given up.
        start_timeout_s: How long importing the agent may take.
        drain_timeout_s: How long running rollouts may finish when the pool is stopped.
        heartbeat_interval: Seconds between signs of life.
    """

    def __init__(
        self,
        agent: Any,
        *,
        store_url: str,
        n_runners: int = 1,
        max_concurrency: int = 64,
        evaluator: Callable[..., Any] | str | None = None,
        policy: FailurePolicy | None = None,
        gateway_url: str | None = None,
        model: str | None = None,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        max_rollouts: int | None = None,
        hooks: Sequence[Hook] = (),
        store: LightningStore | None = None,
        max_restarts: int = 5,
        start_timeout_s: float = 120.0,
        drain_timeout_s: float = 5.0,
        heartbeat_interval: float = 10.0,
    ) -> None:
        if n_runners < 1:
            raise ConfigError(f"n_runners must be at least 1, it is {n_runners}.")
        self.store_url = store_url
        self.policy = policy or FailurePolicy()
        self.max_restarts = max_restarts
        self.start_timeout_s = start_timeout_s
        self.drain_timeout_s = drain_timeout_s
        self._n_runners = n_runners
        self._log_path = log_path
        self._agent = agent
        self._evaluator = evaluator
        self._hooks = list(hooks)
        self._options: dict[str, Any] = {
            "max_concurrency": max_concurrency,
            "policy": self.policy,
            "gateway_url": gateway_url,
            "max_rollouts": max_rollouts,
            "drain_timeout_s": drain_timeout_s,
            "heartbeat_interval": heartbeat_interval,
        }
        self._env = {**_environment(store_url, gateway_url, model), **(env or {})}
        self._given_store = store
        self._store: LightningStore | None = store
        self._workers: list[_Worker] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.stopping = False
        self.failure: AgentLightningError | None = None
        """Set when no runner is left to do the work."""
        self.restarts = 0
        """Processes that died and were replaced."""

    async def start(self) -> None:
        """Start the processes; returns when all are ready.

        Raises:
            RunnerStartError: One could not begin; the message has the cause, the others are stopped.
            AgentLoadError: The agent cannot be sent to another process.
            ConfigError: Called from inside a runner process.
        """
        if os.environ.get(MARKER):
            raise ConfigError(
                "Training was started again from inside a runner process, while it imported the script.",
                hint='Start it under `if __name__ == "__main__":`.',
            )
        parcels = (pack(self._agent), _packed(self._evaluator), _packed(self._hooks))
        self._scratch = tempfile.TemporaryDirectory(prefix="agl-runners-")
        self._workers = [_Worker(self, index, *parcels) for index in range(self._n_runners)]
        try:
            async with asyncio.timeout(self.start_timeout_s):
                await asyncio.gather(*(worker.launch() for worker in self._workers))
        except TimeoutError:
            await self.stop()
            raise RunnerStartError(
                f"The runners were not ready after {self.start_timeout_s:.0f} s.",
                hint="Look at what the agent's module does when it is imported.",
            ) from None
        except BaseException:
            await self.stop()
            raise
        for worker in self._workers:
            worker.watch()

    async def stop(self) -> None:
        """Let running rollouts finish for `drain_timeout_s`, then end the processes and all they have started."""
        self.stopping = True
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        if self._store is not None and self._given_store is None:
            await self._store.close()
            self._store = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    async def wait(self) -> None:
        """Wait until all processes have ended by themselves, as they do after `max_rollouts`.

        Raises:
            AgentLightningError: They were given up.
        """
        await asyncio.gather(*(worker.ended() for worker in self._workers))
        if self.failure is not None:
            raise self.failure

    def pids(self) -> list[int]:
        """Process ids of the runners that are alive."""
        return [worker.process.pid for worker in self._workers if worker.process and worker.process.returncode is None]

    def store(self) -> LightningStore:
        """The store, for settling."""
        if self._store is None:
            from agentlightning.store import LightningStoreClient

            self._store = LightningStoreClient(self.store_url)
        return self._store

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Command line and environment of a runner process."""
        search = [_PACKAGE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self._env, MARKER: "1"}
        environment["PYTHONPATH"] = os.pathsep.join(search)
        return [sys.executable, "-m", "agentlightning.runner.worker"], environment

    def options(self) -> dict[str, Any]:
        """Arguments of `LitAgentRunner` over there."""
        return self._options

    def log_path(self, index: int) -> Path:
        """Where the output of a runner goes."""
        if self._log_path is None:
            assert self._scratch is not None
            return Path(self._scratch.name) / f"runner-{index}.log"
        if self._n_runners == 1:
            return self._log_path
        return self._log_path.with_name(f"{self._log_path.stem}-{index}{self._log_path.suffix}")

    def gave_up(self, error: AgentLightningError) -> None:
        """A runner is not restarted any more."""
        logger.error("%s", error)
        if all(worker.is_over for worker in self._workers):
            self.failure = error


def _environment(store_url: str, gateway_url: str | None, model: str | None) -> dict[str, str]:
    variables = {"AGL_STORE_URL": store_url}
    if gateway_url:
        root = gateway_url.rstrip("/").removesuffix("/v1")
        variables |= {
            "AGL_GATEWAY_URL": gateway_url,
            "OPENAI_BASE_URL": f"{root}/v1",
            "OPENAI_API_BASE": f"{root}/v1",
            "ANTHROPIC_BASE_URL": root,
            "OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY") or "unused",
            "ANTHROPIC_API_KEY": os.environ.get("ANTHROPIC_API_KEY") or "unused",
        }
    if model:
        variables["OPENAI_MODEL"] = model
    return variables


def _packed(obj: Any) -> Parcel | None:
    return pack(obj) if obj else None


class _Worker:
    """One place in the pool: a process, and its successors."""

    def __init__(
        self, pool: RunnerPool, index: int, agent: Parcel, evaluator: Parcel | None, hooks: Parcel | None
    ) -> None:
        self._pool = pool
        self._index = index
        self._parcels = (agent, evaluator, hooks)
        self.name = ""
        self.process: asyncio.subprocess.Process | None = None
        self.is_over = False
        self._ready: asyncio.Future[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._groups: set[int] = set()
        self._deaths: deque[float] = deque()
        self._stuck: dict[str, Any] = {}
        self._failed: dict[str, Any] = {}
        self._log_offset = 0

    async def launch(self) -> None:
        """Start a process and wait until it is ready.

        Raises:
            RunnerStartError: It could not begin.
        """
        pool = self._pool
        agent, evaluator, hooks = self._parcels
        self.name = new_id(f"runner-{self._index}")
        self._stuck, self._failed = {}, {}
        self._ready = asyncio.get_running_loop().create_future()
        spec = WorkerSpec(
            index=self._index,
            name=self.name,
            store_url=pool.store_url,
            sys_path=[str(Path.cwd()) if entry == "" else entry for entry in sys.path],
            agent=agent,
            evaluator=evaluator,
            hooks=hooks,
            options=pool.options(),
        )
        await self._spawn(spec)
        await self._ready

    async def _spawn(self, spec: WorkerSpec) -> None:
        words, environment = self._pool.command()
        reading, writing = os.pipe()
        log_path = self._pool.log_path(self._index)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log_path.open("ab") as log:
                self._log_offset = log.tell()
                self.process = await asyncio.create_subprocess_exec(
                    *words,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={**environment, STATUS_FD: str(writing)},
                    pass_fds=[writing],
                    start_new_session=True,
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._listener = asyncio.create_task(self._listen(reading))
        assert self.process.stdin is not None
        self.process.stdin.write(spec.send())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: the listener knows more
            await self.process.stdin.drain()

    async def _listen(self, descriptor: int) -> None:
        """Take in what the process says, until it is gone."""
        reader = asyncio.StreamReader(limit=1 << 20)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        try:
            while line := await reader.readline():
                self._hear(json.loads(line))
        finally:
            transport.close()
        assert self.process is not None
        code = await self.process.wait()
        assert self._ready is not None
        if not self._ready.done():
            self._ready.set_exception(self._start_error(code))

    def _hear(self, message: dict[str, Any]) -> None:
        event = message["event"]
        assert self._ready is not None
        if event == "ready" and not self._ready.done():
            self._ready.set_result(None)
        elif event == "group":
            (self._groups.add if message["alive"] else self._groups.discard)(message["id"])
        elif event == "stuck":
            self._stuck = message
        elif event == "failed":
            self._failed = message

    def _start_error(self, code: int) -> RunnerStartError:
        if self._failed:
            logger.debug("runner start-up traceback:\n%s", self._failed["traceback"])
            return RunnerStartError(
                f"The runner could not start: {self._failed['message']}",
                hint=self._failed["hint"],
                details={"type": self._failed["type"], "traceback": self._failed["traceback"]},
            )
        return RunnerStartError(
            f"The runner ended with {_exit_text(code)} before it was ready. Its last words: {self._tail()}",
            hint="Import the agent's module in a Python shell to see why.",
        )

    def _tail(self) -> str:
        path = self._pool.log_path(self._index)
        try:
            with path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_offset, size - _TAIL_BYTES))
                return log.read().decode(errors="replace").strip() or "(nothing)"
        except OSError as error:
            return f"(its log cannot be read: {error})"

    def watch(self) -> None:
        """From now on, replace the process when it dies."""
        self._watcher = asyncio.create_task(self._watch())

    async def ended(self) -> None:
        """Wait until it has ended for good."""
        if self._watcher is not None:
            await asyncio.shield(self._watcher)

    async def _watch(self) -> None:
        while True:
            code = await self._exit()
            if self._pool.stopping or code == 0:
                self.is_over = True
                return
            error = self._crash_error(code)
            await self._settle(error)
            if self._pool.stopping:
                return
            if not self._may_restart():
                self.is_over = True
                self._pool.gave_up(error)
                return
            logger.warning("%s It is replaced.", error)
            self._pool.restarts += 1
            try:
                async with asyncio.timeout(self._pool.start_timeout_s):
                    await self.launch()
            except (AgentLightningError, OSError) as failed:  # OSError: TimeoutError too
                self.is_over = True
                self._pool.gave_up(RunnerCrashedError(f"A runner died and could not be replaced: {failed}"))
                return

    async def _exit(self) -> int:
        assert self.process is not None
        code = await self.process.wait()
        if self._listener is not None:
            await asyncio.gather(self._listener, return_exceptions=True)
        self._end_groups()
        return code

    def _crash_error(self, code: int) -> RunnerCrashedError:
        if code == EXIT_FAILED and self._failed:
            return RunnerCrashedError(f"A runner gave up: {self._failed['message']}", hint=self._failed["hint"])
        if code == EXIT_STUCK:
            return RunnerCrashedError(
                "A runner was ended because an agent blocked its event loop.",
                hint="An asynchronous agent must not call blocking functions; make it a plain function instead.",
                details={"stack": self._stuck.get("stack", "")},
            )
        return RunnerCrashedError(f"A runner died with {_exit_text(code)}. Its last words: {self._tail()[-2000:]}")

    async def _settle(self, error: RunnerCrashedError) -> None:
        """Give the store what the process can no longer say."""
        store, policy = self._pool.store(), self._pool.policy
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                for rollout in await attempts_of(store, self.name):
                    failure = Failure.of(self._cause(rollout.attempt.attempt_id, error))
                    action = await settle(store, policy, rollout, failure)
                    logger.info("Rollout %s of the dead runner: %s.", rollout.rollout_id, action)
        except (AgentLightningError, OSError):  # OSError: TimeoutError too
            logger.exception("What runner %s left could not be settled; the store will notice its silence.", self.name)

    def _cause(self, attempt_id: str, error: RunnerCrashedError) -> AgentLightningError:
        """The attempt that blocked the loop has timed out; the others crashed with it."""
        if self._stuck.get("attempt_id") != attempt_id:
            return error
        return AttemptTimeoutError(f"The agent blocked the event loop past its time limit. {error.hint}")

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > _RESTART_WINDOW_S:
            self._deaths.popleft()
        return len(self._deaths) <= self._pool.max_restarts

    def _end_groups(self) -> None:
        for group in self._groups:
            groups.kill(group, signal.SIGKILL)
        self._groups.clear()

    async def stop(self) -> None:
        """End the process, politely first."""
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._pool.drain_timeout_s + 5.0):
                    await process.wait()
            except TimeoutError:
                logger.warning("Runner %s did not end in time and is killed.", self.name)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        tasks = [task for task in (self._listener, self._watcher) if task is not None]
        done, pending = await asyncio.wait(tasks, timeout=5.0) if tasks else (set[Any](), set[Any]())
        for task in pending:
            task.cancel()
        await asyncio.gather(*done, *pending, return_exceptions=True)
        self._end_groups()
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen by whoever launched it
        if process is not None and process.stdin is not None:
            process.stdin.close()


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
