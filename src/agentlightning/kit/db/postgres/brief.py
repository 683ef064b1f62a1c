"""One thread for reads of a few rows by their keys: those that wait together share a transaction. Knows no tables."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import psycopg

from agentlightning.kit.db.jobs import Job, JobThread
from agentlightning.kit.db.merging import merged, settle
from agentlightning.kit.db.postgres.connection import Address, Connection, connect, is_lost, reconnect, translate
from agentlightning.kit.db.postgres.session import PostgresSession
from agentlightning.kit.db.session import Session, refusal
from agentlightning.kit.errors import StorageError

_NEVER_S = 3600.0


class BriefReader(JobThread):
    """Runs brief reads, on a snapshot taken after they were asked for; connects when the first one comes.

    Args:
        address: Where.
        patience_s: How long reads wait for a server that is away, seconds.
    """

    def __init__(self, address: Address, patience_s: float) -> None:
        super().__init__(str(address), tick_s=_NEVER_S)
        self._address = address
        self._patience_s = patience_s
        self._connection: Connection | None = None
        self.start()

    def tick(self) -> None:
        """Nothing to do."""

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def execute_jobs(self, jobs: Sequence[Job]) -> None:
        self._read(jobs)
        if len(jobs) > 1 and any(job.error is not None for job in jobs):
            for job in jobs:  # one spoils the transaction for the others
                self._read([job])

    def _read(self, jobs: Sequence[Job]) -> None:
        until = time.monotonic() + self._patience_s
        few = merged(jobs)
        while True:
            try:
                connection = self._connected(until)
                _run_all(connection, few)
            except StorageError as error:
                return _fail(jobs, error)
            except psycopg.Error as error:
                lost = self._connection is None or is_lost(error, self._connection)
                if lost:
                    self.disconnect()
                if not lost or self.closing or time.monotonic() > until:
                    return _fail(jobs, translate(error, self._address) or error)
            except Exception as error:  # noqa: BLE001 - belongs to the callers, who get it
                return _fail(jobs, refusal(error))
            else:
                return settle(few)

    def _connected(self, until: float) -> Connection:
        if self._connection is None:
            self._connection = reconnect(
                self._address, until=until, give_up=lambda: self.closing, connect=connect_to_read
            )
        return self._connection


def connect_to_read(address: Address) -> Connection:
    """A connection that cannot write."""
    return connect(address, read_only=True, name="reader")


@contextmanager
def snapshot(connection: Connection) -> Generator[Session]:
    """A read-only transaction that sees one moment; undone when the block fails."""
    try:
        with connection.pipeline():
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield PostgresSession(connection)
            connection.execute("COMMIT")
    except BaseException:
        if not connection.closed:
            connection.rollback()
        raise


def _run_all(connection: Connection, jobs: Sequence[Job]) -> None:
    with snapshot(connection) as session:
        for job in jobs:
            job.error = None
            job.result = job.operation(session)


def _fail(jobs: Sequence[Job], error: BaseException) -> None:
    for job in jobs:
        job.error = error
