"""The six frozen tables: their columns and what people call them. Knows nothing of SQL or of models."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
Value = str | int | float


@dataclass(frozen=True)
class Measure:
    """A numeric column that questions compare, rank and aggregate.

    Attributes:
        nouns: What people call it in a question; the first one is the column's own name.
        thresholds: Round numbers a question compares with (the data need not be round).
    """

    column: str
    nouns: tuple[str, ...]
    thresholds: tuple[int, ...]


@dataclass(frozen=True)
class Category:
    """A text column that questions filter and group by.

    Attributes:
        values: The values with enough rows to ask about.
        clauses: Extra wordings of the filter that only make sense here, as (seen, unseen) templates over
            `{P}` (the rows' plural noun) and `{v}`.
    """

    column: str
    values: tuple[str, ...]
    clauses: tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """One table: the column that names a row, its measures and its categories."""

    name: str
    singular: str
    key: str
    key_nouns: tuple[str, ...]
    measures: tuple[Measure, ...]
    categories: tuple[Category, ...]


def _steps(low: int, high: int, step: int = 1) -> tuple[int, ...]:
    return tuple(range(low, high + 1, step))


TABLES: tuple[Table, ...] = (
    Table(
        "cars",
        "car",
        "model",
        ("model", "name"),
        (
            Measure("mpg", ("mpg", "fuel economy"), _steps(14, 34)),
            Measure("hp", ("hp", "horsepower", "power"), _steps(60, 150, 2)),
            Measure("weight", ("weight",), _steps(900, 1750, 25)),
        ),
        (
            Category(
                "origin",
                ("USA", "Japan", "Europe"),
                (("{P} from {v}", "{P} that come from {v}", "{P} made in {v}"), ("{P} that are from {v}",)),
            ),
        ),
    ),
    Table(
        "countries",
        "country",
        "name",
        ("name",),
        (
            Measure("area", ("area", "size"), _steps(20, 900, 20)),
            Measure("population", ("population", "people"), _steps(2, 60, 2)),
        ),
        (
            Category(
                "continent",
                ("Africa", "Asia", "Europe", "North America", "South America"),
                (("{P} in {v}", "{P} of {v}", "{P} from {v}"), ("{P} that are in {v}",)),
            ),
        ),
    ),
    Table(
        "elements",
        "element",
        "name",
        ("name",),
        (
            Measure("mass", ("mass", "weight"), _steps(20, 240, 5)),
            Measure("radius", ("radius", "size"), _steps(180, 246, 2)),
            Measure("year", ("year", "discovery year"), _steps(1780, 1940, 5)),
        ),
        (
            Category(
                "block",
                ("s", "p", "d", "f"),
                (
                    ("{P} in block {v}", "{P} of block {v}", "{P} in the {v} block"),
                    ("{P} that are in block {v}",),
                ),
            ),
        ),
    ),
    Table(
        "penguins",
        "penguin",
        "tag",
        ("tag",),
        (
            Measure("bill", ("bill", "bill length"), _steps(35, 50)),
            Measure("flipper", ("flipper", "flipper length"), _steps(184, 210)),
            Measure("mass", ("mass", "weight", "body mass"), _steps(3200, 4600, 50)),
        ),
        (
            Category(
                "species",
                ("Adelie", "Chinstrap", "Gentoo"),
                (("{P} of species {v}", "{P} of the {v} species"), ("{P} that are {v}",)),
            ),
            Category(
                "island",
                ("Biscoe", "Dream", "Torgersen"),
                (("{P} on {v}", "{P} from {v}", "{P} that live on {v}"), ("{P} that are from {v}",)),
            ),
        ),
    ),
    Table(
        "planes",
        "plane",
        "tail",
        ("tail", "tail number"),
        (
            Measure("year", ("year", "year built"), _steps(1986, 2009)),
            Measure("seats", ("seats", "capacity", "number of seats"), _steps(60, 300, 5)),
        ),
        (
            Category(
                "maker",
                ("Boeing", "Airbus", "McDonnell", "Bombardier", "Embraer"),
                (("{P} made by {v}", "{P} from {v}", "{P} by {v}"), ("{P} that come from {v}",)),
            ),
        ),
    ),
    Table(
        "weather",
        "day",
        "day",
        ("day", "date"),
        (
            Measure("high", ("high", "temperature"), _steps(6, 26)),
            Measure("wind", ("wind", "wind speed"), _steps(2, 6)),
            Measure("precip", ("precip", "rainfall"), _steps(1, 12)),
        ),
        (
            Category(
                "sky",
                ("rain", "sun", "drizzle", "snow"),
                (("{P} with {v}", "{P} of {v}", "{P} that had {v}"), ("{P} that come with {v}",)),
            ),
        ),
    ),
)


@functools.cache
def read_rows(name: str) -> tuple[tuple[str, ...], tuple[tuple[Value, ...], ...]]:
    """The columns and all rows of a frozen table."""
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    kinds = [_kind([row[i] for row in rows]) for i in range(len(header))]
    return tuple(header), tuple(tuple(kind(cell) for kind, cell in zip(kinds, row, strict=True)) for row in rows)


def plural(table: Table) -> str:
    """What people call the rows (`days` for the table `weather`)."""
    return f"{table.singular[:-1]}ies" if table.singular.endswith("ry") else f"{table.singular}s"


def _kind(cells: list[str]) -> type[int] | type[float] | type[str]:
    for kind in (int, float):
        try:
            for cell in cells:
                kind(cell)
        except ValueError:
            continue
        return kind
    return str
