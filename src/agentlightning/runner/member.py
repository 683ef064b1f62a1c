"""One runner process of a pool and its successors: started, listened to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import agentlightning
from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, ForbiddenError, UnauthorizedError
from agentlightning.kit.ids import new_id
from agentlightning.runner import groups
from agentlightning.runner.failure import AttemptTimeoutError, RunnerCrashedError
from agentlightning.runner.place import STOP_MARGIN_S, KilledAtStartError, Place, RunnerStartError, Terms
from agentlightning.runner.spool import deliver_leftovers
from agentlightning.runner.transport import Parcel
from agentlightning.runner.worker import BLOCKING_HINT, EXIT_FAILED, MARKER, STATUS_FD, WorkerSpec
from agentlightning.store.base import LightningStore

logger = logging.getLogger(__name__)

_TAIL_BYTES = 8_192
_OVERDUE_S = 5.0
"""How long an isolated process may outlast its attempt's limit."""
# Not by PYTHONPATH: the commands that agents start would inherit it. Last, so that it hides nothing of Python's own.
_BOOTSTRAP = (
    f"import sys; sys.path.append({str(Path(agentlightning.__file__).resolve().parent.parent)!r}); "
    "from agentlightning.runner.worker import main; sys.exit(main())"
)
_COMMAND = (sys.executable, "-c", _BOOTSTRAP, "agentlightning.runner.worker")


@dataclass(frozen=True, kw_only=True)
class Plan(Terms):
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
    isolated: bool = False
    """One rollout at a time in each process; a death is the agent's doing and costs no restart."""
    max_rollouts: int | None = None
    """End each place after so many."""
    recycle_after: int | None = None
    """Replace a process after so many rollouts."""
    spool: Path | None = None
    """Where processes keep reports that the store does not take."""


class Member(Place):
    """A place for a process.

    Args:
        index: Number of the place.
        plan: What all members share.
    """

    def __init__(self, index: int, plan: Plan) -> None:
        super().__init__(index, plan)
        self._plan = plan
        self.process: asyncio.subprocess.Process | None = None
        self._ready: asyncio.Future[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._groups: set[int] = set()
        self._stuck: dict[str, Any] = {}
        self._failed: dict[str, Any] = {}
        self._done: dict[str, Any] = {}
        self._finished = 0
        self._has_begun = False
        self.current: tuple[str, str] | None = None
        """Rollout and attempt that an isolated process is at."""
        self._overdue: asyncio.TimerHandle | None = None
        self._log_offset = 0

    async def _launch(self) -> None:
        plan = self._plan
        self.name = new_id(f"runner-{self.index}")
        self._stuck, self._failed, self._done = {}, {}, {}
        self._has_begun = False
        self._ready = asyncio.get_running_loop().create_future()
        spec = WorkerSpec(
            index=self.index,
            name=self.name,
            store_url=plan.store_url,
            sys_path=[str(Path.cwd()) if entry == "" else entry for entry in sys.path],
            agent=plan.agent,
            evaluator=plan.evaluator,
            hooks=plan.hooks,
            options=self._carefully({**plan.options, "max_rollouts": self._next_limit(), "spool": plan.spool}),
            isolated=plan.isolated,
        )
        await self._spawn(spec)
        await self._ready

    async def _spawn(self, spec: WorkerSpec) -> None:
        reading, writing = os.pipe()
        log_path = self._plan.log_paths[self.index]
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
            with contextlib.suppress(ProcessLookupError):  # it ended this moment
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
        return KilledAtStartError(
            f"The runner ended with {_exit_text(code)} before it was ready. Its last words: {self._tail()}",
            hint="Import the agent's module in a Python shell to see why.",
        )

    def _tail(self) -> str:
        path = self._plan.log_paths[self.index]
        try:
            with path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_offset, size - _TAIL_BYTES))
                return log.read().decode(errors="replace").strip() or "(nothing)"
        except OSError as error:
            return f"(its log cannot be read: {error})"

    async def _end(self) -> RunnerCrashedError | Literal["finished", "next"]:
        code = await self._exit()
        if self._is_finished(code):
            return "finished"
        return "next" if self._done else self._crash_error(code)

    def _is_finished(self, code: int) -> bool:
        """Whether the place has done its work. An agent may end the process with exit code 0, too."""
        if code != 0 or not self._done:
            return False
        plan, was_careful = self._plan, self._cleared()
        if not plan.isolated:
            self._finished += self._done["finished"]
        if plan.max_rollouts is not None:
            return self._finished >= plan.max_rollouts
        return not (plan.isolated or plan.recycle_after is not None or was_careful)

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

    async def _rescue(self, store: LightningStore) -> None:
        if self._plan.spool is not None:  # what it had finished has not crashed
            await deliver_leftovers(store, self._plan.spool)

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
        return super()._may_restart()

    def _end_groups(self) -> None:
        for group in self._groups:
            groups.kill(group, signal.SIGKILL)
        self._groups.clear()

    async def _end_runner(self) -> None:
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended this moment
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._plan.drain_timeout_s + STOP_MARGIN_S):
                    await process.wait()
            except TimeoutError:
                logger.warning("Runner %s did not end in time and is killed.", self.name)
                with contextlib.suppress(ProcessLookupError):  # as above
                    process.kill()
                await process.wait()

    async def stop(self) -> None:
        await super().stop()
        if self._listener is not None:
            await asyncio.wait({self._listener}, timeout=STOP_MARGIN_S)
            await cancelled(self._listener)
        self._end_groups()
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen by whoever launched it
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):  # real-time signals have no name
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
