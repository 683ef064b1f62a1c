"""Runs blocking functions on threads that may be given up: a call that never returns costs one thread, not the runner.

Python's own executors join their threads at exit, so one hung call would hang the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import itertools
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_numbers = itertools.count()


class AbandonedCall(SystemExit):
    """Raised inside a thread whose caller has stopped waiting; ends loops of Python code, not blocking calls."""


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
            if self.done or self.thread_id is None:
                return False
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread_id), ctypes.py_object(AbandonedCall))
            return True


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
