"""Rewards by comparison, by schema, by running, by sums; found by name or path."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.agent.results import Evaluator
from agentlightning.algorithm.rewards import (
    F1,
    ExactMatch,
    JsonSchema,
    PythonExecution,
    Regex,
    SqlExecution,
    Weighted,
    find_reward,
    output_text,
    register_reward,
)
from agentlightning.kit.errors import BadInputError, ConfigError
from agentlightning.tools.sandbox import shared_sandbox

SCHEMA = "CREATE TABLE t (n INTEGER, s TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c');"


@pytest.mark.parametrize(
    ("reward", "task", "output", "expected"),
    [
        (ExactMatch(), {"expected": "The Answer!"}, "answer", 1.0),
        (ExactMatch(), {"answer": ["x", "y"]}, "y", 1.0),
        (ExactMatch(), {"answer": 42}, {"output": "42"}, 1.0),
        (ExactMatch(normalize=False), {"expected": "A"}, "a", 0.0),
        (ExactMatch("gold_text"), {"gold_text": "z", "expected": "q"}, "z", 1.0),
        (ExactMatch(), {"question": "?"}, "anything", None),
        (ExactMatch(), "a plain task", "anything", None),
        (ExactMatch(), {"expected": "?!"}, "!!", 0.0),
        (ExactMatch(), {"expected": "x"}, None, 0.0),
        (F1(), {"expected": "red green blue"}, "green blue yellow", 2 / 3),
        (F1(), {"expected": "red"}, "blue", 0.0),
        (F1(), {"expected": "red"}, "", 0.0),
        (F1(), {}, "x", None),
        (Regex(r"final: (\w+)", group=1), {"expected": "nova"}, "so\nfinal: Nova", 1.0),
        (Regex(r"final: (\w+)", group=1), {"expected": "nova"}, "nova", 0.0),
        (Regex(r"final: (\w+)", group=1), {}, "final: nova", None),
        (Regex(r"\d"), {}, "a1", 1.0),
        (JsonSchema({"type": "object", "required": ["a"]}), {}, '```json\n{"a": 1}\n```', 1.0),
        (JsonSchema({"type": "object", "required": ["a"]}, partial=0.5), {}, {"b": 1}, 0.5),
        (JsonSchema(), {"schema": {"type": "array"}}, "[1", 0.0),
        (JsonSchema(), {}, "[1]", None),
    ],
)
async def test_comparisons(reward: agl.Reward, task: Any, output: Any, expected: float | None) -> None:
    assert await reward(task, output) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT n FROM t WHERE n > 1", 1.0),
        ("```sql\nSELECT n FROM t WHERE n >= 2 ORDER BY n DESC\n```", 1.0),
        ("SELECT n FROM t", 0.0),
        ("SELEC", 0.0),
        ("", 0.0),
        ("SELECT 1; SELECT 2", 0.0),
        ("DELETE FROM t", 0.0),
        ("ATTACH 'x.db' AS x", 0.0),
        ("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT count(*) FROM c", 0.0),
    ],
)
async def test_sql_is_compared_by_its_rows(query: str, expected: float) -> None:
    task = {"schema": SCHEMA, "sql": "SELECT n FROM t WHERE n > 1"}
    assert await SqlExecution(timeout_s=0.3)(task, query) == expected


async def test_sql_on_a_file_keeps_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA)
    connection.close()
    before = path.read_bytes()
    task = {"database": str(path), "query": "SELECT s FROM t ORDER BY n"}
    assert await SqlExecution()(task, "SELECT s FROM t ORDER BY n DESC") == 0.0
    assert await SqlExecution(path)({"query": "SELECT 1"}, "DROP TABLE t") == 0.0
    assert path.read_bytes() == before
    assert await SqlExecution()({"database": str(path)}, "SELECT 1") is None
    for bad in ({"query": "SELECT 1"}, {"query": "SELECT 1", "database": "gone.db"}, {"query": "X", "schema": ""}):
        with pytest.raises(BadInputError):
            await SqlExecution()(bad, "SELECT 1")


needs_sandbox = pytest.mark.skipif(asyncio.run(shared_sandbox().state()).mechanism is None, reason="no sandbox here")


@needs_sandbox
async def test_python_is_scored_by_its_tests() -> None:
    task = {"tests": ["assert double(2) == 4", "assert double('a') == 'aa'", "assert double(None) is None"]}
    assert await PythonExecution()(task, "```python\ndef double(x):\n    return x * 2\n```") == pytest.approx(2 / 3)
    assert await PythonExecution()(task, "import sys\nsys.exit(0)") == 0.0
    assert await PythonExecution(timeout_s=1)({"tests": ["pass"]}, "while True: pass") == 0.0
    assert await PythonExecution()({"expected": "42"}, "print(6 * 7)") == 1.0
    assert await PythonExecution()({"expected": "42"}, "print(6 *") == 0.0
    assert await PythonExecution()({}, "print(1)") is None


async def test_sums() -> None:
    both = ExactMatch() * 0.75 + 0.25 * Regex(r"!")
    assert await both({"expected": "yes"}, "yes!") == 1.0
    assert await both({"expected": "no"}, "yes!") == 0.25
    assert await both({}, "yes!") is None
    task_only = Weighted((ExactMatch(), 3), (lambda output: 0.5, 1), missing="skip")
    assert await task_only({}, "x") == pytest.approx(2.0)  # 0.5 with the whole weight of 4
    assert await task_only({"expected": "x"}, "x") == pytest.approx(3.5)
    assert len((ExactMatch() + F1() + len).parts) == 3
    assert await (ExactMatch() + F1())({"expected": "x"}, "x") == 2.0
    assert (both * 2).parts[0][1] == 1.5
    for wrong in ([], [(len, float("nan"))]):
        with pytest.raises(ConfigError):
            Weighted(*wrong)
    with pytest.raises(ConfigError):
        Weighted((len, 1), missing="zero")


class Polite(agl.Reward):
    """A subclass, as users write it."""

    def score(self, task: Any, output: Any) -> float:
        return float("please" in output)


async def slow_judge(task: Any, output: Any) -> float:
    return 0.25


async def test_rewards_are_found_in_every_way() -> None:
    assert await find_reward("exact")({"expected": "x"}, "x") == 1.0
    assert await find_reward(Polite)({}, "please") == 1.0
    assert await find_reward(Polite())({}, "now") == 0.0
    assert await find_reward(slow_judge)({}, "") == 0.25
    assert await find_reward("tests.unit.algorithm.test_rewards:slow_judge")({}, "") == 0.25
    assert await find_reward(lambda output: len(output))({}, "abc") == 3

    @register_reward("brief-test")
    def brief(task: Any, output: Any) -> float:
        return float(len(output) < 3)

    assert brief({}, "ab") == 1.0
    assert await find_reward("brief-test")({}, "abcd") == 0.0
    with pytest.raises(ConfigError, match="already"):
        register_reward("exact")(brief)
    with pytest.raises(ConfigError, match="no reward 'exatc'"):
        find_reward("exatc")
    with pytest.raises(ConfigError, match="is no reward"):
        find_reward(3)


async def test_a_runner_can_score_with_them() -> None:
    evaluator = Evaluator(ExactMatch())
    assert evaluator.is_async
    args, kwargs = evaluator.bind({"expected": "x", "n": 1}, "x", {}, None)  # pyright: ignore[reportArgumentType]
    assert await evaluator.function(*args, **kwargs) == 1.0


async def test_a_base_class_scores_nothing() -> None:
    with pytest.raises(NotImplementedError):
        await agl.Reward()({}, "")
    assert output_text([1]) == "[1]"
    assert output_text(None) is None
