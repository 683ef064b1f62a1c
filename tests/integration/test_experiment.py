"""An A/B test that really runs: store, gateway, runner, in front of a scripted model server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithm.base import RunStopped
from agentlightning.algorithm.experiment import Comparison
from agentlightning.config import Settings
from agentlightning.kit.errors import BadInputError, ConfigError
from tests.integration.prompt_agents import answering
from tests.scripted_model import SEED, ScriptedModel, tasks

BETTER = f"{SEED}\nrule alpha\nrule beta\nrule gamma"


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel() as server:
        yield server


def prompt(text: str) -> dict[str, Any]:
    return {"prompt_template": agl.PromptTemplate(template=text)}


def run(tmp_path: Path, server: ScriptedModel, comparison: Comparison, data: Any, **options: Any) -> agl.Trainer:
    trainer = agl.Trainer(
        algorithm=comparison,
        strategy="shm",
        initial_resources={"llm": agl.LLM(endpoint=server.url, model="task"), **prompt("unused {question}")},
        settings=Settings(home=tmp_path / "home"),
        run_id="ab",
        **options,
    )
    trainer.fit(answering, data)
    return trainer


def test_the_better_prompt_wins_before_all_is_spent(tmp_path: Path, server: ScriptedModel) -> None:
    comparison = Comparison(prompt(SEED), prompt(BETTER), test=agl.ABTest(experiment_duration=200), batch_size=20)
    seen: list[dict[str, Any]] = []
    trainer = run(tmp_path, server, comparison, tasks(40), on_event=seen.append)
    verdict = comparison.verdict
    assert verdict is not None
    assert (verdict.winner, verdict.is_over) == ("treatment", True)
    assert sum(verdict.n.values()) < 200
    assert verdict.mean["treatment"] == 1.0
    assert (verdict.mean["control"] or 0) < 0.6
    kept = json.loads((trainer.directory / "abtest.json").read_text())
    assert kept["verdict"] == verdict.as_dict()
    assert kept["arms"]["treatment"]["prompt_template"]["template"] == BETTER
    assert [event["n"] for event in seen if event["type"] == "abtest"][-1] == verdict.n


def test_a_run_that_was_stopped_goes_on_without_asking_again(tmp_path: Path, server: ScriptedModel) -> None:
    def comparison() -> Comparison:
        test = agl.ABTest(experiment_duration=60, minimal_effect=0.01)
        return Comparison(prompt(SEED), prompt(f"{SEED}\nrule alpha"), test=test, batch_size=10)

    whole = comparison()
    run(tmp_path / "whole", server, whole, tasks(30))
    asked = len(server.bodies)
    first = comparison()
    looks: list[int] = []

    def stop_after_two(event: dict[str, Any]) -> None:
        if event["type"] == "abtest":
            looks.append(1)
            if len(looks) == 2:
                first.get_context().stopping.set()

    with pytest.raises(RunStopped):
        run(tmp_path, server, first, tasks(30), on_event=stop_after_two)
    before = len(server.bodies) - asked
    assert before == 20
    second = comparison()
    run(tmp_path, server, second, tasks(30))
    assert second.verdict == whole.verdict
    assert len(server.bodies) - asked == asked, "as many as without the interruption"


def test_what_belongs_together_meets_one_arm_and_counts_once(tmp_path: Path, server: ScriptedModel) -> None:
    test = agl.ABTest(experiment_duration=100)
    comparison = Comparison(prompt(SEED), prompt(BETTER), test=test, key=lambda task: task["user"])
    data = [{**task, "user": f"u{number % 10}"} for number, task in enumerate(tasks(30))]
    run(tmp_path, server, comparison, data)
    verdict = comparison.verdict
    assert verdict is not None
    assert sum(verdict.n.values()) == 10
    assert (verdict.winner, verdict.is_over) == (None, False)
    assert "15 are needed" in verdict.reason
    assert len(server.bodies) == 30, "each task once"


def test_what_cannot_be_compared_is_refused(tmp_path: Path, server: ScriptedModel) -> None:
    with pytest.raises(ConfigError, match="the same"):
        Comparison(prompt("a"), prompt("a"))
    with pytest.raises(ConfigError, match="batch_size"):
        Comparison(prompt("a"), prompt("b"), batch_size=0)
    with pytest.raises(BadInputError, match="no tasks"):
        run(tmp_path, server, Comparison(prompt(SEED), prompt(BETTER)), [])
