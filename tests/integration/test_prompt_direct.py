"""`APO().optimize(data).best_prompt`, with tasks, exports, Training Camp sessions, an agent or none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithm.prompt.direct import read_data, rubric_of
from agentlightning.config import Settings
from agentlightning.integrations.training_camp import read_export
from agentlightning.kit.errors import BadInputError, ConfigError, SignalError
from tests.integration.prompt_agents import answering
from tests.scripted_model import PROPOSER, SEED, ScriptedModel, tasks


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedModel]:
    monkeypatch.setenv("AGL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ScriptedModel() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_MODEL", "task")
        yield server


def judging(text: str) -> str:
    """Answers tasks, and judges: an answer is good when it is a number."""
    if "You judge the output" in text:
        found = text.rpartition("Output:\n")[2].partition("\n")[0]
        return json.dumps({"score": 10 if found.strip().isdigit() else 0})
    category, value = re.findall(r"category=(\w+) value=(\d+)", text)[-1]
    return value if category == "plain" or f"rule {category}" in text else "no idea"


def test_tasks_and_a_prompt_are_enough(server: ScriptedModel) -> None:
    optimizer = agl.APO(beam_width=2, branch_factor=2, rounds=3, proposer_model=PROPOSER)
    result = optimizer.optimize(tasks(24), prompt=SEED)
    assert "rule" in result.best_prompt.template
    assert result.best_prompt.format(question="why?").startswith("Answer the question why?.")


def test_an_agent_of_ones_own_is_used(server: ScriptedModel, tmp_path: Path) -> None:
    result = agl.APO(beam_width=2, branch_factor=2, rounds=2, proposer_model=PROPOSER).optimize(
        tasks(16),
        agent=answering,
        prompt=agl.PromptTemplate(template=SEED),
        val_data=tasks(8, 100),
        test_data=tasks(8, 200),
        settings=Settings(home=tmp_path / "other"),
    )
    assert result.comparisons[0].data == "test"
    assert result.directory.is_relative_to(tmp_path / "other")


def test_an_export_is_judged_like_people_did(server: ScriptedModel) -> None:
    server.answer = judging
    rollouts = [
        {"input": task["question"], "output": "no idea", "score": 2 if n % 2 else 7, "comment": "say the number"}
        for n, task in enumerate(tasks(24))
    ]
    data = {"rollouts": rollouts, "resources": [{"name": "solver", "systemPrompt": "Solve {it}."}], "rewards": []}
    optimizer = agl.APO(beam_width=2, branch_factor=2, rounds=3, proposer_model=PROPOSER)
    result = optimizer.optimize(data)
    assert result.best_prompt.format().startswith("Solve {it}.")
    assert "rule" in result.best_prompt.format()
    asked = [b["messages"][0]["content"] for b in server.bodies if "You judge" in b["messages"][0]["content"]]
    assert "7 of 10 (say the number): no idea" in asked[0]
    assert result.spent["calls"] == server.total  # those of the judge are paid for, too


def test_a_judge_that_answers_garbage_is_named(server: ScriptedModel) -> None:
    server.answer = lambda text: "Nice." if "You judge the output" in text else "an answer"
    questions = [{"question": task["question"]} for task in tasks(16)]
    with pytest.raises(
        SignalError, match=r"none of \d+ rollouts has a reward.*The judge '.+' answered 'Nice.', which is"
    ):
        agl.APO(proposer_model=PROPOSER).optimize(questions, prompt=SEED)


def camp(attempts: int = 16, agents: int = 1) -> Any:
    def event(number: int, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        moment = f"2026-03-01T12:{number // 60:02}:{number % 60:02}Z"
        return {"id": f"{kind}{number}", "eventType": kind, "createdAt": moment, "payload": payload}

    events: list[dict[str, Any]] = []
    for n, task in enumerate(tasks(attempts)):
        made = {
            "attemptId": f"a{n}",
            "agentId": "solver",
            "cycle": n,
            "input": task["question"],
            "output": "no idea",
            "startedAt": "2026-03-01T12:00:00Z",
            "endedAt": "2026-03-01T12:00:01Z",
            "artifacts": [{"id": f"x{n}", "content": "no idea"}],
        }
        events.append(event(2 * n, "attempt.completed", made))
        events.append(event(2 * n + 1, "artifact.scored", {"artifactId": f"x{n}", "score": n % 10, "author": "ada"}))
    defined = [{"id": name, "version": 1, "name": name, "systemPrompt": "Solve."} for name in ("solver", "other")]
    return read_export(
        {
            "format": "training-camp",
            "version": 1,
            "session": {"id": "s"},
            "agents": defined[:agents],
            "events": events,
        }
    )


def test_a_training_camp_session_is_data(server: ScriptedModel) -> None:
    server.answer = judging
    optimizer = agl.APO(beam_width=2, branch_factor=2, rounds=2, proposer_model=PROPOSER)
    result = optimizer.optimize(camp())
    assert list(result.best_prompts) == ["solver"]
    assert "rule" in result.best_prompt.template
    with pytest.raises(BadInputError, match="Which agent"):
        agl.APO().optimize(camp(agents=2))
    assert camp(agents=2).optimization_data("solver").prompts["solver"].template == "Solve."


def test_scores_beside_the_rollouts_of_an_export_are_read() -> None:
    rollouts = [{"attemptId": f"a{n}", "input": f"task {n}", "output": f"answer {n}"} for n in range(3)]
    rewards: list[dict[str, Any]] = [
        {"attemptId": "a1", "score": 9, "comment": "fine"},
        {"rolloutId": "a2", "value": 0},
    ]
    found = read_data({"rollouts": rollouts, "rewards": rewards})
    assert [(j.task, j.output, j.score, j.comment) for j in found.judged] == [
        ("task 1", "answer 1", 0.9, "fine"),
        ("task 2", "answer 2", 0.0, ""),
    ]
    for wrong, said in (({"attemptId": "zz", "score": 1}, "none of the rollouts"), ("a1", "none of the rollouts")):
        with pytest.raises(BadInputError, match=said):
            read_data({"rollouts": rollouts, "rewards": [wrong]})
    with pytest.raises(BadInputError, match="90 is no score"):
        read_data({"rollouts": rollouts, "rewards": [{"attemptId": "a1", "score": 90}]})


def test_of_lineages_side_by_side_the_best_one_is_improved() -> None:
    def data(scores: dict[str, int]) -> Any:
        content = session_of(scores)
        return read_export(content).optimization_data()

    def session_of(scores: dict[str, int]) -> dict[str, Any]:
        content = camp(4).source.model_dump(mode="json", by_alias=True, exclude_unset=True)
        content["agents"] = [{"id": f"of-{n}", "version": 1, "name": n, "systemPrompt": f"As {n}."} for n in "AB"]
        content["lineages"] = [{"id": name, "agentId": f"of-{name}"} for name in "AB"]
        for number, event in enumerate(content["events"]):
            name = "AB"[number // 2 % 2]
            if event["eventType"] == "attempt.completed":
                event["payload"] |= {"lineageId": name, "agentId": f"of-{name}"}
            else:
                event["payload"]["score"] = scores[name]
        return content

    found = data({"A": 3, "B": 7})
    assert found.prompts["of-B"].template == "As B."
    assert len(found.tasks) == 4
    assert [judged.score for judged in found.judged] == [0.7, 0.7]
    with pytest.raises(BadInputError, match="Which agent"):
        data({"A": 5, "B": 5})


def test_what_is_missing_is_named(server: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, message in ((3, "int is no data"), ("text", "str is no data"), ({"x": 1}, "neither 'rollouts' nor")):
        with pytest.raises(BadInputError, match=message):
            agl.EditSearch().optimize(data)
    with pytest.raises(ConfigError, match="no prompt to optimise"):
        agl.EditSearch().optimize(tasks(8))
    two = {name: agl.PromptTemplate(template=name) for name in "ab"}
    with pytest.raises(ConfigError, match=r"2 prompts .a, b., and no agent"):
        agl.EditSearch().optimize(tasks(8), prompt=two)
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(ConfigError, match="no model to try prompts on"):
        agl.EditSearch().optimize(tasks(8), prompt=SEED)
    assert rubric_of([]).count("\n") == 0
