"""One statement for many rows: the server's work, and the driver's, is mostly per statement.

A statement written for one row is rewritten so that each parameter is an array: `INSERT ... VALUES (:a, 1)` becomes
`INSERT ... SELECT v.p_a, 1 FROM unnest(:a) AS v(p_a)`, and `UPDATE ... WHERE no = :no` gets such a `FROM`. Knows no
tables: the server tells which types the parameters have (the column's; compared with a bare number: 4-byte integers).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import LiteralString, cast

from agentlightning.kit.db.postgres.connection import Connection
from agentlightning.kit.db.session import PARAMETER, Params

_UPDATE = re.compile(r"UPDATE \w+ SET .* WHERE \w+ = :(\w+)", re.DOTALL)
_UPSERT = re.compile(r"ON CONFLICT \((\w+)\) DO UPDATE")
_types: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Batch:
    """A statement for one row that can be done for many.

    Attributes:
        sql: The statement as it is written for one row.
        names: Its parameters, in order of appearance.
        key: Parameter that says which row is changed. One statement must not change a row twice.
        head: The statement up to where the rows come in.
        tail: The rest.
    """

    sql: str
    names: tuple[str, ...]
    key: str | None
    head: str
    tail: str

    def fits(self, rows: Sequence[Params]) -> bool:
        """Whether these rows can be done at once."""
        return self.key is None or len({row[self.key] for row in rows}) == len(rows)

    def text(self, connection: Connection) -> LiteralString:
        """For the driver; each parameter is a list."""
        return _text(self, _types_of(self, connection))


@lru_cache(maxsize=1024)
def batch_of(sql: str) -> Batch | None:
    """How to do a statement for many rows at once; `None`: it has to be done row by row."""
    names = tuple(dict.fromkeys(PARAMETER.findall(sql)))
    if sql.startswith("INSERT"):
        start = sql.index("VALUES (")
        end = _closing(sql, start + len("VALUES "))
        tail = sql[end + 1 :]
        upsert = _UPSERT.search(tail)
        key = upsert.group(1) if upsert else None
        if PARAMETER.search(tail) or (key is not None and key not in names):
            return None
        return Batch(sql, names, key, f"{sql[:start]}SELECT {sql[start + len('VALUES (') : end]}", tail)
    update = _UPDATE.fullmatch(sql)
    if update is None or "SELECT" in sql:  # a query inside may depend on what the row before has changed
        return None
    where = sql.rindex(" WHERE ")
    return Batch(sql, names, update.group(1), sql[:where], sql[where:])


def _closing(sql: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(sql)):
        depth += {"(": 1, ")": -1}.get(sql[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"a bracket is left open in {sql!r}")


@lru_cache(maxsize=1024)
def _text(batch: Batch, types: tuple[str, ...]) -> LiteralString:
    def of_row(part: str) -> str:
        return PARAMETER.sub(r"v.p_\1", part.replace("%", "%%"))

    arrays = ", ".join(f"CAST(%({name})b AS {type_}[])" for name, type_ in zip(batch.names, types, strict=True))
    columns = ", ".join(f"p_{name}" for name in batch.names)
    return cast(LiteralString, f"{of_row(batch.head)} FROM unnest({arrays}) AS v({columns}){of_row(batch.tail)}")


def _types_of(batch: Batch, connection: Connection) -> tuple[str, ...]:
    """What the server takes the parameters for; asked once."""
    known = _types.get(batch.sql)
    if known is None:
        positions = {name: f"${i}" for i, name in enumerate(batch.names, 1)}
        numbered = PARAMETER.sub(lambda match: positions[match.group(1)], batch.sql)
        connection.execute(cast(LiteralString, f"PREPARE agl_types AS {numbered}"))
        query = "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'agl_types'"
        row = connection.execute(query).fetchone()
        connection.execute("DEALLOCATE agl_types")
        assert row is not None
        known = _types[batch.sql] = tuple(row[0])
    return known
