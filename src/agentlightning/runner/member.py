"""One runner process of a pool and its successors: started, listened to, replaced when it dies, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agentlightning
from agentlightning.kit.errors import AgentLightningError, ForbiddenError, UnauthorizedError
from agentlightning.kit.ids import new_id
from agentlightning.runner import groups
from agentlightning.runner.failure import AttemptTimeoutError, Failure, RunnerCrashedError
from agentlightning.runner.policy import FailurePolicy
from agentlightning.runner.recovery import attempts_of, settle
from agentlightning.runner.spool import deliver_leftovers
from agentlightning.runner.transport import Parcel
from agentlightning.runner.worker import BLOCKING_HINT, EXIT_FAILED, MARKER, STATUS_FD, WorkerSpec
from agentlightning.store.base import LightningStore

logger = logging.getLogger(__name__)

_TAIL_BYTES = 8_192
_RESTART_WINDOW_S = 300.0
_SETTLE_TIMEOUT_S = 30.0
_STOP_MARGIN_S = 5.0
_OVERDUE_S = 5.0
"""How long an isolated process may outlast its attempt's limit."""
# Not by PYTHONPATH: the commands that agents start would inherit it. Last, so that it hides nothing of Python's own.
_BOOTSTRAP = (
    f"import sys; sys.path.append({str(Path(agentlightning.__file__).resolve().parent.parent)!r}); "
    "from agentlightning.runner.worker import main; sys.exit(main())"
)
_COMMAND = (sys.executable, "-c", _BOOTSTRAP, "agentlightning.runner.worker")


class RunnerStartError(AgentLightningError):
    """A runner process could not begin its work, most often because the agent's module does not import."""

    code = "RUNNER_NOT_STARTED"


@dataclass(frozen=True)
class Plan:
    """What the members of a pool have in common."""

    store_url: str
    agent: Parcel
    evaluator: Parcel | None
    hooks: Parcel | None
    options: dict[str, Any]
    """Arguments of `LitAgentRunner`."""
    env: Mapping[str, str]
    """Variables beside those of this process."""
    log_paths: list[Path]
    """Where the output of each goes."""
    policy: FailurePolicy
    store: Callable[[], LightningStore]
    """The store, to settle what a dead process leaves."""
    gave_up: Callable[[AgentLightningError], None]
    """Told when a member is not replaced any more."""
    max_restarts: int
    start_timeout_s: float
    drain_timeout_s: float
    isolated: bool = False
    """One rollout at a time in each process; a death is the agent's doing and costs no restart."""
    max_rollouts: int | None = None
    """End each place after so many."""
    recycle_after: int | None = None
    """Replace a process after so many rollouts."""
    spool: Path | None = None
    """Where processes keep reports that the store does not take."""


