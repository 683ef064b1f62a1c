"""PostgreSQL for the tool `database`: a transaction that the server holds read-only, with the server's own clock."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from agentlightning.kit.errors import BadInputError, MissingExtraError
from agentlightning.tools.base import ToolDeniedError, ToolTimeoutError, ToolUnavailableError
from agentlightning.tools.database.rows import Rows, taken
from agentlightning.tools.settings import DatabaseSettings

_CONNECT_S = 10
_COLUMNS = """
    select table_schema, table_name, column_name, data_type from information_schema.columns
    where table_schema not in ('pg_catalog', 'information_schema') order by 1, 2, ordinal_position limit 5000
"""


async def run(url: str, sql: str, writes: bool, settings: DatabaseSettings) -> Rows:
    """Execute a checked statement.

    Raises:
        BadInputError: PostgreSQL does not take it.
        ToolDeniedError: It would write, or lacks a right.
        ToolTimeoutError: It took too long.
        ToolUnavailableError: The server cannot be reached.
    """
    psycopg = _library()
    connection = await _connect(url, writes, settings)
    try:
        async with connection:
            if writes:
                cursor = await connection.execute(_escaped(sql), (), binary=False)
                return Rows([], [], changed=cursor.rowcount)
            async with connection.cursor(name="result") as cursor:
                await cursor.execute(_escaped(sql), ())
                rows = await cursor.fetchmany(settings.max_rows + 1)
                return taken([column.name for column in cursor.description or ()], rows, settings)
    except psycopg.Error as error:
        raise _told(psycopg, error, settings) from error


async def schema(url: str, settings: DatabaseSettings) -> list[dict[str, Any]]:
    """Tables with their columns.

    Raises:
        ToolUnavailableError: The server cannot be reached.
    """
    psycopg = _library()
    connection = await _connect(url, False, settings)
    found: dict[str, dict[str, Any]] = {}
    known = None if settings.tables is None else {name.lower() for name in settings.tables}
    try:
        async with connection:
            cursor = await connection.execute(_COLUMNS)
            own = _split(url)[1] or "public"
            for folder, name, column, kind in await cursor.fetchall():
                whole = name if folder == own else f"{folder}.{name}"
                if known is None or whole.lower() in known:
                    entry = found.setdefault(whole, {"table": whole, "kind": "table", "columns": []})
                    entry["columns"].append(f"{column} {kind}")
    except psycopg.Error as error:
        raise ToolUnavailableError(f"The database cannot be read: {_first(error)}.") from error
    return list(found.values())


def _library() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError(
            "PostgreSQL needs the package psycopg.", hint="Run: pip install 'agentlightning[postgres]'"
        ) from error
    return psycopg


async def _connect(url: str, writes: bool, settings: DatabaseSettings) -> Any:
    psycopg = _library()
    milliseconds = int(settings.timeout_s * 1000)
    read_only = "off" if writes else "on"
    options = f"-c statement_timeout={milliseconds} -c default_transaction_read_only={read_only} -c lock_timeout=3000"
    url, schema = _split(url)
    if schema:
        options += f" -c search_path={schema}"
    try:
        connection = await psycopg.AsyncConnection.connect(
            url, options=options, connect_timeout=_CONNECT_S, application_name="agentlightning-tools"
        )
        await connection.set_read_only(not writes)
    except psycopg.Error as error:
        # The message may hold the address, and it goes to a model.
        raise ToolUnavailableError(f"The database cannot be reached ({type(error).__name__}).") from error
    return connection


def _split(url: str) -> tuple[str, str]:
    """The address as libpq knows it, and the schema that ours may name in `?schema=`."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    schema = dict(query).get("schema", "")
    if schema and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", schema):
        raise ToolUnavailableError("The schema in the database's address is no plain name.")
    rest = [(name, value) for name, value in query if name != "schema"]
    return urlunsplit(parts._replace(query=urlencode(rest))), schema


def _escaped(sql: str) -> str:
    """With parameters, even none, one statement only is taken, and % has to be doubled."""
    return sql.replace("%", "%%")


def _told(psycopg: Any, error: Any, settings: DatabaseSettings) -> Exception:
    if isinstance(error, psycopg.errors.QueryCanceled):
        return ToolTimeoutError(f"The query took longer than {settings.timeout_s:g} s.", hint="Ask for less.")
    if isinstance(error, (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege)):
        return ToolDeniedError(f"The database refused it: {_first(error)}.")
    return BadInputError(f"The database says: {_first(error)}.", hint="Look at the schema.")


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
