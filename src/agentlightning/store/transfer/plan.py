"""What has to be known about the tables to move their rows, read off the tables themselves. Knows no databases.

Rows refer to each other by `no`, which means something in one database only. Across databases a row is recognised by
its identity: a unique name, or a unique combination, or, where it has neither, all that it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from sqlalchemy import BigInteger, Column, Float, Integer, LargeBinary, Table, Text, UniqueConstraint

from agentlightning.store.tables import metadata

Kind = Literal["integer", "number", "text", "bytes", "json"]
"""Of a column's values in an archive; `json` is a packed value, unpacked."""

PACKED = "packed_"

IGNORED: dict[str, frozenset[str]] = {
    # The same piece may have been compressed by another library, and is kept alive by each database for itself.
    "payloads": frozenset({"epoch", "data"}),
    "rollouts": frozenset({"queue_position"}),
    "resources": frozenset({"position"}),
}
"""Columns in which the same row may differ between two stores."""

FIRST_WINS = frozenset({"workers"})
"""Tables of present conditions: where both stores have a row, the target's stays."""

LOCAL = frozenset({"payload_epochs"})
"""Tables that mean something in their own database only: they move into an empty store, and are not merged."""


@dataclass(frozen=True)
class Parent:
    """A column that refers to another table's `no`."""

    column: str
    table: Table


@dataclass(frozen=True)
class TablePlan:
    """One table.

    Attributes:
        table: It.
        identity: Columns by which its rows are recognised in another database.
        is_named: Whether no two rows of a database have the same identity.
        parents: Columns that refer to other rows.
    """

    table: Table
    identity: tuple[str, ...]
    is_named: bool
    parents: tuple[Parent, ...]

    @property
    def name(self) -> str:
        """Of the table."""
        return str(self.table.name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(column.name for column in self.table.columns)

    @property
    def compared(self) -> tuple[str, ...]:
        """Columns that have to agree where two rows have the same identity."""
        ignored = IGNORED.get(self.name, frozenset()) | {"no", *self.identity}
        return tuple(name for name in self.columns if name not in ignored)


@cache
def plans() -> tuple[TablePlan, ...]:
    """Of all tables, parents before children."""
    return tuple(_plan(table) for table in metadata.sorted_tables)


def plan_of(name: str) -> TablePlan:
    """Of one table."""
    return next(plan for plan in plans() if plan.name == name)


def _plan(table: Table) -> TablePlan:
    parents = tuple(
        Parent(column.name, next(iter(column.foreign_keys)).column.table)
        for column in table.columns
        if column.foreign_keys
    )
    named = [c.name for c in table.columns if c.unique and isinstance(c.type, Text)]
    combined = [u for u in table.constraints if isinstance(u, UniqueConstraint)]
    if named:
        return TablePlan(table, (named[0],), True, parents)
    if combined:
        return TablePlan(table, tuple(column.name for column in combined[0].columns), True, parents)
    return TablePlan(table, tuple(c.name for c in table.columns if c.name != "no"), False, parents)


def kind_of(column: Column[object]) -> Kind:
    """How its values look in an archive."""
    if isinstance(column.type, LargeBinary):
        return "json" if column.name.startswith(PACKED) else "bytes"
    if isinstance(column.type, Float):
        return "number"
    if isinstance(column.type, BigInteger | Integer):
        return "integer"
    assert isinstance(column.type, Text), column
    return "text"


def field_of(column: str) -> str:
    """The column's name in an archive."""
    return column.removeprefix(PACKED)
