"""Stores with random rows in every table there is, made from the tables themselves, and reading them back whole."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from hypothesis import strategies as st
from msgspec.msgpack import Ext
from sqlalchemy import BigInteger, Column, Float, Integer, LargeBinary, Table, select

from agentlightning.schemas import AttemptStatus, RolloutMode, RolloutStatus
from agentlightning.store.databases import parse_location
from agentlightning.store.endpoints import PostgresEndpoint, open_endpoint
from agentlightning.store.tables import metadata

Rows = dict[str, list[tuple[Any, ...]]]

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
floats = st.floats(allow_nan=False)
keys = st.one_of(st.sampled_from(["$bytes", "$float", "$map", "$ref", "$raw", "_raw", "no"]), texts)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    texts,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.binary(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(-5, 5), st.booleans(), st.binary(max_size=2)), inner, max_size=2),
    ),
    max_leaves=8,
)
pack = msgspec.msgpack.Encoder().encode
foreign = st.sampled_from(  # msgpack that our encoder would not write
    [
        b"\xca\x3f\x80\x00\x00",
        b"\xd9\x01a",
        b"\xcd\x00\x05",
        b"\x82\xa1a\x01\xa1a\x02",
        pack(Ext(9, b"x")),
        b"\xde\x00\x00",
    ]
)
packed = st.one_of(values.map(pack), foreign)
bodies = st.fixed_dictionaries(
    {"attributes": st.dictionaries(texts, scalars, max_size=3)}, optional={"context": st.booleans()}
).map(pack)

SPECIAL: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("rollouts", "status"): st.sampled_from(get_args(RolloutStatus)),
    ("rollouts", "mode"): st.sampled_from([None, *get_args(RolloutMode)]),
    ("rollouts", "packed_config"): st.sampled_from([pack({}), pack({"max_attempts": 3})]),
    ("attempts", "status"): st.sampled_from(get_args(AttemptStatus)),
    ("spans", "packed_body"): bodies,
    ("lineages", "position"): st.none(),  # numbered below
}


def _column(table: Table, column: Column[Any]) -> st.SearchStrategy[Any]:
    special = SPECIAL.get((table.name, column.name))
    if special is not None:
        return special
    if isinstance(column.type, LargeBinary):
        plain: st.SearchStrategy[Any] = packed if column.name.startswith("packed_") else st.binary(max_size=20)
    elif isinstance(column.type, Float):
        plain = floats
    elif isinstance(column.type, BigInteger):
        plain = st.integers(-(2**53), 2**53)
    elif isinstance(column.type, Integer):
        plain = st.integers(0, 1)
    else:
        plain = texts
    return st.one_of(st.none(), plain) if column.nullable else plain


@st.composite
def stores(draw: st.DrawFn, prefix: str = "", most: int = 4) -> Rows:
    """Rows of every table; names begin with `prefix`."""
    made: Rows = {}
    for table in metadata.sorted_tables:
        made[table.name] = []
        number = 0
        for index in range(draw(st.integers(0, most))):
            number += draw(st.integers(1, 3))
            row = _row(draw, table, made, number, f"{prefix}{table.name}-{index}")
            if row is not None:
                made[table.name].append(row)
    return made


def _row(draw: st.DrawFn, table: Table, made: Rows, number: int, name: str) -> tuple[Any, ...] | None:
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.name == "no":
            row["no"] = number
        elif column.foreign_keys:
            parents = [r[0] for r in made[next(iter(column.foreign_keys)).column.table.name]]
            choices = [*parents, None] if column.nullable else parents
            if not choices:
                return None
            row[column.name] = draw(st.sampled_from(choices))
        elif column.unique:
            row[column.name] = number if isinstance(column.type, BigInteger) else name
        else:
            row[column.name] = draw(_column(table, column))
    _make_unique(table, row, number, name)
    return tuple(row[column.name] for column in table.columns)


def _make_unique(table: Table, row: dict[str, Any], number: int, name: str) -> None:
    for columns in (["sequence_id"], ["position"], ["cycle"]):
        for column in columns:
            if column in row and table.name in ("attempts", "lineages", "lineage_steps"):
                row[column] = number
    if "span_id" in row:
        row["span_id"] = name


def write_rows(location: str, rows: Rows) -> None:
    """Put rows into a store, created when missing."""
    endpoint = open_endpoint(parse_location(location), to_write=True)
    try:
        with endpoint.transaction(alone=True):
            for table in metadata.sorted_tables:
                endpoint.write(table, rows[table.name])
            if isinstance(endpoint, PostgresEndpoint):
                endpoint.renumber()
    finally:
        endpoint.close()


def read_rows(location: str) -> Rows:
    """Every row of every table."""
    endpoint = open_endpoint(parse_location(location))
    try:
        return {
            table.name: [tuple(row) for row in endpoint.run(select(*table.columns).order_by(table.c.no))]
            for table in metadata.sorted_tables
        }
    finally:
        endpoint.close()
