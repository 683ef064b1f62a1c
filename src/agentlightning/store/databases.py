"""Which database a location names, and opening it with the store's tables. Knows no operations."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentlightning.kit.db import Announcements, BeforeCommit, Database, Session, SqliteDatabase, Synchronous
from agentlightning.kit.errors import BadInputError, ConfigError, NotFoundError
from agentlightning.store.tables import REVISIONS, postgres_ddl, sqlite_schema

if TYPE_CHECKING:
    from agentlightning.kit.db.postgres import PostgresSchema

_ALMOST_A_URL = re.compile(r"postgres\w*(\+\w+)?:(?!//)")

Location = Path | str | None
"""A file, the URL of a PostgreSQL database, or nothing: in memory."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the database shall call."""

    publish: Callable[[Announcements], None]
    """What committed operations announced."""
    before_commit: BeforeCommit
    """Writes what the operations of a transaction recorded."""
    look_again: Callable[[], None]
    """Other processes may have changed something."""
    watching: Callable[[], bool]
    """Whether anybody waits for other processes."""
    is_due: Callable[[Session], bool]
    """Whether `periodic` has anything to do."""
    periodic: Callable[[Session], object]
    periodic_s: float


def parse_location(path_or_url: str | Path | None) -> Location:
    """Tell files, PostgreSQL URLs and memory apart.

    Raises:
        ConfigError: Another kind of database.
    """
    if path_or_url is None or str(path_or_url) in (":memory:", "sqlite://", "sqlite:///:memory:"):
        return None
    text = str(path_or_url)
    if _ALMOST_A_URL.match(text):  # as a file name it would end up, password and all, in messages
        raise ConfigError(
            "The store's location is neither a file nor a URL.", hint="Write postgresql://user@host:5432/database"
        )
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if scheme.split("+")[0] in ("postgresql", "postgres"):
        return "postgresql" + text[len(scheme) :]
    if scheme and scheme != "sqlite":
        raise ConfigError(
            f"{scheme} databases are not supported.",
            hint="Give a file path, a sqlite:/// URL or a postgresql:// URL.",
        )
    return Path(text.removeprefix("sqlite:///")).expanduser().absolute()


def show_location(location: Location) -> str:
    """For messages: without a password."""
    if isinstance(location, str):
        from agentlightning.kit.db.postgres import Address

        return str(Address.parse(location))
    return str(location or ":memory:")


def require_store(location: Location) -> Path | str:
    """Make sure that there is a store to look at, and create none.

    Raises:
        NotFoundError: There is none.
        StorageError: It cannot be used, or is of another version.
        BadInputError: It would be in memory.
    """
    if location is None:
        raise BadInputError("A store in memory belongs to its process.", hint="Give a file or a postgresql:// URL.")
    if isinstance(location, str):
        from agentlightning.kit.db.postgres import Address

        postgres_schema().check(Address.parse(location))
    elif not location.exists():
        raise NotFoundError(f"There is no store at {location}.", hint="Check the path; `agl demo` makes one.")
    return location


def open_database(location: Location, hooks: Hooks, synchronous: Synchronous) -> Database:
    """Open, with the tables created when there are none.

    Raises:
        StorageError: It cannot be used; the message says why and what to do.
        MissingExtraError: PostgreSQL's driver is not installed.
    """
    if isinstance(location, str):
        return _open_postgres(location, hooks)
    return SqliteDatabase(
        location,
        sqlite_schema(),
        synchronous=synchronous,
        publish=hooks.publish,
        before_commit=hooks.before_commit,
        on_foreign_commit=hooks.look_again,
        watching=hooks.watching,
        is_due=hooks.is_due,
        periodic=hooks.periodic,
        periodic_s=hooks.periodic_s,
    )


def postgres_schema() -> PostgresSchema:
    """The store's tables. Servers are migrated by command only: older programs may be at work on them."""
    from agentlightning.kit.db.postgres import PostgresSchema

    return PostgresSchema(
        postgres_ddl(),
        known=REVISIONS,
        migrate_hint="Stop older programs that use it, then run: agl store migrate URL",
    )


def _open_postgres(url: str, hooks: Hooks) -> Database:
    from agentlightning.kit.db.postgres import Address, PostgresDatabase

    return PostgresDatabase(
        Address.parse(url),
        postgres_schema(),
        publish=hooks.publish,
        before_commit=hooks.before_commit,
        missed=hooks.look_again,
        is_due=hooks.is_due,
        periodic=hooks.periodic,
        periodic_s=hooks.periodic_s,
    )
