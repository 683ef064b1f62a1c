"""`agl store feedback | preferences | gc | prune`: what is printed, what is written, what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agentlightning.kit.errors import BadInputError, NotFoundError, StorageError
from agentlightning.store import SqlLightningStore
from tests.unit.agent.builders import model_call
from tests.unit.cli.test_store import agl

LARGE = "Be careful. " * 1000


async def _fill(path: Path) -> None:
    store = SqlLightningStore(path)
    for name in ("good", "bad", "odd"):
        rollout = await store.start_rollout("task", rollout_id=name, metadata={"large": LARGE + name})
        attempt_id = rollout.attempt.attempt_id
        if name != "odd":
            call = model_call([1], [2], output={"role": "assistant", "content": f"{name} answer"})
            await store.add_span(call.model_copy(update={"rollout_id": name, "attempt_id": attempt_id}))
        await store.update_attempt(name, attempt_id, status="succeeded")
    await store.close()


@pytest.fixture
def store(tmp_path: Path) -> str:
    asyncio.run(_fill(tmp_path / "s.db"))
    return str(tmp_path / "s.db")


async def _prefer(path: str) -> None:
    opened = SqlLightningStore(path)
    await opened.add_preference("good", "bad", preference_id="p1")
    await opened.add_preference("good", "odd", preference_id="p2", source="judge")
    await opened.close()


def test_feedback_is_added_and_listed(store: str, tmp_path: Path) -> None:
    assert "no feedback yet" in agl("feedback", "list", "--store", store).stdout
    assert "kept as fb-" in agl("feedback", "add", "good", "--score", "7", "--author", "ada", "--store", store).stdout
    given = agl("feedback", "add", "bad", "--score", "2", "--scale", "1", "5", "--json", "--store", store)
    assert json.loads(given.stdout)["score_max"] == 5.0
    agl("feedback", "add", "bad", "--thumb", "down", "--comment", "wrong", "--store", store)
    table = agl("feedback", "list", "--store", store).stdout
    assert "7 of 10" in table
    assert "2 of 5" in table
    assert "wrong" in table
    listed = json.loads(agl("feedback", "list", "--author", "ada", "--json", "--store", store).stdout)
    assert [item["rollout_id"] for item in listed] == ["good"]
    assert "2 more" in agl("feedback", "list", "--limit", "1", "--store", store).stderr
    for arguments in (("good", "--score", "11"), ("good",), ("good", "--thumb", "sideways")):
        with pytest.raises(BadInputError):
            agl("feedback", "add", *arguments, "--store", store)
    with pytest.raises(NotFoundError, match="nobody"):
        agl("feedback", "add", "nobody", "--thumb", "up", "--store", store)
    result = agl("feedback", "samples", "--store", store)
    assert [json.loads(line)["score"] for line in result.stdout.splitlines()] == [0.7, 0.25]
    assert "2 written, 1 skipped" in result.stderr
    assert "no_score: 1" in result.stderr


def test_preferences_are_listed_and_written(store: str, tmp_path: Path) -> None:
    assert "no preferences yet" in agl("preferences", "--store", store).stdout
    asyncio.run(_prefer(store))
    assert "judge" in agl("preferences", "--store", store).stdout
    listed = json.loads(agl("preferences", "--source", "judge", "--json", "--store", store).stdout)
    assert [item["preference_id"] for item in listed] == ["p2"]
    result = agl("preferences", "--as", "jsonl", "--store", store)
    [row] = [json.loads(line) for line in result.stdout.splitlines()]
    assert (row["prompt"][0]["role"], row["chosen"][0]["content"]) == ("user", "good answer")
    assert "1 written, 1 skipped" in result.stderr
    assert "no_model_call: 1, e.g. p2" in result.stderr
    target = tmp_path / "out" / "pairs.jsonl"
    agl("preferences", "--as", "jsonl", "-o", str(target), "--store", store)
    assert json.loads(target.read_text()) == row
    assert [path.name for path in target.parent.iterdir()] == ["pairs.jsonl"]
    with pytest.raises(StorageError, match="Cannot write"):
        agl("preferences", "--as", "jsonl", "-o", str(target / "x"), "--store", store)


def test_old_rollouts_and_garbage_go(store: str) -> None:
    asyncio.run(_prefer(store))
    agl("feedback", "add", "good", "--thumb", "up", "--store", store)
    assert "removed 0 payloads" in agl("gc", store).stdout
    planned = agl("prune", store, "--older-than", "0s", "--dry-run").stdout
    assert "would delete 0 rollouts" in planned
    assert "kept 3 that people judged" in planned
    assert "deleted 2 rollouts" in agl("prune", store, "--keep-last", "1", "--force").stdout
    done = json.loads(agl("prune", store, "--older-than", "0s", "--force", "--json").stdout)
    assert (done["deleted"], done["kept"]) == (1, 0)
    assert done["removed"] > 0
    assert json.loads(agl("gc", store, "--json").stdout)["removed"] == 0
    assert json.loads(agl("info", store, "--json").stdout)["rows"]["payloads"] == 0


def test_pruning_without_a_limit_is_refused(store: str) -> None:
    with pytest.raises(BadInputError, match="needs a limit"):
        agl("prune", store)
    with pytest.raises(BadInputError, match="no age"):
        agl("prune", store, "--older-than", "soon")
    with pytest.raises(NotFoundError, match="no store"):
        agl("gc", store + "x")
    assert json.loads(agl("info", store, "--json").stdout)["rows"]["rollouts"] == 3


@pytest.mark.parametrize("command", [("gc",), ("prune",), ("preferences",), ("feedback", "list"), ("feedback", "add")])
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    assert f"agl store {' '.join(command)}" in agl(*command, "--help").stdout
