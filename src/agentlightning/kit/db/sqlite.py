"""SQLite connections: pragmas, schema creation, and SQLite's errors in our words."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from agentlightning.kit.errors import AgentLightningError, BadInputError, StorageError

logger = logging.getLogger(__name__)

Synchronous = Literal["normal", "full", "off"]
"""`normal`: survives a crash of any process; `full`: a power cut too, at the price of one fsync a commit."""

LOCK_WAIT_S = 15.0
_SWITCH_PAUSE_S = 0.01

_PROBLEMS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_FULL: ("the disk (or the database's size limit) is full", "Free some space and try again."),
    sqlite3.SQLITE_READONLY: ("it is read-only", "Check the permissions of the file and of its folder."),
    sqlite3.SQLITE_PERM: ("permission was denied", "Check the permissions of the file and of its folder."),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "Check that the folder exists and is writable."),
    sqlite3.SQLITE_BUSY: (
        f"another process held its write lock for more than {LOCK_WAIT_S:.0f} s",
        "Look for a stopped process that has it open, then try again.",
    ),
    sqlite3.SQLITE_LOCKED: ("it is locked", "Try again."),
    sqlite3.SQLITE_CORRUPT: (
        "it is damaged",
        "Restore a backup, or move the file away to start afresh; `sqlite3 FILE .recover` may save its content.",
    ),
    sqlite3.SQLITE_NOTADB: ("it is not an SQLite database", "Give another path, or move the file away."),
    sqlite3.SQLITE_IOERR: ("reading or writing failed", "Check the disk: space, quota, health, and try again."),
}


def translate(error: sqlite3.Error, path: str) -> AgentLightningError | None:
    """Our error for SQLite's, or `None` when it is a fault of the program (a constraint, wrong SQL)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_TOOBIG:
        return BadInputError("A value is larger than the database takes (1 GB).", hint="Store a reference instead.")
    if code in _PROBLEMS:
        what, hint = _PROBLEMS[code]
        return StorageError(
            f"Cannot use the database {path}: {what}.",
            hint=hint,
            details={"path": path, "sqlite_error": getattr(error, "sqlite_errorname", ""), "text": str(error)},
        )
    return None


@contextmanager
def translated(path: str) -> Generator[None]:
    """Raise `StorageError` for the block's storage problems."""
    try:
        yield
    except sqlite3.Error as error:
        ours = translate(error, path)
        if ours is None:
            raise
        raise ours from error


def connect(path: Path | None, *, synchronous: Synchronous = "normal", read_only: bool = False) -> sqlite3.Connection:
    """Open a connection in autocommit mode; `path=None` is a private database in memory.

    Raises:
        StorageError: The file cannot be opened, is damaged, or is no SQLite database.
    """
    name = str(path) if path else ":memory:"
    with translated(name):
        connection = sqlite3.connect(
            name, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            _configure(connection, synchronous, read_only, in_memory=path is None)
        except BaseException:
            connection.close()
            raise
    return connection


class SameFile:
    """Whether the file of a database is still where it was opened.

    SQLite goes on writing to a file that was removed or replaced, and nobody ever finds what is written there.

    Args:
        path: Of a database that is open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = self._now()

    def check(self) -> None:
        """Raise unless it is.

        Raises:
            StorageError: There is none, or another one.
        """
        if self._now() != self._identity:
            raise StorageError(
                f"The database {self._path} was removed or replaced while it was open.",
                hint="Close it and open it again. Stop its programs before you move or replace a database.",
                details={"path": str(self._path)},
            )

    def _now(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _configure(connection: sqlite3.Connection, synchronous: Synchronous, read_only: bool, *, in_memory: bool) -> None:
    if not in_memory and not read_only:
        _switch_to_wal(connection)
    for pragma in (
        f"synchronous = {'off' if in_memory else synchronous}",
        "foreign_keys = ON",
        "temp_store = MEMORY",
        "cache_size = -16000",  # KiB
        "journal_size_limit = 67108864",
        f"query_only = {'ON' if read_only else 'OFF'}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # The first switch of a new file does not wait for other openers as everything else does.
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_SWITCH_PAUSE_S)  # SQLite has no call that waits for this
        else:
            return


class Schema:
    """The tables of a database file and how to tell that a file has them.

    Args:
        statements: DDL, in order.
        version: Written to `PRAGMA user_version`.
        application_id: Written to `PRAGMA application_id`; tells our files from others'.
        upgrade: Brings the tables from an older version, its argument, to this one, in the transaction that is open;
            without it older files are refused.
    """

    def __init__(
        self,
        statements: Sequence[str],
        *,
        version: int,
        application_id: int,
        upgrade: Callable[[sqlite3.Connection, int], None] | None = None,
    ) -> None:
        self._upgrade = upgrade
        self.statements = tuple(statements)
        self.version = version
        self.application_id = application_id

    def ensure(self, connection: sqlite3.Connection, path: str) -> None:
        """Create the tables in an empty database, migrate older ones, or check that they are current.

        All or nothing: a migration that fails leaves the file as it was.

        Raises:
            StorageError: The file was written by a newer version, or belongs to another program.
        """
        with translated(path):
            if self.version_of(connection, path) == self.version:
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                found = self.version_of(connection, path)  # another process may have been quicker
                if found is None:
                    for statement in self.statements:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {self.application_id}")
                elif found != self.version and self._upgrade is not None:
                    logger.info("Migrating %s from schema version %d to %d.", path, found, self.version)
                    self._upgrade(connection, found)
                connection.execute(f"PRAGMA user_version = {self.version}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def version_of(self, connection: sqlite3.Connection, path: str) -> int | None:
        """Version of the tables in a file; `None` when it is empty.

        Raises:
            StorageError: They are newer, older than can be migrated, or another program's.
        """
        # One statement sees one moment: another opener may be creating the tables right now.
        version, owner, filled = connection.execute(
            "SELECT user_version, application_id, EXISTS (SELECT 1 FROM sqlite_master)"
            " FROM pragma_user_version, pragma_application_id"
        ).fetchone()
        empty = not filled
        if empty and version == 0:
            return None
        if owner != self.application_id:
            raise StorageError(f"{path} is a database of another program.", hint="Give another path for the store.")
        if version > self.version or (version < self.version and self._upgrade is None):
            raise StorageError(
                f"{path} has schema version {version}; this version of agentlightning reads version {self.version}.",
                hint="Upgrade agentlightning, or use another file." if version > self.version else "",
                details={"file_version": version, "supported_version": self.version},
            )
        return version


def prepare_folder(path: Path) -> None:
    """Create the folder of a database file.

    Raises:
        StorageError: It cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"Cannot create the folder of {path}: {os.strerror(error.errno or 0)}.",
            hint="Check the path and its permissions.",
        ) from error
