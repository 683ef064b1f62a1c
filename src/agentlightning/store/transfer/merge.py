"""Adding the rows of one store to another inside the database that holds both. Knows no files.

Into an empty store rows go as they are. Otherwise each keeps its identity and gets a new `no` behind those of the
target, and references follow. A row that is there already, saying the same, is passed over; one that says something
else is a conflict, and nothing is changed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, and_, func, insert, literal, or_, select, text, update
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.elements import ColumnElement

from agentlightning.kit.clock import now
from agentlightning.kit.errors import BadInputError, ConflictError
from agentlightning.store.endpoints import Endpoint
from agentlightning.store.ops.events import stored
from agentlightning.store.records import pack
from agentlightning.store.tables import Number
from agentlightning.store.transfer.plan import FIRST_WINS, LOCAL, TablePlan, plans

_NAMED = 10
"""Conflicting rows that a message names, per table."""


def merge(target: Endpoint, staged: str, final: str, *, into_empty: bool) -> dict[str, int]:
    """Add all rows of the schema `staged` to the schema `final`, in the transaction that is open.

    Args:
        target: Connection to the database of both.
        staged: Schema (SQLite: name of the attached database) of the new rows.
        final: That of the store.
        into_empty: Refuse a store that holds something.

    Returns:
        How many rows of each table were new.

    Raises:
        ConflictError: Rows contradict each other.
        BadInputError: A row refers to one that is missing.
    """
    merging = _Merge(target, staged, final)
    if merging.is_empty():
        return {plan.name: merging.add_as_is(plan) for plan in plans()}
    if into_empty:
        raise ConflictError(
            f"{target.name} is not empty.", hint="Nothing is overwritten: give another target, or move this one away."
        )
    wanted = [plan for plan in plans() if plan.name not in LOCAL]
    for plan in wanted:
        merging.number(plan)
    merging.refuse_conflicts(wanted)
    try:
        added = {plan.name: merging.add_renumbered(plan) for plan in wanted}
    except BadInputError as error:  # two rows of different names claim the same place
        raise ConflictError(error.message, hint="Nothing was changed. Take another store.") from error
    if any(added.values()):
        merging.record()
    return {plan.name: added.get(plan.name, 0) for plan in plans()}


class _Merge:
    def __init__(self, target: Endpoint, staged: str, final: str) -> None:
        self._target = target
        old, new = MetaData(), MetaData()
        self._staged = {plan.name: plan.table.to_metadata(old, schema=staged) for plan in plans()}
        self._final = {plan.name: plan.table.to_metadata(new, schema=final) for plan in plans()}
        self._maps: dict[str, Table] = {}
        self._aliases: dict[str, dict[str, Any]] = {}
        self._highest: dict[str, int] = {}
        self._map_metadata = old
        self._schema = staged

    def is_empty(self) -> bool:
        """Whether the store has no rows."""
        return not any(self._target.run(select(table.c.no).limit(1)) for table in self._final.values())

    def add_as_is(self, plan: TablePlan) -> int:
        """Copy a table into an empty one."""
        staged, final = self._staged[plan.name], self._final[plan.name]
        self._target.run(insert(final).from_select(plan.columns, select(staged).order_by(staged.c.no)))
        return self._count(final)

    def number(self, plan: TablePlan) -> None:
        """Decide which `no` each staged row has in the store: that of the same row there, or a new one.

        Raises:
            BadInputError: A row refers to one that is missing.
        """
        staged, final = self._staged[plan.name], self._final[plan.name]
        self._analyze(staged)
        mapped = Table(
            f"transfer_map_{plan.name}",
            self._map_metadata,
            Column("staged_no", Number, primary_key=True, autoincrement=False),
            Column("final_no", Number, nullable=False),
            schema=self._schema,
        )
        self._aliases[plan.name] = {
            parent.column: self._maps[str(parent.table.name)].alias(f"map_{parent.column}") for parent in plan.parents
        }
        self._refuse_dangling(plan)
        self._target.run(CreateTable(mapped))
        self._maps[plan.name] = mapped
        highest = self._edge(func.max, final.c.no, 0)
        self._highest[plan.name] = highest
        there = self._recognisable(plan).alias("there")
        same = and_(*(_same(there.c[name], value) for name, value in self._values(plan, plan.identity).items()))
        rows = select(staged.c.no, func.coalesce(there.c.no, staged.c.no + highest)).select_from(
            self._with_parents(plan).outerjoin(there, same)
        )
        self._target.run(insert(mapped).from_select(["staged_no", "final_no"], rows))
        self._analyze(mapped)

    def _recognisable(self, plan: TablePlan) -> Any:
        """Rows of the store by what they are recognised by, each once."""
        final = self._final[plan.name]
        identity = [final.c[name] for name in plan.identity]
        if plan.is_named:
            return select(final.c.no, *identity)
        return select(func.min(final.c.no).label("no"), *identity).group_by(*identity)

    def _refuse_dangling(self, plan: TablePlan) -> None:
        staged = self._staged[plan.name]
        for column, alias in self._aliases[plan.name].items():
            lost = select(staged.c.no).select_from(self._with_parents(plan))
            found = self._target.run(lost.where(staged.c[column].isnot(None), alias.c.staged_no.is_(None)).limit(1))
            if found:
                raise BadInputError(
                    f"Row {found[0][0]} of {plan.name} refers by {column} to a row that is missing.",
                    hint="Export again; the archive was put together by hand, or by another program.",
                )

    def _analyze(self, table: Table) -> None:
        """The planner knows nothing of tables that were filled a moment ago."""
        if not isinstance(self._target.dialect, SQLiteDialect):
            self._target.run(text(f'ANALYZE "{self._schema}"."{table.name}"'))

    def _values(self, plan: TablePlan, columns: tuple[str, ...]) -> dict[str, ColumnElement[Any]]:
        """Staged values as they are in the store: references follow the new numbers."""
        staged, maps = self._staged[plan.name], self._aliases[plan.name]
        return {name: maps[name].c.final_no if name in maps else staged.c[name] for name in columns}

    def _with_parents(self, plan: TablePlan) -> Any:
        staged = self._staged[plan.name]
        joined: Any = staged
        for column, alias in self._aliases[plan.name].items():
            joined = joined.outerjoin(alias, alias.c.staged_no == staged.c[column])
        return joined

    def refuse_conflicts(self, wanted: list[TablePlan]) -> None:
        """Look for rows that are in both and differ.

        Raises:
            ConflictError: There are some; it names them.
        """
        found: dict[str, list[str]] = {}
        for plan in wanted:
            if plan.name in FIRST_WINS or not plan.compared or not self._highest[plan.name]:
                continue
            staged, final, mapped = self._staged[plan.name], self._final[plan.name], self._maps[plan.name]
            differs = [
                final.c[name].is_distinct_from(value) for name, value in self._values(plan, plan.compared).items()
            ]
            both = (
                self._with_parents(plan)
                .join(mapped, mapped.c.staged_no == staged.c.no)
                .join(final, final.c.no == mapped.c.final_no)
            )
            statement = select(*(staged.c[name] for name in plan.identity)).select_from(both).where(or_(*differs))
            rows = self._target.run(statement.order_by(staged.c.no).limit(_NAMED + 1))
            if rows:
                found[plan.name] = [" ".join(str(value) for value in row) for row in rows]
        if found:
            named = "; ".join(
                f"{name} {', '.join(ids[:_NAMED])}{' and more' if len(ids) > _NAMED else ''}"
                for name, ids in found.items()
            )
            raise ConflictError(
                f"{self._target.name} has other rows under the same names: {named}.",
                hint="Nothing was changed. Take another store, or leave these rollouts out.",
                details={"rows": {name: ids[:_NAMED] for name, ids in found.items()}},
            )

    def add_renumbered(self, plan: TablePlan) -> int:
        """Copy the rows of a table that are new."""
        staged, final, mapped = self._staged[plan.name], self._final[plan.name], self._maps[plan.name]
        before = self._count(final)
        values: dict[str, Any] = {**self._values(plan, plan.columns), "no": mapped.c.final_no}
        for name, value in self._moved(plan).items():
            values[name] = value
        rows = (
            select(*(values[name] for name in plan.columns))
            .select_from(self._with_parents(plan).join(mapped, mapped.c.staged_no == staged.c.no))
            .where(mapped.c.final_no > self._highest[plan.name])
        )
        self._target.run(insert(final).from_select(plan.columns, rows.order_by(mapped.c.final_no)))
        if plan.name == "payloads":  # those that were there stay alive, too
            kept, now = select(staged.c.hash), self._epoch()
            self._target.run(update(final).where(final.c.hash.in_(kept), final.c.epoch < now).values(epoch=now))
        return self._count(final) - before

    def record(self) -> None:
        """Add the event that tells what the events of the new rows do not: where they are among the others."""
        resources, rollouts, events = (self._final[name] for name in ("resources", "rollouts", "events"))
        ordered = self._target.run(select(resources.c.resources_id).order_by(resources.c.position))
        queued = self._target.run(
            select(rollouts.c.rollout_id)
            .where(rollouts.c.queue_position.isnot(None), rollouts.c.no > self._highest["rollouts"])
            .order_by(rollouts.c.queue_position, rollouts.c.no)
        )
        data = {"resources": [row[0] for row in ordered], "queue": [row[0] for row in queued]}
        row = {
            "no": self._edge(func.max, events.c.no, 0) + 1,
            "time": now(),
            "kind": "store.imported",
            "packed_data": stored(self._target.session(), pack(data, "The event")),
        }
        self._target.run(insert(events).values(**row))

    def _moved(self, plan: TablePlan) -> dict[str, Any]:
        """Columns whose values mean something among the rows of one store only."""
        staged, final = self._staged[plan.name], self._final[plan.name]
        if plan.name == "rollouts":  # to the end of the queue
            last = self._edge(func.max, final.c.queue_position, 0)
            first = self._edge(func.min, staged.c.queue_position, 1)
            return {"queue_position": staged.c.queue_position + (last + 1 - first)}
        if plan.name == "resources":  # the latest stays the latest
            first = self._edge(func.min, final.c.position, 1)
            last = self._edge(func.max, staged.c.position, 0)
            return {"position": staged.c.position + (first - 1 - last)}
        if plan.name == "payloads":
            return {"epoch": literal(self._epoch(), Integer)}
        return {}

    def _edge(self, function: Any, column: Any, default: int) -> int:
        return self._target.run(select(func.coalesce(function(column), default)))[0][0]

    def _epoch(self) -> int:
        return self._edge(func.max, self._final["payload_epochs"].c.no, 0)

    def _count(self, table: Table) -> int:
        return self._target.run(select(func.count()).select_from(table))[0][0]


def _same(column: Any, value: Any) -> Any:
    # A plain comparison where it serves: the other one finds no index in PostgreSQL.
    return column.is_not_distinct_from(value) if column.nullable else column == value
