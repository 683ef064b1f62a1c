"""The one writer of a process: drains a queue, runs many operations in one transaction, commits, then answers.

An operation is a plain function of a `Session`; it sees the effects of those before it. One that fails is undone alone
(savepoint). Nobody gets an answer before the commit. Knows no tables.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from agentlightning.kit.db.session import Session
from agentlightning.kit.db.sqlite import translate
from agentlightning.kit.errors import StorageError

logger = logging.getLogger(__name__)

_MAX_BATCH = 512

Announcements = list[tuple[str, str]]


class Job:
    """One operation on its way to the writer; `result`/`error` are set by the writer before it is delivered."""

    __slots__ = ("error", "future", "loop", "operation", "result", "undelivered")

    def __init__(
        self,
        operation: Callable[[Session], Any],
        loop: asyncio.AbstractEventLoop,
        undelivered: Callable[[Any], None] | None,
    ) -> None:
        self.operation = operation
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.undelivered = undelivered
        self.result: Any = None
        self.error: BaseException | None = None

    def deliver(self) -> None:
        """Answer the caller; runs in its event loop."""
        if self.future.cancelled():
            if self.undelivered is not None and self.error is None:
                self.undelivered(self.result)
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _deliver_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.deliver()


class Writer:
    """Owns the connection that writes, and the thread it lives on.

    Args:
        connection: In autocommit mode; only the writer's thread uses it from here on.
        path: For messages.
        publish: Called in the writer's thread after a commit with what the operations announced.
        tick: Called in the writer's thread about every `tick_s`, busy or not, outside any transaction.
        tick_s: Seconds.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        path: str,
        publish: Callable[[Announcements], None],
        tick: Callable[[sqlite3.Connection], None],
        tick_s: float,
    ) -> None:
        self._connection = connection
        self._path = path
        self._publish = publish
        self._tick = tick
        self._tick_s = tick_s
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._state = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="agl-db-writer", daemon=True)
        self._thread.start()

    def submit(
        self, operation: Callable[[Session], Any], undelivered: Callable[[Any], None] | None = None
    ) -> asyncio.Future[Any]:
        """Queue an operation; the future resolves in the running loop after the commit.

        Args:
            operation: Pure but for the database: it may run twice when its batch could not be committed.
            undelivered: Called in the loop with the result when the caller was cancelled before the answer came.

        Raises:
            StorageError: The database is closed.
        """
        job = Job(operation, asyncio.get_running_loop(), undelivered)
        with self._state:  # nothing may enter behind the None that ends the thread
            if self._closed:
                raise StorageError(f"The database {self._path} is closed.", hint="Open it again.")
            self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Finish what is queued, then close the connection. Blocks."""
        with self._state:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick_s
        open_ = True
        while open_:
            jobs, open_ = self._take(max(0.0, next_tick - time.monotonic()))
            if jobs:
                self._execute(jobs)
            if time.monotonic() >= next_tick:
                self._safe_tick()
                next_tick = time.monotonic() + self._tick_s
        self._connection.close()

    def _take(self, timeout_s: float) -> tuple[list[Job], bool]:
        jobs: list[Job] = []
        try:
            job = self._jobs.get(timeout=timeout_s)
            while job is not None and len(jobs) < _MAX_BATCH:
                if not job.future.cancelled():
                    jobs.append(job)
                job = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, True
        if job is not None and not job.future.cancelled():
            jobs.append(job)
        return jobs, job is not None

    def _safe_tick(self) -> None:
        try:
            self._tick(self._connection)
        except Exception:
            # The thread must outlive it: everything that is written passes here.
            logger.exception("Periodic work on %s failed; it will be tried again.", self._path)

    def _execute(self, jobs: list[Job]) -> None:
        try:
            announcements = self._transaction(jobs)
            if announcements is None:
                announcements = self._transaction_with_savepoints(jobs)
        except sqlite3.Error as error:
            self._rollback()
            if len(jobs) > 1 and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                for job in jobs:  # nothing of the batch is in the database; smaller ones may still fit
                    self._execute([job])
                return
            announcements = []
            for job in jobs:
                job.error = translate(error, self._path) or error
        if announcements:
            self._publish(announcements)
        self._answer(jobs)

    @staticmethod
    def _answer(jobs: list[Job]) -> None:
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[Job]] = defaultdict(list)
        for job in jobs:
            by_loop[job.loop].append(job)
        for loop, done in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, done)
            except RuntimeError:
                logger.debug("An event loop was closed before %d answers came.", len(done))

    def _transaction(self, jobs: list[Job]) -> Announcements | None:
        """Run all jobs and commit; when one of several fails, undo everything and return `None`.

        Failures are rare, and savepoints around every job cost as much as many a job.

        Raises:
            sqlite3.Error: The transaction as a whole is lost (disk full, lock, failed commit).
        """
        announcements: Announcements = []
        self._connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            announcements += self._run_job(job)
            if job.error is not None:
                self._connection.execute("ROLLBACK")
                return [] if len(jobs) == 1 else None
        self._connection.execute("COMMIT")
        return announcements

    def _transaction_with_savepoints(self, jobs: list[Job]) -> Announcements:
        """Run all jobs and commit; a job that fails is undone alone. Raises as `_transaction`."""
        announcements: Announcements = []
        self._connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            self._connection.execute("SAVEPOINT job")
            announcements += self._run_job(job)
            if job.error is not None:
                self._connection.execute("ROLLBACK TO job")
            self._connection.execute("RELEASE job")
        self._connection.execute("COMMIT")
        return announcements

    def _run_job(self, job: Job) -> Announcements:
        """Run a job, put its outcome on it, and give what is to be announced if it succeeded."""
        session = Session(self._connection)
        job.error = None
        try:
            job.result = job.operation(session)
        except sqlite3.Error as error:
            job.error = translate(error, self._path) or error
            if not self._connection.in_transaction or isinstance(job.error, StorageError):
                raise  # not this job's fault, or nobody's work of this transaction is left
        except Exception as error:  # noqa: BLE001 - belongs to the caller, who gets it
            job.error = error
        return [] if job.error is not None else session.announcements

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                logger.exception("Rolling back on %s failed.", self._path)
