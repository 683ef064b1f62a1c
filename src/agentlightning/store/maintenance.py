"""Looking after a store's database: migrate, describe, compact, back up, restore, copy. Knows no operations."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, LiteralString, cast

from agentlightning.kit.db.sqlite import connect, translated
from agentlightning.kit.errors import ConflictError
from agentlightning.kit.files import storage_error
from agentlightning.store.databases import Location, parse_location, postgres_schema, require_store
from agentlightning.store.endpoints import TABLE_NAMES, Endpoint, PostgresEndpoint, open_endpoint, settle
from agentlightning.store.progress import Progress, silent
from agentlightning.store.tables import REVISIONS, metadata, sqlite_schema
from agentlightning.store.transfer.copying import copy_store

_TABLES = metadata.sorted_tables
_BACKUP_PAGES = 2000


def _existing_file(location: Location) -> Path:
    return cast(Path, require_store(location))


def migrate(path_or_url: str | Path) -> tuple[str, str]:
    """Bring the tables to the version of this program; returns the version before and after. All or nothing.

    Raises:
        NotFoundError: There is no such file.
        StorageError: The tables are newer, or another program's.
    """
    location = parse_location(path_or_url)
    if isinstance(location, str):
        return _migrate_postgres(location)
    path = _existing_file(location)
    schema = sqlite_schema()
    connection = connect(path)
    try:
        before = schema.version_of(connection, str(path))
        schema.ensure(connection, str(path))
    finally:
        connection.close()
    return ("none" if before is None else f"{before:04}", REVISIONS[-1])


def _migrate_postgres(url: str) -> tuple[str, str]:
    from sqlalchemy import create_engine

    from agentlightning.kit.db.postgres import Address
    from agentlightning.kit.db.postgres.connection import connect as connect_postgres
    from agentlightning.store.migrations import upgrade

    address = Address.parse(url)
    schema = postgres_schema()
    before = schema.version_of(address)
    if before is None:
        schema.ensure(address)
    elif before != schema.version:

        def connection() -> Any:
            opened = connect_postgres(address)
            opened.autocommit = False
            return opened

        engine = create_engine("postgresql+psycopg://", creator=connection)
        try:
            with engine.begin() as wrapped:
                schema.lock(wrapped.connection.driver_connection)
                upgrade(wrapped, current=before)
        finally:
            engine.dispose()
    return (before or "none", schema.version)


def info(path_or_url: str | Path) -> dict[str, Any]:
    """What is in a store: version, size in bytes, that of payloads, rows by table, rollouts by status, first and last.

    Raises:
        NotFoundError: There is no such file.
        StorageError: It cannot be read, or its version is another one.
    """
    location = parse_location(path_or_url)
    source = open_endpoint(location)
    try:
        first, last = source.query("SELECT min(start_time), max(start_time) FROM rollouts")[0]
        return {
            "store": source.name,
            "database": "postgresql" if isinstance(source, PostgresEndpoint) else "sqlite",
            "schema_version": REVISIONS[-1],
            "bytes": _bytes(source, location),
            "payloads": {
                name: int(source.query(cast(LiteralString, f"SELECT coalesce(sum({column}), 0) FROM payloads"))[0][0])
                for name, column in (("bytes", "size"), ("stored_bytes", "length(data)"))
            },
            "rows": {str(table.name): source.count(table) for table in _TABLES},
            "rollouts_by_status": dict(
                source.query("SELECT status, count(*) FROM rollouts GROUP BY status ORDER BY status")
            ),
            "first_rollout_at": first,
            "last_rollout_at": last,
        }
    finally:
        source.close()


def _bytes(source: Endpoint, location: Location) -> int:
    if isinstance(location, Path):
        return sum(p.stat().st_size for p in (location, Path(f"{location}-wal")) if p.exists())
    return int(
        source.query(
            """SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
            WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace"""
        )[0][0]
    )


def vacuum(path_or_url: str | Path) -> tuple[int, int]:
    """Give back unused space and renew the statistics that queries are planned by; returns bytes before and after.

    Raises:
        NotFoundError: There is no such file.
        StorageError: It cannot be used; for a file: it is in use, or the disk lacks the space for a second copy.
    """
    location = parse_location(path_or_url)
    before = info(path_or_url)["bytes"]
    if isinstance(location, str):
        from agentlightning.kit.db.postgres import Address
        from agentlightning.kit.db.postgres.connection import connect as connect_postgres

        connection = connect_postgres(Address.parse(location))
        with connection:
            connection.execute(cast(LiteralString, f"VACUUM (ANALYZE) {TABLE_NAMES}"))
    else:
        path = _existing_file(location)
        file = connect(path)
        try:
            with translated(str(path)):
                for statement in ("VACUUM", "ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"):
                    file.execute(statement).fetchall()
        finally:
            file.close()
    return before, info(path_or_url)["bytes"]


def copy(source: str | Path, target: str | Path, progress: Progress = silent) -> dict[str, int]:
    """Copy everything into an empty store, created when missing; returns the rows by table.

    The copy is one moment of the source, which may be in use, and appears at once. Interrupted, it leaves the target as
    it was; the same call continues.

    Raises:
        NotFoundError: There is no such source.
        ConflictError: The target holds something.
        BadInputError: A value does not fit the target.
        BusyError: Another copy into the target is under way.
    """
    return copy_store(source, target, progress)


def backup(path_or_url: str | Path, file: Path, progress: Progress = silent) -> dict[str, int]:
    """Write a store, which may be in use, to one SQLite file; returns the rows by table.

    The file is a store itself. It appears under its name only when it is complete.

    Raises:
        ConflictError: The file exists.
        NotFoundError: There is no such store.
        StorageError: The file cannot be written.
    """
    if file.exists():
        raise ConflictError(f"{file} exists already.", hint="Nothing is overwritten: give another name.")
    partial = file.with_name(file.name + ".part")
    try:
        _remove(partial)  # of a backup that was killed
        try:
            return _write_backup(parse_location(path_or_url), partial, file, progress)
        finally:
            _remove(partial)
    except OSError as error:
        raise storage_error(file, error) from error


def _remove(partial: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{partial}{suffix}").unlink(missing_ok=True)


def _write_backup(location: Location, partial: Path, file: Path, progress: Progress) -> dict[str, int]:
    if isinstance(location, Path):
        _copy_file(_existing_file(location), partial, progress)
    else:
        copy(cast(str, location), partial, progress)
    settle(partial)
    rows = info(partial)["rows"]
    os.replace(partial, file)
    return rows


def _copy_file(path: Path, target: Path, progress: Progress) -> None:
    """Page by page, consistent although others write."""

    def report(_: int, remaining: int, total: int) -> None:
        progress(1 - remaining / max(1, total), "pages")

    source = connect(path, read_only=True)
    try:
        sqlite_schema().version_of(source, str(path))  # a newer store is refused before it is copied
        with translated(str(target)):
            written = sqlite3.connect(target)
            try:
                source.backup(written, pages=_BACKUP_PAGES, progress=report)
            finally:
                written.close()
    finally:
        source.close()


def restore(file: Path, path_or_url: str | Path, progress: Progress = silent) -> dict[str, int]:
    """Fill an empty store, created when missing, from a backup; returns the rows by table.

    Raises:
        NotFoundError: There is no such file.
        ConflictError: The store holds something.
    """
    return copy(file, path_or_url, progress)
