"""A few threads with a read-only connection each.

A read sees one consistent snapshot and never waits for the writer. Knows no tables.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from agentlightning.kit.db.jobs import Merge
from agentlightning.kit.db.session import UNSENDABLE, Session, SqliteSession, refusal
from agentlightning.kit.db.sqlite import connect, translated
from agentlightning.kit.errors import StorageError

T = TypeVar("T")
_Waiting = tuple[object, asyncio.Future[Any]]
"""What a merge gets of one call, and who waits for the result."""


class Readers:
    """Runs operations that only read.

    Args:
        path: The file.
        threads: How many.
        check: Called before a connection is made, which would make the file anew; raises unless it is there.
    """

    def __init__(self, path: Path, threads: int, check: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._check = check
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="agl-db-reader")
        self._here: sqlite3.Connection | None = None
        self._here_lock = threading.Lock()
        self._gathered: dict[tuple[asyncio.AbstractEventLoop, Merge], list[_Waiting]] = {}
        self._closed = False

    def gathered(self, merge: Merge, argument: object) -> asyncio.Future[Any]:
        """As `brief`, done with all others of its kind that come in the same turn of the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        waiting = self._gathered.get((loop, merge))
        if waiting is not None:
            waiting.append((argument, future))
        else:
            self._gathered[loop, merge] = [(argument, future)]
            loop.call_soon(self._read_gathered, loop, merge)
        return future

    def _read_gathered(self, loop: asyncio.AbstractEventLoop, merge: Merge) -> None:
        waiting = [pair for pair in self._gathered.pop((loop, merge)) if not pair[1].done()]
        try:
            with self._reading_here() as connection:
                if connection is not None:
                    _answer(waiting, self._read_all(connection, merge, [argument for argument, _ in waiting]))
                    return
        except Exception as error:  # noqa: BLE001 - belongs to the callers, who get it
            _answer(waiting, [error] * len(waiting))
            return
        for argument, future in waiting:  # another event loop is at it
            _follow(self.submit(lambda db, one=argument: merge.run(db, [one])[0]), future)

    def _read_all(self, connection: sqlite3.Connection, merge: Merge, arguments: list[Any]) -> Sequence[Any]:
        """A result or an error for each."""
        try:
            return self._read(connection, lambda db: merge.run(db, arguments))
        except Exception as error:  # noqa: BLE001 - belongs to the callers, who get it
            if len(arguments) == 1:
                return [error]
        return [self._read_all(connection, merge, [argument])[0] for argument in arguments]  # one spoils it for all

    async def brief(self, operation: Callable[[Session], T]) -> T:
        """Run a small `operation`, one that finds a few rows by their keys, in the calling thread.

        It takes less time than handing it to another thread would; a read never waits for the writer.

        Raises:
            StorageError: The database is closed.
        """
        with self._reading_here() as connection:
            if connection is not None:
                return self._read(connection, operation)
        return await self.submit(operation)  # another event loop is at it

    @contextmanager
    def _reading_here(self) -> Generator[sqlite3.Connection | None]:
        """The connection for the threads of event loops; `None` while another one has it."""
        if not self._here_lock.acquire(blocking=False):
            yield None
            return
        try:
            if self._closed:
                raise self._is_closed()
            if self._here is None:
                self._check()
                self._here = connect(self._path, read_only=True)
            yield self._here
        finally:
            self._here_lock.release()

    def submit(self, operation: Callable[[Session], T]) -> asyncio.Future[T]:
        """Run `operation` on a reader's thread.

        Raises:
            StorageError: The database is closed.
        """
        try:
            return asyncio.wrap_future(self._pool.submit(self._run, operation))
        except RuntimeError as error:
            raise self._is_closed() from error

    def close(self) -> None:
        """Wait for running reads and close the connections. Blocks."""
        with self._here_lock:
            self._closed = True
            if self._here is not None:
                self._here.close()
        self._pool.shutdown(wait=True)
        with self._lock:
            while self._connections:
                self._connections.pop().close()

    def _is_closed(self) -> StorageError:
        return StorageError(f"The database {self._path} is closed.", hint="Open it again.")

    def _run(self, operation: Callable[[Session], T]) -> T:
        return self._read(self._connection(), operation)

    def _read(self, connection: sqlite3.Connection, operation: Callable[[Session], T]) -> T:
        with translated(str(self._path)):
            connection.execute("BEGIN")
            try:
                return operation(SqliteSession(connection))
            except UNSENDABLE as error:
                raise refusal(error) from error
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            self._check()
            connection = connect(self._path, read_only=True)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection


def _answer(waiting: Sequence[_Waiting], outcomes: Sequence[Any]) -> None:
    for (_, future), outcome in zip(waiting, outcomes, strict=True):
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _follow(read: asyncio.Future[Any], future: asyncio.Future[Any]) -> None:
    """Let `future` end as `read` does."""

    def ended(done: asyncio.Future[Any]) -> None:
        if done.cancelled():
            future.cancel()
        else:
            _answer([(None, future)], [done.exception() or done.result()])

    read.add_done_callback(ended)
