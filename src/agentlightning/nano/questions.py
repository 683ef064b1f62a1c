"""What can be asked: nine kinds of question, every combination of their parts, and the split each is in.

Knows the tables, not the wordings (`wording.py`), not the wrong answers (`habits.py`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from agentlightning.nano.tables import TABLES, Category, Measure, Table

Kind = Literal["count", "count_over", "best", "best_where", "top", "total", "total_where", "list", "group"]
Split = Literal["train", "val", "test"]
KINDS: tuple[Kind, ...] = (
    "count",
    "count_over",
    "best",
    "best_where",
    "top",
    "total",
    "total_where",
    "list",
    "group",
)
TEST_SHARE, VAL_SHARE = 1 / 6, 1 / 12
TOP_LIMITS = range(2, 7)
SMALL = 5  # below this many combinations of a kind in a table, validation leaves them to training


@dataclass(frozen=True)
class Combo:
    """One question without its wording: what stays the same when it is asked of another database."""

    kind: Kind
    table: Table
    category: Category | None = None
    value: str | None = None
    measure: Measure | None = None
    operator: str | None = None
    threshold: int | None = None
    aggregate: str | None = None
    direction: str | None = None
    limit: int | None = None

    @property
    def id(self) -> str:
        """A stable name, such as `count/cars/origin=Japan`."""
        parts = [
            f"{self.category.column}={self.value}" if self.category and self.value else None,
            self.category.column if self.category and not self.value else None,
            self.aggregate,
            self.measure.column if self.measure else None,
            f"{self.operator}{self.threshold}" if self.operator else None,
            self.direction,
            str(self.limit) if self.limit else None,
        ]
        return "/".join([self.kind, self.table.name, *(part for part in parts if part)])


def gold_sql(combo: Combo) -> str:
    """The query that answers the question."""
    where = where_clause(combo)
    column = combo.measure.column if combo.measure else ""
    match combo.kind:
        case "count" | "count_over":
            return f"SELECT COUNT(*) FROM {combo.table.name}{where}"
        case "best" | "best_where" | "top":
            order = f" ORDER BY {column}{' DESC' if combo.direction == 'DESC' else ''} LIMIT {combo.limit}"
            return f"SELECT {combo.table.key} FROM {combo.table.name}{where}{order}"
        case "total" | "total_where":
            return f"SELECT {combo.aggregate}({column}) FROM {combo.table.name}{where}"
        case "list":
            return f"SELECT {combo.table.key} FROM {combo.table.name}{where}"
        case "group":
            assert combo.category is not None
            group = combo.category.column
            value = f"{combo.aggregate}({column})" if combo.measure else "COUNT(*)"
            return f"SELECT {group}, {value} FROM {combo.table.name} GROUP BY {group}"


def where_clause(combo: Combo) -> str:
    """` WHERE ...`, or nothing."""
    if combo.category and combo.value:
        return f" WHERE {combo.category.column} = '{combo.value}'"
    if combo.measure and combo.operator:
        return f" WHERE {combo.measure.column} {combo.operator} {combo.threshold}"
    return ""


def is_ordered(combo: Combo) -> bool:
    """Whether the order of the answer's rows matters."""
    return combo.direction is not None


@functools.cache
def combos(kind: Kind, table: Table, split: Split) -> tuple[Combo, ...]:
    """The combinations of a kind in a table that belong to a split: disjoint, the same on every machine."""
    ranked = sorted(_all_combos(kind, table), key=lambda c: hashlib.sha256(c.id.encode()).hexdigest())
    n_test = max(1, round(len(ranked) * TEST_SHARE))
    n_val = max(1, round(len(ranked) * VAL_SHARE)) if len(ranked) >= SMALL else 0
    bounds = {"test": (0, n_test), "val": (n_test, n_test + n_val), "train": (n_test + n_val, len(ranked))}
    return tuple(ranked[slice(*bounds[split])])


def all_combos(split: Split) -> Iterator[Combo]:
    """Every combination of a split."""
    for kind, table in itertools.product(KINDS, TABLES):
        yield from combos(kind, table, split)


def _all_combos(kind: Kind, table: Table) -> Iterable[Combo]:
    plain = Combo(kind, table)
    match kind:
        case "count":
            return _filtered(plain)
        case "count_over":
            return _over(plain)
        case "best":
            return _ranked(replace(plain, limit=1))
        case "best_where":
            return _each(_ranked, _filtered(replace(plain, limit=1)))
        case "top":
            return _each(_ranked, map(functools.partial(_limited, plain), TOP_LIMITS))
        case "total":
            return _aggregated(plain)
        case "total_where":
            return _each(_aggregated, _filtered(plain))
        case "list":
            return itertools.chain(_filtered(plain), _over(plain))
        case "group":
            return _each(_grouped, (replace(plain, category=category) for category in table.categories))


def aggregates(measure: Measure) -> tuple[str, ...]:
    """The aggregates that make sense of a column: nobody adds up years."""
    return ("MIN", "MAX") if measure.column == "year" else ("AVG", "SUM", "MIN", "MAX")


def _each(expand: Callable[[Combo], Iterable[Combo]], found: Iterable[Combo]) -> Iterator[Combo]:
    return itertools.chain.from_iterable(map(expand, found))


def _filtered(combo: Combo) -> Iterator[Combo]:
    for category in combo.table.categories:
        yield from (replace(combo, category=category, value=value) for value in category.values)


def _over(combo: Combo) -> Iterator[Combo]:
    for measure in combo.table.measures:
        for operator, threshold in itertools.product("<>", measure.thresholds):
            yield replace(combo, measure=measure, operator=operator, threshold=threshold)


def _ranked(combo: Combo) -> Iterator[Combo]:
    for measure, direction in itertools.product(combo.table.measures, ("ASC", "DESC")):
        yield replace(combo, measure=measure, direction=direction)


def _aggregated(combo: Combo) -> Iterator[Combo]:
    for measure in combo.table.measures:
        yield from (replace(combo, measure=measure, aggregate=name) for name in aggregates(measure))


def _grouped(combo: Combo) -> Iterator[Combo]:
    yield combo
    yield from _aggregated(combo)


def _limited(combo: Combo, limit: int) -> Combo:
    return replace(combo, limit=limit)
