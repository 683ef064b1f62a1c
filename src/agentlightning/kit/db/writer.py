"""The one SQLite writer of a process: runs many operations in one transaction, commits, then they are answered.

An operation is a plain function of a `Session`; it sees the effects of those before it. One that fails is undone alone
(savepoint). Nobody gets an answer before the commit. Knows no tables.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from agentlightning.kit.db.jobs import Announcements, Job, JobThread
from agentlightning.kit.db.merging import merged, settle
from agentlightning.kit.db.session import BeforeCommit, Params, SqliteSession, refusal
from agentlightning.kit.db.sqlite import translate
from agentlightning.kit.errors import StorageError

logger = logging.getLogger(__name__)


class Writer(JobThread):
    """Owns the connection that writes, and the thread it lives on.

    Args:
        connection: In autocommit mode; only the writer's thread uses it from here on.
        path: For messages.
        publish: Called in the writer's thread after a commit with what the operations announced.
        before_commit: Called last in every transaction whose operations recorded something, with that.
        tick: Called in the writer's thread about every `tick_s`, busy or not, outside any transaction.
        tick_s: Seconds.
        check: Called after every commit; what it raises, the callers get.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        path: str,
        publish: Callable[[Announcements], None],
        before_commit: BeforeCommit,
        tick: Callable[[sqlite3.Connection], None],
        tick_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(path, tick_s=tick_s)
        self._connection = connection
        self._publish = publish
        self._before_commit = before_commit
        self._on_tick = tick
        self._check = check
        self.start()

    def tick(self) -> None:
        self._on_tick(self._connection)

    def disconnect(self) -> None:
        self._connection.close()

    def execute_jobs(self, jobs: Sequence[Job]) -> None:
        try:
            few = merged(jobs)
            announcements = self._transaction(few, is_one=len(jobs) == 1)
            if announcements is None:
                announcements = self._transaction_with_savepoints(jobs)
            else:
                settle(few)
        except sqlite3.Error as error:
            self._rollback()
            if len(jobs) > 1 and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                for job in jobs:  # nothing of the batch is in the database; smaller ones may still fit
                    self.execute_jobs([job])
                return
            announcements = []
            for job in jobs:
                job.error = translate(error, self.name) or error
        except StorageError as error:
            announcements = []
            for job in jobs:
                job.error = error
        if announcements:
            self._publish(announcements)

    def _transaction(self, jobs: Sequence[Job], *, is_one: bool) -> Announcements | None:
        """Run all jobs and commit; when one fails, undo everything, and return `None` unless it is the only one.

        Failures are rare, and savepoints around every job cost as much as many a job.

        Raises:
            sqlite3.Error: The transaction as a whole is lost (disk full, lock, failed commit).
        """
        memo: dict[str, Any] = {}
        self._connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            self._run_job(job, memo)
            if job.error is not None:
                self._connection.execute("ROLLBACK")
                return [] if is_one else None
        return self._commit(jobs)

    def _transaction_with_savepoints(self, jobs: Sequence[Job]) -> Announcements:
        """Run all jobs and commit; a job that fails is undone alone. Raises as `_transaction`."""
        self._connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            self._connection.execute("SAVEPOINT job")
            self._run_job(job, {})
            if job.error is not None:
                self._connection.execute("ROLLBACK TO job")
            self._connection.execute("RELEASE job")
        return self._commit(jobs)

    def _commit(self, jobs: Sequence[Job]) -> Announcements:
        """Write what the successful jobs recorded, commit, and give what they announced.

        Raises:
            StorageError: It was committed, but not where anybody will look for it.
        """
        announcements: Announcements = []
        records: list[Params] = []
        for job in jobs:
            if job.error is None:
                announcements += job.announcements
                records += job.records
        if records:
            session = SqliteSession(self._connection)
            self._before_commit(session, records)
            announcements += session.announcements
        self._connection.execute("COMMIT")
        self._check()
        return announcements

    def _run_job(self, job: Job, memo: dict[str, Any]) -> None:
        """Run a job and put its outcome on it."""
        session = SqliteSession(self._connection, memo)
        job.error, job.announcements, job.records = None, session.announcements, session.records
        try:
            job.result = job.operation(session)
        except sqlite3.Error as error:
            job.error = translate(error, self.name) or error
            if not self._connection.in_transaction or isinstance(job.error, StorageError):
                raise  # not this job's fault, or nobody's work of this transaction is left
        except Exception as error:  # noqa: BLE001 - belongs to the caller, who gets it
            job.error = refusal(error)

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                logger.exception("Rolling back on %s failed.", self.name)
