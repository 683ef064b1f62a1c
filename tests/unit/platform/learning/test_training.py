"""What an experiment's process makes of an agent: its tasks, its settings, what is learnt from, what is told."""

from pathlib import Path
from typing import Any

import pytest

from agentlightning.algorithm import GRPO, SFT
from agentlightning.platform.agents.shipped import shipped
from agentlightning.platform.learning.algorithms import ExperimentConfig
from agentlightning.platform.learning.cases import HELD_OUT_QUESTIONS, TRAIN_QUESTIONS, Cases, cases_of
from agentlightning.platform.learning.order import Job, Trained
from agentlightning.platform.learning.training import (
    Progress,
    algorithm_of,
    comparisons_of,
    described,
    judge_of,
    leaves_out,
)
from agentlightning.registry import ModelVersion
from agentlightning.schemas import Rollout
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.trainer import RunResult
from tests.unit.platform.learning.pupils import pupil


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def job(
    home: Path, definition: AgentDefinition, algorithm: str = "grpo", style: str | None = None, **settings: Any
) -> Job:
    return Job(
        run_id="r",
        home=home,
        store=str(home / "store.db"),
        definition=definition,
        algorithm=algorithm,
        config=ExperimentConfig(seed=3, settings=settings),
        model="",
        base_url="http://nowhere.invalid/v1",
        api_key="",
        permissions=[],
        weights=Trained(path="p", device="cpu", style=style, name="agent-1-x"),
    )


def test_cases_are_the_agents_own_or_the_sample_databases(home: Path):
    sql = shipped("sql_agent")
    own = cases_of(sql, None, home)
    assert (own.source, len(own.train), len(own.held_out)) == ("evaluation cases", 5, 3)
    sample = cases_of(sql, "text_to_sql", home)
    assert (sample.source, len(sample.train), len(sample.held_out)) == (
        "sample database",
        TRAIN_QUESTIONS,
        HELD_OUT_QUESTIONS,
    )
    queries = [{task["sample"]["gold_sql"] for task in part} for part in (sample.train, sample.held_out)]
    assert len(queries[0]) == TRAIN_QUESTIONS, "no query twice"
    assert not queries[0] & queries[1]
    assert cases_of(pupil(home), "text_to_sql", home).source == "evaluation cases", "they can be asked there"


def test_settings_fit_the_model_and_the_experiments_own_come_last(home: Path):
    definition = pupil(home)
    cases = cases_of(definition, "text_to_sql", home)
    embedded = algorithm_of(job(home, definition, style="text_to_sql", steps=2), cases)
    assert isinstance(embedded, GRPO)
    assert (embedded.config.steps, embedded.config.learning_rate, embedded.config.seed) == (2, 5e-4, 3)
    assert (embedded.config.prompts_per_step, embedded.config.eval_every) == (len(cases.train), 0)
    larger = algorithm_of(job(home, definition), cases)
    assert isinstance(larger, GRPO)
    assert larger.config.learning_rate == GRPO().config.learning_rate
    tuned = algorithm_of(job(home, definition, "sft", "text_to_sql", min_reward=0.9), cases)
    assert isinstance(tuned, SFT)
    assert (tuned.config.min_reward, tuned.config.learning_rate) == (0.9, 5e-4)
    assert algorithm_of(job(home, definition, "sft"), cases).config.min_reward == 0.75  # pyright: ignore[reportAttributeAccessIssue]


def test_only_the_agents_own_tasks_and_no_held_out_ones_are_learnt_from(home: Path):
    definition = pupil(home)
    cases = cases_of(definition, "text_to_sql", home)
    why = leaves_out(definition, cases)

    def asked(text: Any, agent: str | None = "pupil_agent") -> str | None:
        metadata = None if agent is None else {"agent": agent}
        return why(Rollout(rollout_id="r", input=text, start_time=0.0, metadata=metadata))

    held_out = cases.held_out[0]["input"]
    assert asked({"task": cases.train[0]["input"]}) is None
    assert asked({"task": f"  {held_out.upper()} "}) == "held_out"
    assert asked(held_out) == "held_out"
    assert asked({"task": "x"}, "other_agent") == asked({"task": "x"}, None) == "other_agent"


def result(home: Path, before: list[float | None], after: list[float | None], *, registered: bool = True) -> RunResult:
    made = RunResult("r", home)
    for name in ("held_out/sampled", "held_out/greedy"):
        made.before[name], made.after[name] = {"rewards": before}, {"rewards": after}
    if registered:
        made.model = ModelVersion("agent-1-x", "v2", home, "b", "r", 2, 0.0, parent="agent-1-x@v1")
    return made


def test_the_result_is_judged_case_by_case_and_says_when_nothing_is_better(home: Path):
    definition, cases = pupil(home), Cases([{}] * 4, [{}] * 40)
    better = described(result(home, [0.0] * 30 + [1.0] * 10, [1.0] * 40), job(home, definition), cases)
    assert better["metrics"]["is_improved"] is True
    assert better["metrics"]["comparisons"][0]["data"] == "held_out/greedy", "it asks at a low temperature"
    assert better["metrics"]["why"].startswith("Better on 40")
    assert (better["checkpoint"]["model"], better["checkpoint"]["parent"]) == ("agent-1-x@v2", "agent-1-x@v1")
    same = described(result(home, [0.0, 1.0] * 20, [1.0, 0.0] * 20), job(home, definition), cases)
    assert same["metrics"]["is_improved"] is False
    assert same["metrics"]["why"].startswith("Not shown to be better")
    nothing = described(result(home, [None], [1.0], registered=False), job(home, definition), cases)
    assert (nothing["metrics"]["is_improved"], nothing["checkpoint"]) == (False, None)
    assert "Nothing can be said" in nothing["metrics"]["why"]
    by_samples = comparisons_of(result(home, [0.0], [1.0]), 1.0)
    assert [each.data for each in by_samples] == ["held_out/sampled", "held_out/greedy"]


def test_progress_tells_all_of_it_each_time():
    told: list[dict[str, Any]] = []
    progress = Progress(told.append)
    progress({"type": "compare", "when": "before", "name": "held_out/greedy", "accuracy": 0.2})
    progress({"type": "started", "step": 0, "steps": 2})
    progress({"type": "phase", "name": "training"})
    progress({"type": "checkpoint", "step": 1})
    progress({"type": "step", "step": 1, "steps": 2, "reward": 0.5, "loss": 0.1, "sample_s": 3.0})
    progress({"type": "eval", "step": 1, "accuracy": 0.4})
    assert told[-1] == {
        "phase": "training",
        "step": 1,
        "steps": 2,
        "reward": 0.5,
        "rewards": [[1, 0.5]],
        "loss": 0.1,
        "score": 0.4,
        "scores": {"before/held_out/greedy": 0.2},
    }
    assert len(told) == 5


async def test_no_judge_is_no_verdict(home: Path):
    from agentlightning.algorithm.evaluators import Checker

    definition = pupil(home, evaluator={"kind": "judge", "rubric": "Is it right?"})
    for model in ("", "absent"):
        asked = job(home, definition).model_copy(update={"model": model})
        checker = Checker(ask=judge_of(asked))
        verdict = await checker.check(definition.evaluator, definition.evaluation[0], "an answer")
        assert (verdict.score, verdict.passed) == (None, None)
