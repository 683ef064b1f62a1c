"""SQLite databases made of real rows: a seed decides tables and rows. Knows nothing of questions."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from pathlib import Path

from agentlightning.nano.tables import TABLES, Table, read_rows

TABLES_PER_DATABASE = 2
MIN_ROWS, MAX_ROWS = 35, 90
SQL_TYPES = {int: "INTEGER", float: "REAL", str: "TEXT"}


def choose_tables(seed: int) -> tuple[Table, ...]:
    """The tables of the database with this seed, in the order of its schema."""
    return tuple(random.Random(f"tables {seed}").sample(TABLES, TABLES_PER_DATABASE))


def build_database(seed: int, directory: Path) -> Path:
    """Writes `db-<seed>.sqlite` unless it is there; the same seed gives the same rows on every machine."""
    path = directory / f"db-{seed}.sqlite"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=directory, prefix=f".{path.stem}-", suffix=".tmp")
    os.close(handle)
    try:
        _write(seed, Path(name))
        Path(name).replace(path)  # whole or not at all, also when two processes build the same one
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def _write(seed: int, path: Path) -> None:
    rng = random.Random(f"rows {seed}")
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN")
        for table in choose_tables(seed):
            columns, rows = read_rows(table.name)
            kept = rng.sample(rows, rng.randint(min(MIN_ROWS, len(rows)), min(MAX_ROWS, len(rows))))
            typed = ", ".join(f"{c} {SQL_TYPES[type(v)]}" for c, v in zip(columns, kept[0], strict=True))
            connection.execute(f"CREATE TABLE {table.name} ({typed})")
            marks = ", ".join("?" * len(columns))
            connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", kept)
        connection.execute("COMMIT")
    finally:
        connection.close()
