"""Export, import and copy: nothing is lost between databases and formats, and nothing is half done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agentlightning.store.tables import metadata
from agentlightning.store.transfer import copy_store, export_store, import_store
from agentlightning.store.transfer.plan import IGNORED, LOCAL, plan_of, plans
from tests.postgres import empty_schema
from tests.random_stores import Rows, read_rows, stores, write_rows

ENCODINGS = ("jsonl", "jsonl.zst", "parquet")
SOME = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # smaller stores are found slowly, and tell little more
)
MANY = settings(SOME, max_examples=60)


@pytest.fixture(params=["sqlite to sqlite", "sqlite to postgres", "postgres to sqlite"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], tuple[str, str]]:
    """Gives two empty stores each time it is called."""
    uses_postgres = "postgres" in request.param
    url = request.getfixturevalue("postgres_url") if uses_postgres else ""
    server = request.getfixturevalue("postgres_server") if uses_postgres else ""

    def fresh() -> tuple[str, str]:
        if server:
            empty_schema(server)
        for name in ("from.db", "to.db"):
            for file in tmp_path.glob(f"{name}*"):
                file.unlink()
        names = {"sqlite": iter([str(tmp_path / "from.db"), str(tmp_path / "to.db")]), "postgres": iter([url])}
        first, last = request.param.split(" to ")
        return next(names[first]), next(names[last])

    return fresh


def check_files(source: str, target: str, archive: Path, rows: Rows, encoding: str) -> None:
    write_rows(source, rows)
    assert read_rows(source) == rows
    shutil.rmtree(archive, ignore_errors=True)
    counts = export_store(source, archive, encoding=encoding, part_rows=2)
    assert counts == {name: len(found) for name, found in rows.items()}
    assert import_store(archive, target) == counts
    assert read_rows(target) == rows
    again = import_store(archive, target)
    assert not any(again.values())
    expected = {name: _comparable(name, found) for name, found in rows.items()}
    assert {name: _comparable(name, found) for name, found in read_rows(target).items()} == expected


@SOME
@given(rows=stores(), encoding=st.sampled_from(ENCODINGS))
def test_every_row_of_every_table_survives_files(
    way: Callable[[], tuple[str, str]], tmp_path: Path, rows: Rows, encoding: str
) -> None:
    check_files(*way(), tmp_path / "archive", rows, encoding)


@pytest.mark.slow
@pytest.mark.timeout(600)
@MANY
@given(rows=stores(most=8), encoding=st.sampled_from(ENCODINGS))
def test_many_stores_survive_files(
    way: Callable[[], tuple[str, str]], tmp_path: Path, rows: Rows, encoding: str
) -> None:
    check_files(*way(), tmp_path / "archive", rows, encoding)


@SOME
@given(rows=stores())
def test_every_row_of_every_table_survives_a_copy(way: Callable[[], tuple[str, str]], rows: Rows) -> None:
    source, target = way()
    write_rows(source, rows)
    assert copy_store(source, target, part_rows=3) == {name: len(found) for name, found in rows.items()}
    assert read_rows(target) == rows


@SOME
@given(rows=stores(prefix="a"), others=stores(prefix="b"))
@pytest.mark.slow
def test_merging_adds_what_is_new_behind_what_is_there(
    way: Callable[[], tuple[str, str]], tmp_path: Path, rows: Rows, others: Rows
) -> None:
    source, target = way()
    write_rows(source, rows)
    write_rows(target, others)
    rows, others = read_rows(source), read_rows(target)
    shutil.rmtree(tmp_path / "archive", ignore_errors=True)
    export_store(source, tmp_path / "archive", part_rows=2)
    added = import_store(tmp_path / "archive", target)
    merged = read_rows(target)
    for name in others:
        kept = len(others[name])
        assert _comparable(name, merged[name][:kept]) == _comparable(name, others[name])
    told = [row for row in merged["events"] if row[2] == "store.imported"]
    is_merge = any(others.values()) and any(added.values())
    assert told == (merged["events"][-1:] if is_merge else [])
    without = {**merged, "events": merged["events"][: -len(told) or None]}
    assert _names(without) == _union(_names(rows), _names(others))
    import_store(tmp_path / "archive", target)
    assert read_rows(target) == merged


def _comparable(name: str, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    positions = [i for i, c in enumerate(plan_of(name).columns) if c not in IGNORED.get(name, ())]
    return [tuple(row[i] for i in positions) for row in rows]


def _names(rows: Rows) -> dict[str, set[str]]:
    """Each row by what it says, with the rows it refers to by what they say."""
    said: dict[str, dict[int, str]] = {}
    for plan in plans():
        if plan.name in LOCAL:
            continue
        parents = {p.column: str(p.table.name) for p in plan.parents}
        said[plan.name] = {}
        for row in rows[plan.name]:
            values = dict(zip(plan.columns, row, strict=True))
            told = [
                said[parents[c]].get(v, "lost") if c in parents and v is not None else _text(v)
                for c, v in values.items()
                if c != "no" and c not in IGNORED.get(plan.name, ())
            ]
            said[plan.name][row[0]] = f"({', '.join(told)})"
    return {name: set(found.values()) for name, found in said.items()}


def _text(value: object) -> str:
    # SQLite keeps -0.0 as 0, which is equal everywhere else in this file and differs only as a text.
    return repr(value + 0.0 if isinstance(value, float) else value)


def _union(one: dict[str, set[str]], other: dict[str, set[str]]) -> dict[str, set[str]]:
    return {name: one[name] | other[name] for name in one}


def test_every_table_is_covered(tmp_path: Path) -> None:
    """A new table comes along by itself; what it needs is an integer key `no`, and types that an archive knows."""
    assert [plan.name for plan in plans()] == [table.name for table in metadata.sorted_tables]
    assert all(plan.columns[0] == "no" and plan.identity for plan in plans())
    empty = str(tmp_path / "empty.db")
    write_rows(empty, {table.name: [] for table in metadata.sorted_tables})
    for encoding in ENCODINGS:
        assert set(export_store(empty, tmp_path / encoding, encoding=encoding)) == set(metadata.tables)
        manifest = json.loads((tmp_path / encoding / "manifest.json").read_bytes())
        assert set(manifest["tables"]) == set(metadata.tables)
        assert not any(import_store(tmp_path / encoding, tmp_path / f"{encoding}.db").values())
