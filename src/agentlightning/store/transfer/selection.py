"""Which rows go into an archive, as queries. Knows no files.

A selection chooses rollouts. What refers to rollouts goes with all that it refers to, or stays; what refers to none
(resources, workers) goes whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec
from sqlalchemy import Alias, ColumnElement, Select, Table, and_, func, or_, select

from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import RolloutMode, RolloutStatus
from agentlightning.store.tables import rollouts
from agentlightning.store.transfer.plan import TablePlan, field_of, plan_of


class Selection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which rollouts; without anything, all, and then every row of every table goes.

    Attributes:
        modes: Only these.
        statuses: Only these.
        since: Only those that started at this time or later, Unix seconds.
    """

    modes: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    since: float | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    def check(self) -> None:
        """Refuse what no rollout has.

        Raises:
            BadInputError: A mode or status does not exist.
        """
        for what, given, known in (
            ("mode", self.modes, get_args(RolloutMode)),
            ("status", self.statuses, get_args(RolloutStatus)),
        ):
            unknown = [value for value in given if value not in known]
            if unknown:
                raise BadInputError(f"Unknown {what} {', '.join(unknown)}.", hint=f"One of: {', '.join(known)}.")


def count_of(plan: TablePlan, selection: Selection) -> Select[Any]:
    """How many rows of a table are selected."""
    return _where(select(func.count()).select_from(plan.table), plan, selection)


def rows_of(
    plan: TablePlan, selection: Selection, *, labels: bool = False, after: int = 0, up_to: int | None = None
) -> Select[Any]:
    """The selected rows of a table in the order of `no`.

    Args:
        plan: Of the table.
        selection: Which rows.
        labels: After the columns, the names of the rows that they refer to (`labels_of`).
        after: Only rows with a higher `no`.
        up_to: Only rows up to this `no`.
    """
    columns: list[Any] = list(plan.table.columns)
    joined: Any = plan.table
    if labels:
        for label, alias, name in _labels(plan, plan.table, set(field_names(plan))):
            columns.append(alias.c[name].label(label))
        for on, alias in _joins(plan, plan.table):
            joined = joined.outerjoin(alias, on)
    statement: Any = select(*columns).select_from(joined).where(plan.table.c.no > after)
    if up_to is not None:
        statement = statement.where(plan.table.c.no <= up_to)
    return _where(statement, plan, selection).order_by(plan.table.c.no)


def field_names(plan: TablePlan) -> Sequence[str]:
    """Columns as an archive names them."""
    return [field_of(name) for name in plan.columns]


def labels_of(plan: TablePlan) -> list[str]:
    """Names of the columns that `rows_of(labels=True)` adds: `rollout_id` for `rollout_no`, and so on."""
    return [label for label, _, _ in _labels(plan, plan.table, set(field_names(plan)))]


_aliases: dict[tuple[str, str], Any] = {}


def _alias(table: Table, path: str) -> Alias:
    key = (str(table.name), path)
    if key not in _aliases:
        _aliases[key] = table.alias(f"of_{path}")
    return _aliases[key]


def _walk(plan: TablePlan, source: Any, path: str) -> list[tuple[str, str, Any, Alias, TablePlan]]:
    """Every row that a row refers to, directly or not: stem of its label, path, condition of the join, alias, plan."""
    found: list[tuple[str, str, Any, Alias, TablePlan]] = []
    for parent in plan.parents:
        step = f"{path}_{parent.column}" if path else parent.column
        alias = _alias(parent.table, f"{plan.name}_{step}")
        upper = plan_of(str(parent.table.name))
        found.append((parent.column.removesuffix("_no"), step, source.c[parent.column] == alias.c.no, alias, upper))
        found += _walk(upper, alias, step)
    return found


def _joins(plan: TablePlan, source: Any) -> list[tuple[Any, Alias]]:
    return [(on, alias) for _, _, on, alias, _ in _walk(plan, source, "")]


def _labels(plan: TablePlan, source: Any, taken: set[str]) -> list[tuple[str, Alias, str]]:
    found: list[tuple[str, Alias, str]] = []
    for stem, _, _, alias, upper in _walk(plan, source, ""):
        name = upper.identity[0]
        label = f"{stem}_id"
        if len(upper.identity) == 1 and label not in taken:
            taken.add(label)
            found.append((label, alias, name))
    return found


def _where(statement: Select[Any], plan: TablePlan, selection: Selection) -> Select[Any]:
    if selection.is_everything:
        return statement
    condition = _condition(plan, plan.table, selection, "")
    return statement if condition is None else statement.where(condition)


def _condition(plan: TablePlan, source: Any, selection: Selection, path: str) -> ColumnElement[bool] | None:
    if plan.name == "rollouts":
        return _chosen(source, selection)
    conditions: list[ColumnElement[bool]] = []
    for parent in plan.parents:
        alias = parent.table.alias(f"sel_{path}{parent.column}")
        upper = _condition(plan_of(str(parent.table.name)), alias, selection, f"{path}{parent.column}_")
        if upper is not None:
            exists = select(alias.c.no).where(alias.c.no == source.c[parent.column], upper).exists()
            conditions.append(or_(source.c[parent.column].is_(None), exists))
    if not plan.parents and "rollout_id" in source.c:  # refers by name
        alias = rollouts.alias(f"sel_{path}rollout_id")
        exists = select(alias.c.no).where(alias.c.rollout_id == source.c.rollout_id, _chosen(alias, selection))
        conditions.append(or_(source.c.rollout_id.is_(None), exists.exists()))
    return and_(*conditions) if conditions else None


def _chosen(source: Any, selection: Selection) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = []
    if selection.modes:
        conditions.append(source.c.mode.in_(selection.modes))
    if selection.statuses:
        conditions.append(source.c.status.in_(selection.statuses))
    if selection.since is not None:
        conditions.append(source.c.start_time >= selection.since)
    return and_(*conditions)