class Member:
    """One place in the pool: a process, and its successors.

    Args:
        index: Number of the place.
        plan: What all members share.
    """

    def __init__(self, index: int, plan: Plan) -> None:
        self._index = index
        self._plan = plan
        self.name = ""
        self.process: asyncio.subprocess.Process | None = None
        self.is_over = False
        """It runs no more, and will not."""
        self.restarts = 0
        self._stopping = False
        self._ready: asyncio.Future[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._groups: set[int] = set()
        self._deaths: deque[float] = deque()
        self._stuck: dict[str, Any] = {}
        self._failed: dict[str, Any] = {}
        self._done: dict[str, Any] = {}
        self._finished = 0
        self._has_begun = False
        self.current: tuple[str, str] | None = None
        """Rollout and attempt that an isolated process is at."""
        self._overdue: asyncio.TimerHandle | None = None
        self._log_offset = 0

    async def launch(self) -> None:
        """Start a process and wait until it is ready.

        Raises:
            RunnerStartError: It could not begin.
        """
        plan = self._plan
        self.name = new_id(f"runner-{self._index}")
        self._stuck, self._failed, self._done = {}, {}, {}
        self._has_begun = False
        self._ready = asyncio.get_running_loop().create_future()
        spec = WorkerSpec(
            index=self._index,
            name=self.name,
            store_url=plan.store_url,
            sys_path=[str(Path.cwd()) if entry == "" else entry for entry in sys.path],
            agent=plan.agent,
            evaluator=plan.evaluator,
            hooks=plan.hooks,
            options={**plan.options, "max_rollouts": self._next_limit(), "spool": plan.spool},
            isolated=plan.isolated,
        )
        await self._spawn(spec)
        await self._ready

    async def _spawn(self, spec: WorkerSpec) -> None:
        reading, writing = os.pipe()
        log_path = self._plan.log_paths[self._index]
        log_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log_path.open("ab") as log:
                self._log_offset = log.tell()
                self.process = await asyncio.create_subprocess_exec(
                    *_COMMAND,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self._plan.env, MARKER: "1", STATUS_FD: str(writing)},
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
        self._set_alarm(None)
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
        elif event == "begin":
            self._has_begun = True
            self._set_alarm(message)
        elif event == "end":
            self._finished += 1
            self._set_alarm(None)
        elif event in ("stuck", "failed", "done"):
            setattr(self, f"_{event}", message)

    def _set_alarm(self, begun: dict[str, Any] | None) -> None:
        """An attempt that outlasts its limit has stopped its whole process: nobody else is left to end it."""
        self.current = None if begun is None else (begun["rollout_id"], begun["attempt_id"])
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if begun is not None and begun["limit_s"] is not None:
            loop = asyncio.get_running_loop()
            self._overdue = loop.call_later(begun["limit_s"] + _OVERDUE_S, self._end_overdue, begun)

    def _end_overdue(self, begun: dict[str, Any]) -> None:
        logger.warning("Runner %s does not react past its time limit and is killed.", self.name)
        self._stuck = {"attempt_id": begun["attempt_id"], "stack": ""}
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    def _next_limit(self) -> int | None:
        """How many rollouts the next process runs."""
        plan = self._plan
        limits = [] if plan.max_rollouts is None else [max(plan.max_rollouts - self._finished, 0)]
        if plan.recycle_after is not None:
            limits.append(plan.recycle_after)
        return min(limits, default=None)

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
        path = self._plan.log_paths[self._index]
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
            if self._stopping or self._is_finished(code):
                self.is_over = True
                return
            if not self._done:
                error = self._crash_error(code)
                await self._settle(error)
                if self._stopping:
                    return
                if not self._may_restart():
                    self._give_up(error)
                    return
                logger.warning("%s It is replaced.", error)
                self.restarts += 1
            if not await self._relaunch():
                return

    async def _relaunch(self) -> bool:
        """Start the next process; false when this runner is given up, or over.

        One that is killed while it starts has not said anything of the agent: it is started again.
        """
        while True:
            try:
                async with asyncio.timeout(self._plan.start_timeout_s):
                    await self.launch()
            except (AgentLightningError, OSError) as failed:  # OSError: TimeoutError too
                if self._stopping:
                    return False
                was_killed = isinstance(failed, RunnerStartError) and not self._failed
                if not (was_killed and self._may_restart()):
                    self._give_up(RunnerCrashedError(f"A runner died and could not be replaced: {failed}"))
                    return False
                logger.warning("%s It is started again.", failed)
                self.restarts += 1
            else:
                return True

    def _is_finished(self, code: int) -> bool:
        """Whether the place has done its work. An agent may end the process with exit code 0, too."""
        if code != 0 or not self._done:
            return False
        plan = self._plan
        if not plan.isolated:
            self._finished += self._done["finished"]
        if plan.max_rollouts is not None:
            return self._finished >= plan.max_rollouts
        return not plan.isolated and plan.recycle_after is None

    def _give_up(self, error: AgentLightningError) -> None:
        self.is_over = True
        self._plan.gave_up(error)

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
        if self._stuck:
            return RunnerCrashedError(
                "A runner was ended because an agent blocked it past its time limit.",
                hint=BLOCKING_HINT,
                details={"stack": self._stuck.get("stack", "")},
            )
        return RunnerCrashedError(f"A runner died with {_exit_text(code)}. Its last words: {self._tail()[-2000:]}")

    async def _settle(self, error: RunnerCrashedError) -> None:
        """Give the store what the process can no longer say."""
        store, policy = self._plan.store(), self._plan.policy
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                if self._plan.spool is not None:  # what it had finished has not crashed
                    await deliver_leftovers(store, self._plan.spool)
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
        return AttemptTimeoutError("The agent blocked its process past its time limit.", hint=error.hint)

    def _may_restart(self) -> bool:
        if self._plan.isolated and self._has_begun:
            return True
        if self._failed.get("code") in (UnauthorizedError.code, ForbiddenError.code):
            return False
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > _RESTART_WINDOW_S:
            self._deaths.popleft()
        return len(self._deaths) <= self._plan.max_restarts

    def _end_groups(self) -> None:
        for group in self._groups:
            groups.kill(group, signal.SIGKILL)
        self._groups.clear()

    async def stop(self) -> None:
        """End the process, politely first."""
        self._stopping = True
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._plan.drain_timeout_s + _STOP_MARGIN_S):
                    await process.wait()
            except TimeoutError:
                logger.warning("Runner %s did not end in time and is killed.", self.name)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        tasks = [task for task in (self._listener, self._watcher) if task is not None]
        done, pending = await asyncio.wait(tasks, timeout=_STOP_MARGIN_S) if tasks else (set[Any](), set[Any]())
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
