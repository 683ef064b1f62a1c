"""The one PostgreSQL writer of a process: runs many operations in one transaction, commits, then they are answered.

Several processes may write at once, so a transaction may be refused (deadlock, a row that another has just inserted);
then it is done again. When the server goes away it is awaited, and asked whether the transaction of that moment was
committed: nothing is lost and nothing done twice. Knows no tables.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg

from agentlightning.kit.db.jobs import Announcements, Job, JobThread
from agentlightning.kit.db.merging import MergedJob, merged, settle
from agentlightning.kit.db.postgres.connection import RETRY, Address, Connection, is_lost, reconnect, translate
from agentlightning.kit.db.postgres.session import PostgresSession
from agentlightning.kit.db.session import BeforeCommit, Params, Session, refusal
from agentlightning.kit.errors import BadInputError, StorageError

logger = logging.getLogger(__name__)

_LOCK = 0x41474C  # advisory, with the schema's hash: one transaction at a time numbers its records
_MAX_TRIES = 8
_TRANSACTION_ID = "SELECT pg_current_xact_id_if_assigned()::text"
_MAX_PAYLOAD = 7500  # bytes; the server's limit is 8000


class PostgresWriter(JobThread):
    """Owns the connection that writes, and the thread it lives on.

    Args:
        address: Where to connect again.
        connection: Only the writer's thread uses it from here on.
        sender: Names this process in notifications.
        publish: Called in the writer's thread after a commit with what the operations announced.
        before_commit: Called last in every transaction whose operations recorded something, with that. No two
            transactions of a schema are between that and their commit at once.
        is_due: Operation that reads whether `periodic` has anything to do; asked about every `periodic_s`.
        periodic: Operation that then does it.
        periodic_s: Seconds.
        patience_s: How long writes wait for a server that is away, seconds.
    """

    def __init__(
        self,
        address: Address,
        connection: Connection,
        *,
        sender: str,
        publish: Callable[[Announcements], None],
        before_commit: BeforeCommit,
        is_due: Callable[[Session], bool],
        periodic: Callable[[Session], object],
        periodic_s: float,
        patience_s: float,
    ) -> None:
        super().__init__(str(address), tick_s=periodic_s)
        self._address = address
        self._connection: Connection | None = connection
        self._sender = sender
        self._publish = publish
        self._before_commit = before_commit
        self._is_due = is_due
        self._periodic = periodic
        self._patience_s = patience_s
        self._away_since: float | None = None
        self.start()

    def tick(self) -> None:
        connection = self._connection
        if connection is None or connection.closed:
            return  # the next write connects again
        try:
            due = self._is_due(PostgresSession(connection))
        except psycopg.Error as error:
            self._roll_back(error)
            raise
        if due:
            job = Job(self._periodic)
            self.execute_jobs([job])
            if job.error is not None:
                raise job.error

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def execute_jobs(self, jobs: Sequence[Job]) -> None:
        announcements = self._commit(jobs)
        if announcements is None:
            announcements = []
            for job in jobs:
                announcements += self._commit([job]) or []
        if announcements:
            self._publish(announcements)

    def _commit(self, jobs: Sequence[Job]) -> Announcements | None:
        """Run all jobs and commit. `None`: it failed, and each has to be tried alone to see whose fault it was."""
        problem: psycopg.Error | None = None
        few = merged(jobs)
        for tries in range(_MAX_TRIES):
            if tries:
                time.sleep(random.uniform(0, 0.002 * 2**tries))  # or both sides of a deadlock meet again
            try:
                announcements = self._transaction(self._connected(), few, is_one=len(jobs) == 1)
                if announcements is not None:
                    settle(few)
                return announcements
            except StorageError as error:  # the server is away for too long
                return _fail(jobs, error)
            except psycopg.Error as error:
                problem = error
                if self._roll_back(error) and error.sqlstate not in RETRY:
                    break
                if len(jobs) > 1 and error.sqlstate in RETRY:
                    return None
        if len(jobs) > 1:
            return None
        error = problem or psycopg.OperationalError("the connection is lost again and again")
        return _fail(jobs, translate(error, self._address) or error)

    def _transaction(self, connection: Connection, jobs: Sequence[Job], *, is_one: bool) -> Announcements | None:
        """One transaction; `None`: one of several failed that had changed something already, so all is undone.

        Raises:
            psycopg.Error: All is undone.
            StorageError: The connection was lost during the commit, and the server stays away.
        """
        transaction_id: str | None = None
        committed = False
        announcements: Announcements = []
        try:
            with connection.pipeline() as pipeline:
                connection.execute("BEGIN")
                memo: dict[str, Any] = {}
                if not all(_run(job, connection, memo) for job in jobs):
                    connection.execute("ROLLBACK")
                    return [] if is_one else None
                records = [record for job in jobs if job.error is None for record in job.records]
                # Waits for everything above: whatever fails there does so before the commit is on its way.
                query = "SELECT pg_current_xact_id()::text" if records else _TRANSACTION_ID
                row = connection.execute(query).fetchone()
                transaction_id = row[0] if row else None
                announcements = _announcements(jobs) + self._write(connection, records)
                for payload in payloads(self._sender, announcements):
                    connection.execute("SELECT pg_notify(%s, %s)", (self._address.channel, payload))
                connection.execute("COMMIT")
                pipeline.sync()
                committed = True
        except psycopg.Error as error:  # perhaps on leaving the pipeline, after a commit that went well
            if not committed and (transaction_id is None or not is_lost(error, connection)):
                raise
            self._disconnect_quietly()
            if not committed and not self._was_committed(transaction_id or ""):
                self._disconnect_quietly()
                raise
        return announcements

    def _write(self, connection: Connection, records: Sequence[Params]) -> Announcements:
        """Write what the jobs recorded, one transaction of the schema after the other: so numbers given to the rows
        are in the order of commits, and who has seen a number has seen all before it.

        Nothing here waits for an answer: lock, rows and commit reach the server in one go.
        """
        if not records:
            return []
        connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK, self._address.channel))
        session = PostgresSession(connection)
        self._before_commit(session, records)
        return session.announcements

    def _was_committed(self, transaction_id: str) -> bool:
        """What became of a transaction whose answer never came.

        Raises:
            StorageError: The server stays away; the message says that the outcome is not known.
        """
        while True:
            try:
                query = "SELECT pg_xact_status(%s::text::xid8)"
                row = self._connected().execute(query, (transaction_id,)).fetchone()
            except psycopg.Error as error:  # away again, or a server that has never had this transaction
                if self._roll_back(error):
                    return False
                continue
            except StorageError as error:
                error.message += " Whether the last changes were saved is not known."
                raise
            if row is None or row[0] != "in progress":
                return row is not None and row[0] == "committed"
            time.sleep(0.05)  # the server has not noticed yet that its client is gone

    def _connected(self) -> Connection:
        """The connection; a new one when the old one is gone.

        Raises:
            StorageError: The server stays away, or refuses.
        """
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._away_since is None:
            self._away_since = time.monotonic()
            logger.warning("Lost the connection to %s; connecting again.", self._address)
        self._connection = reconnect(
            self._address, until=self._away_since + self._patience_s, give_up=lambda: self.closing
        )
        logger.warning("Connected to %s again after %.1f s.", self._address, time.monotonic() - self._away_since)
        self._away_since = None
        return self._connection

    def _roll_back(self, error: psycopg.Error) -> bool:
        """Leave the failed transaction; whether the connection is still good."""
        connection = self._connection
        if connection is not None and not is_lost(error, connection):
            try:
                connection.rollback()
            except psycopg.Error:
                logger.warning("Rolling back on %s failed; connecting again.", self._address)
            else:
                return True
        self._disconnect_quietly()
        return False

    def _disconnect_quietly(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _run(job: Job, connection: Connection, memo: dict[str, Any]) -> bool:
    """Run a job and put its outcome on it; false when it failed half-way, so that something has to be undone.

    Raises:
        psycopg.Error: The transaction is lost. It may have been an earlier job's statement.
    """
    session = PostgresSession(connection, memo)
    job.error = None
    job.announcements, job.records = session.announcements, session.records
    try:
        job.result = job.operation(session)
    except psycopg.Error as error:
        if isinstance(error, psycopg.DataError) and error.sqlstate is None:  # the driver cannot send the value
            job.error = BadInputError(f"A value does not fit the database: {error}.")
            return _is_harmless(job, session)
        raise
    except Exception as error:  # noqa: BLE001 - belongs to the caller, who gets it
        job.error = refusal(error)
        return _is_harmless(job, session)
    return True


def _is_harmless(job: Job, session: PostgresSession) -> bool:
    """Nothing has to be undone, and it is clear whose failure it was."""
    return not session.wrote and not isinstance(job, MergedJob)


def _announcements(jobs: Sequence[Job]) -> Announcements:
    return [announcement for job in jobs if job.error is None for announcement in job.announcements]


def _fail(jobs: Sequence[Job], error: BaseException) -> Announcements:
    for job in jobs:
        job.error = error
    return []


def payloads(sender: str, announcements: Announcements) -> Iterator[str]:
    """Announcements as notifications: JSON `[sender, [topic, key, key, ...], ...]`, each within the server's limit."""
    keys: defaultdict[str, list[str]] = defaultdict(list)
    for topic, key in dict.fromkeys(announcements):
        keys[topic].append(key)
    message: list[Any] = [sender]
    size = len(sender)
    for topic, listed in keys.items():
        message.append([topic])
        for key in listed:
            cost = len(json.dumps(key)) + 2
            if size + cost + len(topic) > _MAX_PAYLOAD and len(message[-1]) > 1:
                yield json.dumps(message)
                message, size = [sender, [topic]], len(sender)
            message[-1].append(key)
            size += cost
        size += len(topic) + 8
    if len(message) > 1:
        yield json.dumps(message)
