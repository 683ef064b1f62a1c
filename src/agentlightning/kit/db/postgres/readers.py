"""A few threads with a read-only connection each; a read sees one consistent snapshot. Knows no tables."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg

from agentlightning.kit.db.postgres.brief import connect_to_read, snapshot
from agentlightning.kit.db.postgres.connection import Address, Connection, is_lost, reconnect, translate
from agentlightning.kit.db.session import UNSENDABLE, Session, refusal
from agentlightning.kit.errors import StorageError

T = TypeVar("T")


class PostgresReaders:
    """Runs operations that only read."""

    def __init__(self, address: Address, threads: int, patience_s: float) -> None:
        self._address = address
        self._patience_s = patience_s
        self._local = threading.local()
        self._connections: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="agl-db-reader")

    def submit(self, operation: Callable[[Session], T]) -> asyncio.Future[T]:
        """Run `operation` on a reader's thread.

        Raises:
            StorageError: The database is closed.
        """
        try:
            return asyncio.wrap_future(self._pool.submit(self._run, operation))
        except RuntimeError as error:
            raise StorageError(f"The database {self._address} is closed.", hint="Open it again.") from error

    def close(self) -> None:
        """Wait for running reads and close the connections. Blocks."""
        self._closed = True
        self._pool.shutdown(wait=True)
        with self._lock:
            while self._connections:
                self._connections.pop().close()

    def _run(self, operation: Callable[[Session], T]) -> T:
        until = time.monotonic() + self._patience_s
        while True:
            connection = self._connection(until)
            try:
                with snapshot(connection) as session:
                    result = operation(session)
                return result
            except UNSENDABLE as error:
                raise refusal(error) from error
            except psycopg.Error as error:
                if not is_lost(error, connection) or self._closed or time.monotonic() > until:
                    raise translate(error, self._address) or error from error
                self._forget(connection)

    def _connection(self, until: float) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = reconnect(self._address, until=until, give_up=lambda: self._closed, connect=connect_to_read)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        connection.close()
        self._local.connection = None
        with self._lock:
            self._connections.remove(connection)
