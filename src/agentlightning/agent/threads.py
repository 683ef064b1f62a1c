"""Runs blocking functions on threads that may be given up: a call that never returns costs one thread, not the runner.

Python's own executors join their threads at exit, so one hung call would hang the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import functools
import itertools
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_numbers = itertools.count()
_SHARED_SIZE = 64
_LOOKS_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds between looks at an abandoned thread: on a busy machine it gets a processor now and then only."""
_SPINNING_S = 0.01
"""Processor time from which on it counts as busy: one that is blocked uses none."""


class AbandonedCall(SystemExit):
    """Raised inside a thread that is still busy though its caller has stopped waiting."""


class _Job:
    __slots__ = ("abandoned", "context", "done", "function", "future", "lock", "loop", "thread_id")

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.context = contextvars.copy_context()
        self.lock = threading.Lock()
        self.thread_id: int | None = None
        self.abandoned = False
        self.done = False

    def run(self) -> bool:
        """Call the function; returns whether the thread may take another job."""
        with self.lock:
            if self.abandoned:
                return True
            self.thread_id = threading.get_ident()
        result: Any = None
        error: BaseException | None = None
        try:
            result = self.context.run(self.function)
        except BaseException as raised:  # noqa: BLE001 - handed to the caller, SystemExit included
            error = raised
        with self.lock:
            self.done = True
            if self.abandoned:
                return False
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            return False
        return True

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        elif isinstance(error, StopIteration):  # a future refuses it
            self.future.set_exception(RuntimeError(f"the function raised StopIteration: {error}"))
        else:
            self.future.set_exception(error)

    def abandon(self) -> bool:
        """Stop waiting; returns whether a thread is lost to it."""
        with self.lock:
            self.abandoned = True
            return not self.done and self.thread_id is not None

    async def end_if_spinning(self) -> None:
        """Raise `AbandonedCall` in the thread if it is busy; one that is blocked costs nothing and is left alone.

        A pending exception slows down every thread of the process until it is delivered, and on Python 3.11 stops them
        when a debugger or coverage traces them, so a blocked thread must not get one.
        """
        begun_s = self._cpu_time()
        for pause_s in _LOOKS_S:
            await asyncio.sleep(pause_s)
            used_s = self._cpu_time()
            if begun_s is None or used_s is None:
                return
            if used_s - begun_s >= _SPINNING_S:
                self._interrupt()
                return

    def _interrupt(self) -> None:
        with self.lock:
            if not self.done and self.thread_id is not None:
                thread = ctypes.c_ulong(self.thread_id)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(AbandonedCall))

    def _cpu_time(self) -> float | None:
        with self.lock:  # the clock of a thread that has ended must not be asked for
            if self.done or self.thread_id is None or not hasattr(time, "pthread_getcpuclockid"):
                return None
            return time.clock_gettime(time.pthread_getcpuclockid(self.thread_id))


@functools.cache
def shared_threads() -> AgentThreads:
    """The process's pool for calls that nobody gave a pool of their own."""
    return AgentThreads(_SHARED_SIZE)


class AgentThreads:
    """A bounded pool of daemon threads.

    Args:
        size: Calls at once, the abandoned ones not counted.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.abandoned = 0
        """Threads given up so far; they may still run."""
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._endings: set[asyncio.Task[None]] = set()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` with a copy of the caller's context variables.

        When the caller is cancelled, the call is given up: its thread no longer counts, and its result goes nowhere.
        """
        job = _Job(function, asyncio.get_running_loop())
        self._submit(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            if job.abandon():
                with self._lock:
                    self.abandoned += 1
                    self._threads -= 1
                ending = job.loop.create_task(job.end_if_spinning())
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)
            raise

    def _submit(self, job: _Job) -> None:
        with self._lock:
            start = self._idle == 0 and self._threads < self.size
            if start:
                self._threads += 1
            elif self._idle:
                self._idle -= 1
        self._jobs.put(job)
        if start:
            threading.Thread(target=self._work, name=f"agent-{next(_numbers)}", daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None or not job.run():
                return
            del job  # its context may hold large objects
            with self._lock:
                self._idle += 1

    def close(self) -> None:
        """Let the threads that are free end."""
        with self._lock:
            waiting, self._threads, self._idle = self._threads, 0, 0
        for _ in range(waiting):
            self._jobs.put(None)
