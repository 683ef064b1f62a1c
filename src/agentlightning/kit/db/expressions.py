"""Two SQLAlchemy expressions whose SQL differs between SQLite and PostgreSQL. Knows no tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Boolean, ColumnElement, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import Text


class _Condition(ColumnElement[bool]):
    """A condition that stands in the query as it is: SQLAlchemy would write `... = 1`, and no index could be used."""

    inherit_cache = False
    type = Boolean()

    def self_group(self, against: Any = None) -> Any:
        return self


class one_of(_Condition):  # noqa: N801 - reads as a function in a query
    """`column` equals one of `values`; any number of them is one parameter."""

    def __init__(self, column: ColumnElement[Any], values: Sequence[str]) -> None:
        self.column = column
        self.values = bindparam(None, json.dumps(list(values)), type_=Text())


class contains(_Condition):  # noqa: N801
    """`part` occurs in `column`, case and all; `LIKE` would ignore case on SQLite."""

    def __init__(self, column: ColumnElement[Any], part: str) -> None:
        self.column = column
        self.part = bindparam(None, part, type_=Text())


@compiles(one_of, "sqlite")
def _one_of_sqlite(element: one_of, compiler: SQLCompiler, **options: Any) -> str:
    column, values = compiler.process(element.column, **options), compiler.process(element.values, **options)
    return f"({column} IN (SELECT value FROM json_each({values})))"


@compiles(one_of, "postgresql")
def _one_of_postgresql(element: one_of, compiler: SQLCompiler, **options: Any) -> str:
    column, values = compiler.process(element.column, **options), compiler.process(element.values, **options)
    return f"({column} = ANY (ARRAY(SELECT json_array_elements_text(CAST({values} AS json)))))"


@compiles(contains, "sqlite")
def _contains_sqlite(element: contains, compiler: SQLCompiler, **options: Any) -> str:
    column, part = compiler.process(element.column, **options), compiler.process(element.part, **options)
    return f"(instr({column}, {part}) > 0)"


@compiles(contains, "postgresql")
def _contains_postgresql(element: contains, compiler: SQLCompiler, **options: Any) -> str:
    column, part = compiler.process(element.column, **options), compiler.process(element.part, **options)
    return f"(strpos({column}, {part}) > 0)"
