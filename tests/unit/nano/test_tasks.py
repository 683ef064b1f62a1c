"""Tasks are the same every time, answerable, and graded by the rows of the last query."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from agentlightning.nano import TaskSplit, grade, make_tasks
from agentlightning.nano.databases import build_database
from agentlightning.nano.questions import KINDS
from agentlightning.nano.tasks import PRETRAIN_DATABASES, SOURCES, same_rows, tasks_on

Fetch = Callable[[str | Path, str], list[Any]]
SPLITS: tuple[TaskSplit, ...] = get_args(TaskSplit)


@pytest.mark.parametrize("split", SPLITS)
def test_make_tasks_when_repeated_gives_the_same(split: TaskSplit, database_dir: Path, tmp_path: Path) -> None:
    first = make_tasks(split, 40, 3, database_dir)
    again = make_tasks(split, 40, 3, tmp_path)
    assert [_placeless(task) for task in first] == [_placeless(task) for task in again]
    assert json.loads(json.dumps(first)) == first
    assert len({task["id"] for task in first}) == 40
    other = make_tasks(split, 40, 4, database_dir)
    assert [task["question"] for task in other] != [task["question"] for task in first]


@pytest.mark.parametrize("split", SPLITS)
def test_make_tasks_when_drawn_has_every_kind_equally_often(split: TaskSplit, database_dir: Path) -> None:
    counts = Counter(task["kind"] for task in make_tasks(split, 9 * 12, 0, database_dir))
    assert counts == dict.fromkeys(KINDS, 12)


def test_make_tasks_when_splits_differ_shares_no_question_query_or_database(database_dir: Path) -> None:
    drawn = {split: make_tasks(split, 200, 0, database_dir) for split in SPLITS}
    for split in ("val", "test", "test_unseen_phrasing"):
        for key in ("database", "gold_sql"):
            assert not {t[key] for t in drawn["train"]} & {t[key] for t in drawn[split]}
    for key in ("database", "gold_sql"):
        assert not {t[key] for t in drawn["val"]} & {t[key] for t in drawn["test"]}
    assert not {t["question"] for t in drawn["test"]} & {t["question"] for t in drawn["test_unseen_phrasing"]}
    assert {t["phrasing"] for t in drawn["test_unseen_phrasing"]} == {"unseen"}


def test_sources_when_compared_use_different_databases() -> None:
    seeds = {(s.first_database, s.n_databases) for s in SOURCES.values()}
    ranges = [set(PRETRAIN_DATABASES), *(set(range(first, first + n)) for first, n in seeds)]
    assert sum(map(len, ranges)) == len(set().union(*ranges))


def test_gold_queries_when_run_return_rows(database_dir: Path, fetch: Fetch) -> None:
    for task in make_tasks("test", 120, 1, database_dir):
        rows = fetch(task["database"], task["gold_sql"])
        assert rows
        assert rows[0][-1] is not None
        assert task["ordered"] == ("ORDER BY" in task["gold_sql"])
        assert grade(task, rows) == 1.0


def test_grade_when_rows_are_missing_wrong_or_reordered(database_dir: Path, fetch: Fetch) -> None:
    tasks = make_tasks("test", 90, 2, database_dir)
    top = next(task for task in tasks if task["kind"] == "top")
    group = next(task for task in tasks if task["kind"] == "group")
    for task, order_matters in ((top, True), (group, False)):
        rows = fetch(task["database"], task["gold_sql"])
        assert grade(task, None) == 0.0
        assert grade(task, []) == 0.0
        assert grade(task, rows[:-1]) == 0.0
        assert grade(task, [(*row, 1) for row in rows]) == 0.0
        assert grade(task, rows[::-1]) == (0.0 if order_matters else 1.0)
        assert grade(task, [list(row) for row in rows]) == 1.0


def test_same_rows_when_numbers_differ_by_rounding_are_equal() -> None:
    assert same_rows([(0.1 + 0.2, None)], [(0.3, None)], ordered=False)
    assert same_rows([(3,)], [(3.0,)], ordered=False)
    assert not same_rows([(3,)], [("3",)], ordered=False)
    assert not same_rows([(100.0,)], [(100.1,)], ordered=False)
    assert same_rows([("a", 1), ("b", 2)], [("b", 2), ("a", 1)], ordered=False)


def test_build_database_when_there_keeps_it_and_when_rebuilt_is_equal(tmp_path: Path, fetch: Fetch) -> None:
    first = build_database(7, tmp_path / "a")
    stamp = first.stat().st_mtime_ns
    assert build_database(7, tmp_path / "a").stat().st_mtime_ns == stamp
    again = build_database(7, tmp_path / "b")
    tables = "SELECT name FROM sqlite_master ORDER BY name"
    dump = [[fetch(path, f"SELECT * FROM {name}") for (name,) in fetch(path, tables)] for path in (first, again)]
    assert dump[0] == dump[1]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["db-7.sqlite"]


def test_questions_about_one_database_have_queries_of_their_own(tmp_path: Path, fetch: Fetch) -> None:
    train, test = (tasks_on(1, split, 60, 0, tmp_path) for split in ("train", "test"))
    queries = [{task["gold_sql"] for task in tasks} for tasks in (train, test)]
    assert [len(found) for found in queries] == [60, 60]
    assert not queries[0] & queries[1]
    assert len({task["kind"] for task in train}) == len({task["kind"] for task in test}) == 9
    assert {task["database"] for task in train + test} == {str(tmp_path / "db-1.sqlite")}
    assert all(grade(task, fetch(task["database"], task["gold_sql"])) == 1.0 for task in test)
    assert 60 < len(tasks_on(1, "test", 10_000, 0, tmp_path)) < 10_000, "there are not more"


def _placeless(task: dict[str, object]) -> dict[str, object]:
    return task | {"database": Path(str(task["database"])).name}
