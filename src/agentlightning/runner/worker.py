"""What runs inside a runner process, which `RunnerPool` starts.

It reads what to run from stdin, reports on a pipe, and dies with its parent: stdin is a tether that closes when the
parent is gone, however it went.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import math
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from agentlightning.kit.errors import AgentLightningError
from agentlightning.runner import groups
from agentlightning.runner.runner import DEFAULT_TIMEOUT_S, LitAgentRunner, Observer
from agentlightning.runner.transport import Parcel, unpack
from agentlightning.runner.watchdog import LoopWatchdog
from agentlightning.schemas import AttemptedRollout

STATUS_FD = "AGL_WORKER_STATUS_FD"
MARKER = "AGL_RUNNER_WORKER"
"""Set in runner processes, so that a script that trains on import notices."""
BLOCKING_HINT = "An asynchronous agent must not call blocking functions; make it a plain function instead."
EXIT_FAILED = 3
EXIT_STUCK = 70
_LENGTH_BYTES = 8
_LEAST_STUCK_S = 3.0


@dataclass
class WorkerSpec:
    """All that a runner process is told."""

    index: int
    name: str
    store_url: str
    sys_path: list[str]
    agent: Parcel
    evaluator: Parcel | None = None
    hooks: Parcel | None = None
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of `LitAgentRunner`."""
    isolated: bool = False
    """Tell the parent of each attempt, and end when an agent will not stop."""

    def send(self) -> bytes:
        """Length, then pickle."""
        body = pickle.dumps(self)
        return len(body).to_bytes(_LENGTH_BYTES, "big") + body

    @staticmethod
    def receive(stream: BinaryIO) -> WorkerSpec:
        """Inverse of `send`."""
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "big")
        return pickle.loads(stream.read(length))


class StatusPipe:
    """JSON lines to the parent; callable from any thread."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # not for the commands that agents start
        self._stream = os.fdopen(descriptor, "wb", buffering=0)
        self._lock = threading.Lock()

    def send(self, event: str, **facts: Any) -> None:
        """Tell the parent."""
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        with self._lock:
            try:
                self._stream.write(line)
            except BrokenPipeError:
                die(1)

    def group(self, group: int, alive: bool) -> None:
        """Tell of a process group of ours."""
        self.send("group", id=group, alive=alive)


def die(code: int) -> None:
    """End this process and what it started, now."""
    groups.kill_all()
    os._exit(code)


def _take_stdin() -> BinaryIO:
    """Keep stdin for the tether and give agents an empty one."""
    tether = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return os.fdopen(tether, "rb", buffering=0)


def _hold(tether: BinaryIO) -> None:
    """Wait for the parent's end."""
    while tether.read(1):
        pass
    die(1)


def main() -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(level=os.environ.get("AGL_LOG_LEVEL", "WARNING"), format="%(asctime)s %(name)s %(message)s")
    faulthandler.enable(all_threads=False)  # a segmentation fault leaves its stack among the last words
    status = StatusPipe(int(os.environ.pop(STATUS_FD)))
    tether = _take_stdin()
    try:
        spec = WorkerSpec.receive(_whole(tether))
        sys.path[:] = spec.sys_path
        runner, agent, hooks = _build(spec)
    except Exception as error:  # noqa: BLE001 - whatever an agent's module raises is told to the parent
        status.send("failed", **describe(error))
        return EXIT_FAILED
    threading.Thread(target=_hold, args=(tether,), name="agentlightning-tether", daemon=True).start()
    groups.listen(status.group)
    try:
        asyncio.run(_serve(spec, runner, agent, hooks, status))
    except AgentLightningError as error:
        status.send("failed", **describe(error))
        return EXIT_FAILED
    finally:
        groups.kill_all()
    if spec.isolated:
        _leave()
    return 0


def _leave() -> None:
    """End without waiting for threads that agents have left behind."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is closed: nobody is left to tell
            stream.flush()
    die(0)


def _whole(stream: BinaryIO) -> BinaryIO:
    """An unbuffered pipe gives what it has; this reads until it has given enough."""

    class Whole:
        def read(self, size: int) -> bytes:
            parts = bytearray()
            while len(parts) < size:
                part = stream.read(size - len(parts))
                if not part:
                    die(1)
                parts += part or b""
            return bytes(parts)

    return Whole()  # pyright: ignore[reportReturnType] - read() is all that is used


def _build(spec: WorkerSpec) -> tuple[LitAgentRunner[Any], Any, Any]:
    agent = unpack(spec.agent)
    evaluator = unpack(spec.evaluator) if spec.evaluator is not None else None
    hooks = unpack(spec.hooks) if spec.hooks is not None else ()
    runner: LitAgentRunner[Any] = LitAgentRunner(evaluator=evaluator, **spec.options)
    return runner, agent, hooks


def describe(error: BaseException) -> dict[str, Any]:
    """What the parent is told of an error."""
    return {
        "type": type(error).__name__,
        "code": getattr(error, "code", ""),
        "message": getattr(error, "message", None) or str(error),
        "hint": getattr(error, "hint", ""),
        "traceback": "".join(traceback.format_exception(error))[-8000:],
    }


async def _serve(spec: WorkerSpec, runner: LitAgentRunner[Any], agent: Any, hooks: Any, status: StatusPipe) -> None:
    from agentlightning.store import LightningStoreClient

    store = LightningStoreClient(spec.store_url)
    runner.init(agent, hooks=hooks)
    runner.init_worker(spec.index, store, worker_name=spec.name)
    if spec.isolated:
        runner.observer = _observer(runner, status)
    watchdog = LoopWatchdog(
        lambda blocked_s: is_stuck(runner, blocked_s), lambda task, stack: _stuck(runner, status, task, stack)
    )
    _install_signals(runner)
    watchdog.start()
    status.send("ready", pid=os.getpid())
    try:
        await runner.iter()
        status.send("done", **runner.stats())
    finally:
        watchdog.stop()
        runner.teardown_worker(spec.index)
        runner.teardown()
        await store.close()


def _observer(runner: LitAgentRunner[Any], status: StatusPipe) -> Observer:
    def observe(rollout: AttemptedRollout, limit_s: float | None) -> None:
        attempt_id = rollout.attempt.attempt_id
        if limit_s is not None:
            limit = limit_s if math.isfinite(limit_s) else None
            status.send("begin", rollout_id=rollout.rollout_id, attempt_id=attempt_id, limit_s=limit)
            return
        status.send("end", attempt_id=attempt_id)
        if runner.stats()["abandoned"]:  # it goes on in its thread; a fresh process does not have it
            runner.stop()

    return observe


def _install_signals(runner: LitAgentRunner[Any]) -> None:
    asked: list[float] = []

    def stop() -> None:
        asked.append(time.monotonic())
        if len(asked) > 1:
            die(1)
        runner.stop()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)


def is_stuck(runner: LitAgentRunner[Any], blocked_s: float) -> bool:
    """Whether the loop is blocked past a time limit, which it therefore cannot enforce."""
    if blocked_s < _LEAST_STUCK_S:
        return False
    deadline = runner.next_deadline()
    return time.monotonic() > deadline if deadline is not None else blocked_s > DEFAULT_TIMEOUT_S


def _stuck(runner: LitAgentRunner[Any], status: StatusPipe, task: asyncio.Task[object] | None, stack: str) -> None:
    culprit = runner.attempt_of(task)
    status.send("stuck", attempt_id=culprit, stack=stack[-8000:])
    die(EXIT_STUCK)
