"""PostgreSQL connections: addresses, session settings, and the server's errors in our words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from agentlightning.kit.errors import AgentLightningError, BadInputError, ConfigError, MissingExtraError, StorageError

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise MissingExtraError(
        "PostgreSQL needs the package psycopg.", hint="Run: pip install 'agentlightning[postgres]'"
    ) from error

CONNECT_TIMEOUT_S = 10
LOCK_WAIT_S = 15.0
DEFAULT_SCHEMA = "agentlightning"

Connection = psycopg.Connection[tuple[Any, ...]]

_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")

# By SQLSTATE, the longest prefix first.
_PROBLEMS: dict[str, tuple[str, str]] = {
    "53100": ("its disk is full", "Free some space on the server and try again."),
    "53300": ("it has no connection left", "Raise max_connections, or close other programs."),
    "53": ("it is out of resources", "Look at the server's memory and disk, then try again."),
    "55P03": (
        f"another connection held a lock for more than {LOCK_WAIT_S:.0f} s",
        "Look for a stopped process that is connected to it, then try again.",
    ),
    "25006": ("it is read-only", "Connect to the primary server, not to a standby."),
    "42501": ("permission was denied", "Grant the user CREATE on the database, or give a schema that it owns."),
    "28": ("it refused the user or the password", "Check both in the URL; ~/.pgpass and PGPASSWORD work, too."),
    "3D000": ("the database does not exist", "Create it: createdb NAME."),
    "3F000": ("the schema does not exist", "Somebody removed it; open the store again to create it."),
    "42P01": ("a table is missing", "Somebody removed it, or the schema is another program's; restore a backup."),
    "XX": ("it is damaged", "Look at the server's log; restore a backup."),
    "57014": ("the server cancelled the statement", "Look at its statement_timeout, then try again."),
}
_CALLERS_FAULT = {
    "22": "A value does not fit the database",
    "54": "A value is larger than the database takes",
}
_REFUSALS = (
    (r"FATAL: +database .* does not exist", "3D000"),
    (r"authentication failed|no password supplied|pg_hba\.conf|FATAL: +role ", "28000"),
    (r"too many (connections|clients)|connection slots", "53300"),
)
RETRY = frozenset({"40001", "40P01", "23505"})
"""Serialization failure, deadlock, and a row that somebody else inserted a moment earlier: next time it is seen."""


def _bad_url() -> ConfigError:
    # The parser's own words quote what they stumbled over, which may be a part of the password.
    return ConfigError(
        "This is no URL of a PostgreSQL database.",
        hint="Write postgresql://user:password@host:5432/database; in a password @ is %40, / is %2F, # is %23.",
    )


@dataclass(frozen=True)
class Address:
    """Where the tables are: a server and database (`conninfo`, for libpq) and a schema in it."""

    conninfo: str
    schema: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """From `postgresql://user:password@host:port/database?schema=name`; libpq's parameters are allowed, too.

        Raises:
            ConfigError: It is no such URL.
        """
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise _bad_url() from error
        if "@" in parts.path or parts.netloc.count("@") > 1 or parts.fragment:
            raise _bad_url()  # an unescaped password, of which a part would pass for the host
        query = dict(parse_qsl(parts.query))
        schema = query.pop("schema", DEFAULT_SCHEMA)
        if not _SCHEMA_NAME.fullmatch(schema):
            raise ConfigError(
                f"{schema!r} is no usable schema name.", hint="Use up to 48 lower-case letters, digits and underscores."
            )
        conninfo = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(query), ""))
        try:
            conninfo_to_dict(conninfo)
        except psycopg.Error as error:
            raise _bad_url() from error
        return cls(conninfo, schema)

    def __str__(self) -> str:
        """Without the password."""
        known = conninfo_to_dict(self.conninfo)
        host, port = known.get("host") or "localhost", known.get("port")
        place = f"{host}:{port}" if port else str(host)
        return f"postgresql://{place}/{known.get('dbname') or known.get('user') or ''}?schema={self.schema}"

    @property
    def channel(self) -> str:
        """Name of the notification channel."""
        return f"agl_{self.schema}"


def connect(address: Address, *, read_only: bool = False, name: str = "writer") -> Connection:
    """Open a connection in autocommit mode that notices within seconds when the server is gone.

    Raises:
        StorageError: The server cannot be reached or refuses.
    """
    try:
        connection: Connection = psycopg.connect(
            address.conninfo,
            autocommit=True,
            prepare_threshold=2,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=f"agentlightning {name} {address.schema}",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=30_000,
        )
    except psycopg.Error as error:
        raise translate(error, address) or error from error
    # The two time limits free what a stopped process holds.
    connection.execute(
        """SELECT set_config('search_path', %s, false), set_config('lock_timeout', %s, false),
        set_config('idle_in_transaction_session_timeout', %s, false), set_config('TimeZone', 'UTC', false),
        set_config('default_transaction_read_only', %s, false), set_config('client_min_messages', 'warning', false)""",
        (
            f'"{address.schema}", pg_catalog',
            f"{1000 * LOCK_WAIT_S:.0f}ms",
            f"{1000 * LOCK_WAIT_S:.0f}ms",
            "on" if read_only else "off",
        ),
    )
    return connection


def _state(error: psycopg.Error) -> str:
    """SQLSTATE; for a refused connection the driver passes on the text only."""
    if error.sqlstate or not isinstance(error, psycopg.OperationalError):
        return error.sqlstate or ""
    text = str(error)
    return next((state for pattern, state in _REFUSALS if re.search(pattern, text)), "")


def is_lost(error: psycopg.Error, connection: Connection | None) -> bool:
    """Whether it is the connection that failed, not the statement."""
    if connection is None or connection.closed:
        return True
    if not error.sqlstate:  # the client's own complaint: about the connection, or about a value
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate[:2] == "08" or error.sqlstate[:3] == "57P"


def translate(error: psycopg.Error, address: Address) -> AgentLightningError | None:
    """Our error for the server's, or `None` when it is a fault of the program (a constraint, wrong SQL)."""
    state = _state(error)
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if state[:2] in _CALLERS_FAULT or (not state and isinstance(error, psycopg.DataError)):
        return BadInputError(f"{_CALLERS_FAULT.get(state[:2], _CALLERS_FAULT['22'])}: {text}.")
    for length in (5, 2):
        if state[:length] in _PROBLEMS:
            what, hint = _PROBLEMS[state[:length]]
            break
    else:
        if not isinstance(error, psycopg.OperationalError):
            return None
        what, hint = f"the server cannot be reached ({text})", "Check that it runs and that host and port are right."
    details = {"address": str(address), "sqlstate": state, "text": text}
    return StorageError(f"Cannot use the database {address}: {what}.", hint=hint, details=details)


def reconnect(
    address: Address,
    *,
    until: float,
    give_up: Callable[[], bool],
    connect: Callable[[Address], Connection] = connect,
) -> Connection:
    """Connect, trying again until `time.monotonic()` is `until` or `give_up()`; a refusal other than that is final.

    Raises:
        StorageError: The last attempt's.
    """
    pause_s = 0.05
    while True:
        try:
            return connect(address)
        except StorageError as error:
            # No state: nobody listens there, or the server is starting up.
            if error.details.get("sqlstate") not in ("", "53300") or give_up() or time.monotonic() > until:
                raise
        time.sleep(pause_s)  # in threads of the database only; nothing tells when a server is back
        pause_s = min(1.0, 2 * pause_s)
