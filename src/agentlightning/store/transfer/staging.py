"""A store that is filled part by part beside its target and becomes part of it at once. Nobody sees it before.

Next to a file it is `FILE.transfer`, next to a PostgreSQL schema `SCHEMA_transfer`; both are gone when all is done. A
ledger in it says which parts are in, so that an interrupted transfer continues. References between rows are not
enforced in it, since rows come in any order; they are when it is published.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, delete, insert, select
from sqlalchemy.schema import CreateIndex, CreateTable

from agentlightning.kit.db import Row
from agentlightning.kit.db.sqlite import translated
from agentlightning.kit.errors import BadInputError, BusyError, ConflictError
from agentlightning.kit.files import exclusive_lock
from agentlightning.store.databases import Location, postgres_schema
from agentlightning.store.endpoints import Endpoint, PostgresEndpoint, SqliteEndpoint, open_endpoint, settle
from agentlightning.store.tables import REVISIONS, metadata, rollouts
from agentlightning.store.transfer.merge import merge
from agentlightning.store.transfer.plan import TablePlan

_ledger_metadata = MetaData()
_ledger = Table(
    "transfer_ledger",
    _ledger_metadata,
    Column("transfer", Text, nullable=False),
    Column("name", Text, primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("last_no", BigInteger, nullable=False),
)


class Entry(msgspec.Struct):
    """A part that is in.

    Attributes:
        digest: Of its rows, or its file.
        last_no: Highest `no` in it.
    """

    digest: str
    last_no: int


class Staging(ABC):
    """See the module. Use `open_staging`.

    Attributes:
        store: The store that is filled.
    """

    store: Endpoint

    def __init__(self, transfer: str) -> None:
        self._transfer = transfer

    def entries(self, plan: TablePlan) -> list[Entry]:
        """Parts of a table that are in, in order; none are missing between them."""
        rows = self.store.run(
            select(_ledger.c.part, _ledger.c.digest, _ledger.c.last_no)
            .where(_ledger.c.name == plan.name)
            .order_by(_ledger.c.part)
        )
        return [Entry(digest, last) for number, (part, digest, last) in enumerate(rows) if part == number]

    def put(
        self, plan: TablePlan, part: int, after: int, batches: Iterable[Sequence[Row]], digest: Callable[[], str]
    ) -> Entry:
        """Write a part in one transaction, in place of what an earlier attempt put there.

        Args:
            plan: Of the table.
            part: Its number.
            after: Highest `no` of the part before.
            batches: Rows with all columns, in the order of `no`.
            digest: Called after the last row.
        """
        table = plan.table
        with self.store.transaction():
            last = after
            for rows in batches:
                if not rows:
                    continue
                self.store.run(delete(table).where(table.c.no > last, table.c.no <= rows[-1][0]))
                self.store.write(table, rows)
                last = rows[-1][0]
            entry = Entry(digest(), last)
            self.store.run(delete(_ledger).where(_ledger.c.name == plan.name, _ledger.c.part == part))
            self.store.run(
                insert(_ledger).values(
                    transfer=self._transfer, name=plan.name, part=part, digest=entry.digest, last_no=last
                )
            )
        return entry

    def cut(self, plan: TablePlan, parts: int, last_no: int) -> None:
        """Forget what an earlier attempt put behind the last part."""
        with self.store.transaction():
            self.store.run(delete(plan.table).where(plan.table.c.no > last_no))
            self.store.run(delete(_ledger).where(_ledger.c.name == plan.name, _ledger.c.part >= parts))

    def _is_ours(self) -> bool:
        rows = self.store.run(select(_ledger.c.transfer).limit(1))
        return not rows or rows[0][0] == self._transfer

    @abstractmethod
    def publish(self, *, into_empty: bool) -> dict[str, int]:
        """Add everything to the target at once; returns how many rows of each table were new.

        Raises:
            ConflictError: The target has other rows of the same identity, or is not empty though `into_empty`.
            BadInputError: A row refers to one that is missing.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forget everything."""

    @abstractmethod
    def close(self) -> None:
        """Let go; what is in stays."""


class _SqliteStaging(Staging):
    def __init__(self, target: Path, transfer: str) -> None:
        super().__init__(transfer)
        self._target = target
        self.path = target.with_name(f"{target.name}.transfer")
        self._finished = target.with_name(f"{target.name}.transfer-done")
        self._finished.unlink(missing_ok=True)  # killed in its last moments, perhaps as the target already
        self._open()
        if not self._is_ours():
            self.discard()
            self._open()

    def _open(self) -> None:
        self.store = self._file = SqliteEndpoint(self.path, to_write=True)
        ledgers = self.store.query("SELECT count(*) FROM sqlite_master WHERE name = 'transfer_ledger'")[0][0]
        if not ledgers and self.store.run(select(rollouts.c.no).limit(1)):
            self.store.close()
            raise ConflictError(
                f"{self.path} is in the way: it is a store, not what a transfer left.", hint="Move it away."
            )
        with translated(str(self.path)):
            self._file.connection.execute("PRAGMA foreign_keys = OFF")
            self.store.run(CreateTable(_ledger, if_not_exists=True))

    def publish(self, *, into_empty: bool) -> dict[str, int]:
        if not self._target.exists() and (counts := self._become_the_target()) is not None:
            return counts
        self.store.close()
        staged = self._finished if self._finished.exists() else self.path
        target = SqliteEndpoint(self._target, to_write=True)
        try:
            with translated(str(self._target)):
                target.connection.execute("ATTACH ? AS staging", (str(staged),))
                target.connection.execute("PRAGMA temp_store = FILE")  # what is sorted may be large
            with target.transaction(alone=True):
                counts = merge(target, "staging", "main", into_empty=into_empty)
        finally:
            target.close()
        self.discard()
        return counts

    def _become_the_target(self) -> dict[str, int] | None:
        """Much faster than copying. `None`: somebody else has made the target meanwhile."""
        missing = self._file.connection.execute("PRAGMA foreign_key_check").fetchmany(1)
        if missing:
            raise BadInputError(
                f"A row of {missing[0][0]} refers to a row of {missing[0][2]} that is missing.",
                hint="Export again; the archive was put together by hand, or by another program.",
            )
        counts = {str(table.name): self.store.count(table) for table in metadata.sorted_tables}
        self.store.close()
        settle(self.path)
        os.replace(self.path, self._finished)
        with translated(str(self._finished)), contextlib.closing(sqlite3.connect(self._finished)) as connection:
            connection.execute(f"DROP TABLE {_ledger.name}")
            connection.commit()
        if not give_name(self._finished, self._target):
            return None
        return counts

    def discard(self) -> None:
        self.store.close()
        for suffix in ("", "-wal", "-shm", "-done"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        self.store.close()


def give_name(file: Path, name: Path) -> bool:
    """Rename, but overwrite nothing; whether it was done."""
    try:
        os.link(file, name)
    except FileExistsError:
        return False
    except OSError:  # no second names on this disk
        if name.exists():
            return False
        os.replace(file, name)
        return True
    file.unlink()
    return True


class _PostgresStaging(Staging):
    def __init__(self, url: str, transfer: str) -> None:
        from agentlightning.kit.db.postgres import Address

        super().__init__(transfer)
        self._final = Address.parse(url)
        self.address = replace(self._final, schema=staging_schema(self._final.schema))
        self._target = open_endpoint(url, to_write=True)
        assert isinstance(self._target, PostgresEndpoint)
        try:
            self._lock()
            self._open()
            if not self._is_ours():
                self._drop()
                self._open()
        except BaseException:
            self._target.close()
            raise

    def _lock(self) -> None:
        target: Any = self._target
        held = target.connection.execute(
            "SELECT pg_try_advisory_lock(hashtext(%s), 2)", (f"{self.address.schema}",)
        ).fetchone()[0]
        if not held:
            raise BusyError(
                f"Another transfer into {self._target.name} is under way.", hint="Wait until it is done, or stop it."
            )

    def _open(self) -> None:
        schema = self._schema()
        if schema.version_of(self.address) not in (None, schema.version):
            self._remove()  # left by another version
        self.store = PostgresEndpoint(self.address, to_write=True, schema=schema)

    @staticmethod
    def _schema() -> Any:
        from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

        from agentlightning.kit.db.postgres import PostgresSchema

        dialect = PGDialect_psycopg()
        statements: list[str] = []
        for table in (*metadata.sorted_tables, _ledger):
            statements.append(str(CreateTable(table, include_foreign_key_constraints=[]).compile(dialect=dialect)))
            statements += [str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes]
        return PostgresSchema(statements, known=REVISIONS, migrate_hint="Remove it.")

    def publish(self, *, into_empty: bool) -> dict[str, int]:
        target = self._target
        assert isinstance(target, PostgresEndpoint)
        with target.transaction(alone=True):
            counts = merge(target, self.address.schema, self._final.schema, into_empty=into_empty)
            target.renumber()
            target.announce()
        self.discard()
        return counts

    def _drop(self) -> None:
        self.store.close()
        self._remove()

    def _remove(self) -> None:
        from psycopg import sql

        target: Any = self._target
        target.connection.execute(
            sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.address.schema))
        )

    def discard(self) -> None:
        self._drop()

    def close(self) -> None:
        self.store.close()
        self._target.close()


def staging_schema(schema: str) -> str:
    """Name of the schema beside `schema`."""
    return f"{schema[:39]}_transfer"


@contextmanager
def open_staging(target: Location, transfer: str, *, into_empty: bool) -> Generator[Staging]:
    """Open what an interrupted transfer left, or begin.

    Args:
        target: Where everything shall go in the end.
        transfer: Tells one transfer from another; what another one left is removed.
        into_empty: Refuse a target that holds something, before anything is done.

    Raises:
        BusyError: Another transfer into the target is under way.
        ConflictError: The target holds something though it must not.
        StorageError: The target cannot be written.
    """
    if target is None:
        raise BadInputError("A store in memory belongs to its process.", hint="Give a file or a postgresql:// URL.")
    with ExitStack() as stack:
        if isinstance(target, Path):
            if target.exists() or into_empty:
                _check_target(target, into_empty)
            lock = target.with_name(f"{target.name}.transfer.lock")
            stack.enter_context(exclusive_lock(lock, purpose=f"A transfer into {target}", remove=True))
            staging: Staging = _SqliteStaging(target, transfer)
        else:
            postgres_schema()  # says which package is missing
            if into_empty:
                _check_target(target, into_empty)
            staging = _PostgresStaging(target, transfer)
        stack.callback(staging.close)
        try:
            yield staging
        except (ConflictError, BadInputError):
            staging.discard()  # repeating would not help
            raise


def _check_target(target: Path | str, into_empty: bool) -> None:
    if isinstance(target, Path) and not target.exists():
        return
    endpoint = open_endpoint(target, to_write=True)
    try:
        if into_empty:
            check_empty(endpoint)
    finally:
        endpoint.close()


def check_empty(target: Endpoint) -> None:
    """Refuse a store that holds something.

    Raises:
        ConflictError: It does.
    """
    for table in metadata.sorted_tables:
        if target.run(select(table.c.no).limit(1)):
            raise ConflictError(
                f"{target.name} is not empty: it has {target.count(table)} {table.name}.",
                hint="Nothing is overwritten: give another target, or move this one away.",
            )
