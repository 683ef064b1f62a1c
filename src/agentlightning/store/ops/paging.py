"""Reads whose filters, order and page are chosen at run time: what all of them share. Knows no particular table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, true
from sqlalchemy.sql import FromClause
from sqlalchemy.sql.elements import True_

from agentlightning.kit.db import Row, Session, contains
from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import PaginatedResult
from agentlightning.store.verbs import FilterLogic, Page

R = TypeVar("R")
Condition = ColumnElement[bool]


def combine(conditions: Sequence[Condition], logic: FilterLogic) -> Condition:
    """All of the conditions, or any."""
    if not conditions:
        return true()
    return or_(*conditions) if logic == "or" else and_(*conditions)


def text_filters(verb: object, filtered: Mapping[str, ColumnElement[Any]]) -> list[Condition]:
    """Conditions from fields called `x` (equal) and `x_contains` of the verb, for every column `x`."""
    conditions: list[Condition] = []
    for name, column in filtered.items():
        equal, part = getattr(verb, name, None), getattr(verb, f"{name}_contains", None)
        if equal is not None:
            conditions.append(column == equal)
        if part is not None:
            conditions.append(contains(column, part))
    return conditions


def page(
    db: Session,
    verb: Page[R],
    source: FromClause,
    selected: Sequence[ColumnElement[Any]],
    where: Condition,
    sortable: Mapping[str, ColumnElement[Any]],
    number: ColumnElement[Any],
    *,
    counted: FromClause | None = None,
    count_all: str | None = None,
) -> tuple[list[Row], int]:
    """Rows of the page, and how many match in all.

    Args:
        db: The session.
        verb: Which page, in which order.
        source: Where the rows come from.
        selected: What is read of each.
        where: Which ones.
        sortable: What callers may sort by.
        number: Order of creation.
        counted: Has as many rows as `source`, and fewer joins.
        count_all: Statement that gives their number when nothing is filtered, faster than counting does.
    """
    if verb.limit < -1 or verb.offset < 0:
        raise BadInputError(
            f"limit={verb.limit}, offset={verb.offset} is no page.", hint="limit: -1 for all, or ≥ 0; offset: ≥ 0."
        )
    if verb.sort_order not in ("asc", "desc"):
        raise BadInputError(f"sort_order is {verb.sort_order!r}.", hint="Use 'asc' or 'desc'.")
    if verb.sort_by is not None and verb.sort_by not in sortable:
        raise BadInputError(f"Cannot sort by {verb.sort_by!r}.", hint=f"Use one of: {', '.join(sortable)}.")
    keys = [number] if verb.sort_by is None else [sortable[verb.sort_by], number]
    query: Select[Any] = select(*selected).select_from(source).where(where)
    query = query.order_by(*(_ordered(key, verb.sort_order) for key in keys))
    if verb.limit != -1:
        query = query.limit(verb.limit)
    if verb.offset:
        query = query.offset(verb.offset)
    rows = db.select(query)
    is_last = verb.limit == -1 or len(rows) < verb.limit
    if is_last and (rows or not verb.offset):
        return rows, verb.offset + len(rows)
    if count_all is not None and isinstance(where, True_):
        return rows, db.all(count_all)[0][0]
    total = db.select(select(func.count()).select_from(source if counted is None else counted).where(where))
    return rows, total[0][0]


def _ordered(key: ColumnElement[Any], order: str) -> ColumnElement[Any]:
    """Missing values come first when ascending; without saying so the databases differ."""
    if not getattr(key, "nullable", True):
        return key.desc() if order == "desc" else key.asc()  # so that PostgreSQL can use the index
    return key.desc().nulls_last() if order == "desc" else key.asc().nulls_first()


def result(verb: Page[R], items: list[Any], total: int) -> PaginatedResult[Any]:
    """The page that was asked for."""
    return PaginatedResult[Any].model_construct(items=items, limit=verb.limit, offset=verb.offset, total=total)


def columns(table: FromClause, names: str) -> list[ColumnElement[Any]]:
    """Columns by name, in this order."""
    return [table.c[name] for name in names.split()]


def named(table: FromClause, names: str) -> dict[str, ColumnElement[Any]]:
    """The same with their names."""
    return {name: table.c[name] for name in names.split()}
