"""Values kept in pieces, in `payloads`: put together for the reader, and taken along where a selection needs them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec.msgpack import Ext
from sqlalchemy import select

from agentlightning.kit.db import Row, Session
from agentlightning.store import pieces
from agentlightning.store.endpoints import BATCH, Endpoint
from agentlightning.store.ops import payloads
from agentlightning.store.transfer.plan import TablePlan, kind_of

PAYLOADS = "payloads"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class LargeValues:
    """Reads what references stand for.

    Args:
        session: Of the source's transaction.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, extension: Ext) -> Any:
        """The value, or the extension itself when it is no reference.

        Raises:
            PayloadError: A piece is missing or damaged.
        """
        if extension.code not in pieces.KINDS:
            return extension
        row = payloads.resolve_one(self._session, ("a row of the export", _encode(extension)), 1)
        assert row is not None
        return _decode(row[1])


class References:
    """The pieces that selected rows need, collected on the disk: there may be millions.

    Args:
        path: File for them; removed on closing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        self._connection.execute("CREATE TABLE needed (hash TEXT PRIMARY KEY) WITHOUT ROWID")

    def watch(self, plan: TablePlan, batches: Iterator[list[Row]]) -> Iterator[list[Row]]:
        """Pass rows on and note what they need."""
        packed = [i for i, column in enumerate(plan.table.columns) if kind_of(column) == "json"]
        for rows in batches:
            found = {digest for row in rows for i in packed for digest in _needed(row[i])}
            self._connection.executemany("INSERT OR IGNORE INTO needed VALUES (?)", [(digest,) for digest in found])
            yield rows

    def count(self) -> int:
        """How many pieces."""
        return self._connection.execute("SELECT count(*) FROM needed").fetchone()[0]

    def rows(self, source: Endpoint, plan: TablePlan, after: int, up_to: int | None) -> Iterator[list[Row]]:
        """The rows of `payloads` that are needed, in the order of `no`."""
        where = plan.table.c.no > after
        if up_to is not None:
            where &= plan.table.c.no <= up_to
        statement = select(plan.table.c.no, plan.table.c.hash).where(where).order_by(plan.table.c.no)
        for batch in source.stream(statement):
            needed = [no for no, digest in batch if self._has(digest)]
            for start in range(0, len(needed), BATCH):
                numbers = needed[start : start + BATCH]
                yield source.run(select(*plan.table.columns).where(plan.table.c.no.in_(numbers)).order_by("no"))

    def _has(self, digest: str) -> bool:
        return self._connection.execute("SELECT 1 FROM needed WHERE hash = ?", (digest,)).fetchone() is not None

    def close(self) -> None:
        """Forget all."""
        self._connection.close()
        self._path.unlink(missing_ok=True)


def _needed(blob: bytes | None) -> Iterator[str]:
    if pieces.is_stashed(blob):
        assert blob is not None
        yield from pieces.hashes_in(blob)
