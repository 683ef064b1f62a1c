"""A thread that takes operations from a queue, many at a time, and answers each in the event loop it came from.

What it means to execute them, in which transaction, is up to the subclass. Knows no database.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentlightning.kit.db.session import Params, Session
from agentlightning.kit.errors import StorageError

logger = logging.getLogger(__name__)

MAX_BATCH = 512
"""When so many have come, no more are waited for."""

Announcements = list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Merge:
    """How operations of one kind are done together.

    Attributes:
        rank: Kinds of a lower rank go first in their transaction; what cannot be merged has rank 0.
        run: Gets the arguments of all, in the order of their calls, and gives as many results.
    """

    rank: int
    run: Callable[[Session, list[Any]], Sequence[Any]]


_NONE: list[Any] = []
"""Of a job that has not run."""


class Job:
    """One operation and what came of it; the writer sets `result`, `announcements`, `records` and `error`.

    Args:
        operation: What to do.
        merge: How to do it together with others of its kind; `None`: it cannot be.
        argument: What `merge` wants to know of this one.
    """

    __slots__ = ("announcements", "argument", "error", "merge", "operation", "records", "result")

    def __init__(
        self, operation: Callable[[Session], Any], merge: Merge | None = None, argument: object = None
    ) -> None:
        self.operation = operation
        self.merge = merge
        self.argument = argument
        self.result: Any = None
        self.announcements: Announcements = _NONE
        self.records: list[Params] = _NONE
        self.error: BaseException | None = None


class Request(Job):
    """A job for somebody who waits in an event loop."""

    __slots__ = ("future", "loop", "undelivered")

    def __init__(
        self,
        operation: Callable[[Session], Any],
        loop: asyncio.AbstractEventLoop,
        undelivered: Callable[[Any], None] | None,
        merge: Merge | None,
        argument: object,
    ) -> None:
        super().__init__(operation, merge, argument)
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.undelivered = undelivered

    def deliver(self) -> None:
        """Answer the caller; runs in its event loop."""
        if self.future.cancelled():
            if self.undelivered is not None and self.error is None:
                self.undelivered(self.result)
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _deliver_all(jobs: list[Request]) -> None:
    for job in jobs:
        job.deliver()


class JobThread(ABC):
    """Runs `execute_jobs` on what was submitted and `tick` about every `tick_s`, busy or not, in one thread.

    Args:
        name: For messages.
        tick_s: Seconds.
    """

    def __init__(self, name: str, *, tick_s: float) -> None:
        self.name = name
        self._tick_s = tick_s
        self._jobs: queue.SimpleQueue[list[Request] | None] = queue.SimpleQueue()
        self._state = threading.Lock()
        self._gathered: dict[asyncio.AbstractEventLoop, list[Request]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="agl-db-writer", daemon=True)

    @abstractmethod
    def execute_jobs(self, jobs: Sequence[Job]) -> None:
        """Set `result` or `error` of every job; afterwards they are delivered."""

    @abstractmethod
    def tick(self) -> None:
        """Periodic work, outside any transaction."""

    @abstractmethod
    def disconnect(self) -> None:
        """Let go of the connection; the last thing that the thread does."""

    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def start(self) -> None:
        """Start the thread; only it uses the connection from here on."""
        self._thread.start()

    def submit(
        self,
        operation: Callable[[Session], Any],
        undelivered: Callable[[Any], None] | None = None,
        merge: Merge | None = None,
        argument: object = None,
    ) -> asyncio.Future[Any]:
        """Queue an operation; the future resolves in the running loop after the commit.

        Args:
            operation: Pure but for the database: it may run twice when its batch could not be committed.
            undelivered: Called in the loop with the result when the caller was cancelled before the answer came.
            merge: How it is done together with others of its kind that wait at the same time.
            argument: What `merge` gets of this one.

        Raises:
            StorageError: The database is closed.
        """
        loop = asyncio.get_running_loop()
        job = Request(operation, loop, undelivered, merge, argument)
        with self._state:  # nothing may enter behind the None that ends the thread
            if self._closed:
                raise StorageError(f"The database {self.name} is closed.", hint="Open it again.")
            gathered = self._gathered.get(loop)
            if gathered is not None:
                gathered.append(job)
            else:
                self._gathered[loop] = [job]
                loop.call_soon(self._hand_over, loop)
        return job.future

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the thread all that came in one turn of a loop: waking it for each would cost more than the work."""
        with self._state:
            jobs = self._gathered.pop(loop, None)
            if jobs is not None:
                self._jobs.put(jobs)

    def close(self) -> None:
        """Finish what was submitted, then disconnect. Blocks."""
        with self._state:
            if not self._closed:
                self._closed = True
                for jobs in self._gathered.values():
                    self._jobs.put(jobs)
                self._gathered.clear()
                self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick_s
        open_ = True
        while open_:
            jobs, open_ = self._take(max(0.0, next_tick - time.monotonic()))
            if jobs:
                self.execute_jobs(jobs)
                self._answer(jobs)
            if time.monotonic() >= next_tick:
                self._safe_tick()
                next_tick = time.monotonic() + self._tick_s
        self.disconnect()

    def _take(self, timeout_s: float) -> tuple[list[Request], bool]:
        jobs: list[Request] = []
        try:
            more = self._jobs.get(timeout=timeout_s)
            while more is not None:
                jobs += [job for job in more if not job.future.cancelled()]
                if len(jobs) >= MAX_BATCH:
                    return jobs, True
                more = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, True
        return jobs, False

    def _safe_tick(self) -> None:
        try:
            self.tick()
        except Exception:
            # The thread must outlive it: everything that is written passes here.
            logger.exception("Periodic work on %s failed; it will be tried again.", self.name)

    @staticmethod
    def _answer(jobs: list[Request]) -> None:
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[Request]] = defaultdict(list)
        for job in jobs:
            by_loop[job.loop].append(job)
        for loop, done in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, done)
            except RuntimeError:
                logger.debug("An event loop was closed before %d answers came.", len(done))
