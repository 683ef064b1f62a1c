"""SQLite for the tool `database`: opened read-only, behind SQLite's own authorizer, with limits and a clock."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentlightning.kit.errors import BadInputError
from agentlightning.tools.base import ToolDeniedError, ToolTimeoutError, ToolUnavailableError
from agentlightning.tools.database.rows import Rows, taken
from agentlightning.tools.settings import DatabaseSettings

_STEPS = 2_000  # virtual machine steps between looks at the clock
_LONGEST_VALUE = 4 * 2**20
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_WRITES = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
_NO_FUNCTIONS = frozenset({"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "sqlite_dbpage"})


def run(path: Path, sql: str, writes: bool, settings: DatabaseSettings) -> Rows:
    """Execute a checked statement. Blocks; call it in a thread.

    Raises:
        BadInputError: SQLite does not take it.
        ToolDeniedError: Its authorizer refused it.
        ToolTimeoutError: It took too long.
    """
    over = time.monotonic() + settings.timeout_s
    connection = _open(path, writes)
    try:
        _limit(connection)
        connection.set_authorizer(_authorizer(settings, writes))
        connection.set_progress_handler(lambda: time.monotonic() > over, _STEPS)
        with connection:
            cursor = connection.execute(sql)
            names = [column[0] for column in cursor.description or ()]
            found = taken(names, cursor, settings) if names else Rows([], [], changed=cursor.rowcount)
        return found
    except sqlite3.Error as error:
        raise _told(error, over, settings) from error
    finally:
        connection.close()


def schema(path: Path, settings: DatabaseSettings) -> list[dict[str, Any]]:
    """Tables with their columns.

    Raises:
        ToolUnavailableError: The file cannot be opened.
    """
    connection = _open(path, False)
    try:
        names = connection.execute(
            "select name, type from sqlite_master where type in ('table', 'view') and name not like 'sqlite_%' "
            "order by 1"
        ).fetchall()
        found: list[dict[str, Any]] = []
        for name, kind in names:
            if settings.tables is None or name.lower() in {table.lower() for table in settings.tables}:
                columns = connection.execute("select name, type from pragma_table_info(?)", (name,)).fetchall()
                found.append({"table": name, "kind": kind, "columns": [f"{c} {t}".strip() for c, t in columns]})
        return found
    except sqlite3.Error as error:
        raise ToolUnavailableError(f"The database cannot be read: {error}.") from error
    finally:
        connection.close()


def _open(path: Path, writes: bool) -> sqlite3.Connection:
    try:
        address = f"{path.resolve().as_uri()}?mode={'rw' if writes else 'ro'}"
        return sqlite3.connect(address, uri=True, timeout=5.0, check_same_thread=False)
    except sqlite3.Error as error:
        raise ToolUnavailableError(f"The database {path.name} cannot be opened: {error}.") from error


def _limit(connection: sqlite3.Connection) -> None:
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
    ):
        connection.setlimit(limit, value)


def _authorizer(settings: DatabaseSettings, writes: bool) -> Callable[..., int]:
    tables = None if settings.tables is None else {name.lower() for name in settings.tables}

    def authorize(action: int, first: str | None, second: str | None, _: object, view: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_DENY if (second or "").lower() in _NO_FUNCTIONS else sqlite3.SQLITE_OK
        named = {(first or "").lower(), (view or "").lower()}  # a view may read what it is made of
        if tables is not None and action in (sqlite3.SQLITE_READ, *_WRITES) and not named & tables:
            return sqlite3.SQLITE_DENY
        if action in _ALLOWED or (writes and action in {*_WRITES, sqlite3.SQLITE_TRANSACTION}):
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    return authorize


def _told(error: sqlite3.Error, over: float, settings: DatabaseSettings) -> Exception:
    said = str(error)
    if "interrupted" in said and time.monotonic() > over:
        return ToolTimeoutError(f"The query took longer than {settings.timeout_s:g} s.", hint="Ask for less.")
    if "not authorized" in said or "readonly" in said or "prohibited" in said:
        return ToolDeniedError(f"The database refused it: {said}.")
    return BadInputError(f"The database says: {said}.", hint="Look at the schema.")
