"""Trainer.fit and .dev with real stores, gateways, engines and runner processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning import nano
from agentlightning.algorithm.evaluation import evaluate
from agentlightning.config import Settings
from agentlightning.kit.errors import BusyError, ConfigError, SignalError
from agentlightning.trainer.runlog import MetricsLog, RunRecord

TASKS = [{"question": "How many cars are there?", "n": i} for i in range(4)]
SMALL = {
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 4,
    "learning_rate": 1e-4,
    "max_tokens": 12,
    "minibatches": 1,
    "eval_every": 1,
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


async def ask(llm: agl.LLM, question: str) -> Any:
    async with AsyncOpenAI(base_url=llm.endpoint, api_key="unused") as client:
        return await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": question}])


@agl.rollout
async def length_agent(task: dict[str, Any], llm: agl.LLM) -> float:
    """Rewards long answers: a signal that any sampled model offers."""
    completion = await ask(llm, task["question"])
    assert completion.usage is not None
    return float(completion.usage.completion_tokens)


@agl.rollout
async def constant_agent(task: dict[str, Any], llm: agl.LLM) -> float:
    await ask(llm, task["question"])
    return 1.0


@agl.rollout
async def silent_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    await ask(llm, task["question"])


def callless_agent(task: dict[str, Any]) -> float:
    return float(task["n"] % 2)


def parity(task: dict[str, Any]) -> float:
    return float(task["n"] % 2)


@pytest.mark.slow
def test_grpo_trains_checkpoints_evaluates_and_can_be_repeated(settings: Settings) -> None:
    events: list[dict[str, Any]] = []
    trainer = agl.Trainer(
        algorithm=agl.GRPO(SMALL), model=nano.model_path(), settings=settings, run_id="r1", on_event=events.append
    )
    result = trainer.fit(length_agent, TASKS, val_dataset=TASKS)

    assert set(result.before) == set(result.after) == {"val/sampled", "val/greedy"}
    assert result.before["val/sampled"]["n"] == 4
    steps = [e for e in events if e["type"] == "step"]
    assert [e["step"] for e in steps] == [1, 2]
    assert all(e["calls"] == 8 and e["rollouts_without_reward"] == 0 for e in steps)
    assert steps[0]["tokens_trained"] > 0
    assert steps[0]["grad_norm"] > 0
    assert [e["step"] for e in events if e["type"] == "eval"] == [0, 1, 2]
    assert (result.directory / "model" / "config.json").exists()
    assert RunRecord(result.directory).data["status"] == "succeeded"

    # The same command again finds everything done: nothing is run or trained twice.
    again = agl.Trainer(algorithm=agl.GRPO(SMALL), model=nano.model_path(), settings=settings, run_id="r1")
    assert again.fit(length_agent, TASKS, val_dataset=TASKS).after == result.after
    with sqlite3.connect(settings.store_location) as connection:
        statuses = connection.execute("SELECT status, count(*) FROM rollouts GROUP BY status").fetchall()
    assert statuses == [("succeeded", 2 * 8 + 3 * 4 + 4 * 4)]
    assert [e["step"] for e in MetricsLog(result.directory, tensorboard=False).read() if e["type"] == "step"] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (constant_agent, "every advantage is zero"),
        (silent_agent, "has a reward"),
        (callless_agent, "no model call was captured"),
    ],
)
def test_training_on_nothing_is_refused(settings: Settings, agent: Any, message: str) -> None:
    trainer = agl.Trainer(algorithm=agl.GRPO({**SMALL, "eval_every": 0}), model=nano.model_path(), settings=settings)
    with pytest.raises(SignalError, match=message) as caught:
        trainer.fit(agent, TASKS)
    assert caught.value.hint
    assert RunRecord(trainer.directory).data["status"] == "failed"
    assert not (trainer.directory / "checkpoints").exists() or not list((trainer.directory / "checkpoints").iterdir())


def test_baseline_is_the_default_and_needs_no_model(settings: Settings) -> None:
    events: list[dict[str, Any]] = []
    result = agl.Trainer(settings=settings, strategy="shm", on_event=events.append).fit(parity, TASKS)
    evals = [e for e in events if e["type"] == "eval"]
    assert [(e["name"], e["accuracy"], e["n"]) for e in evals] == [("train", 0.5, 4)]
    assert [e for e in events if e["type"] == "trace"]
    assert result.before == {}


def test_dev_runs_a_few_tasks_here_and_shows_every_trace(settings: Settings) -> None:
    events: list[dict[str, Any]] = []
    many = [{"question": "q", "n": i} for i in range(50)]
    trainer = agl.Trainer(settings=settings, on_event=events.append)
    trainer.dev(parity, many)
    traces = [e for e in events if e["type"] == "trace"]
    assert len(traces) == 10
    assert any("agentlightning.reward.0.value" in s["attributes"] for t in traces for s in t["spans"])


def test_an_algorithm_of_ones_own_with_prompts_in_runner_processes(settings: Settings) -> None:
    scores: dict[str, float] = {}

    @agl.algo
    async def pick_prompt(*, store: agl.LightningStore, context: Any, train_dataset: Any) -> None:
        for template in ("short", "a much longer prompt for {n}"):
            update = await store.add_resources({"prompt_template": agl.PromptTemplate(template=template)})
            context.resources_id = update.resources_id
            result = await evaluate(context, train_dataset, label=f"candidate-{len(scores)}")
            scores[template] = result.accuracy

    trainer = agl.Trainer(
        algorithm=pick_prompt,
        initial_resources={"prompt_template": agl.PromptTemplate(template="{n}")},
        n_runners=2,
        settings=settings,
    )
    trainer.fit(prompt_length, TASKS)
    assert scores == {"short": 5.0, "a much longer prompt for {n}": 26.0}


@agl.rollout
def prompt_length(task: dict[str, Any], prompt_template: agl.PromptTemplate) -> float:
    return float(len(prompt_template.format(n=task["n"])))


def test_a_synchronous_algorithm_runs_in_a_thread(settings: Settings) -> None:
    seen: list[str] = []

    @agl.algo
    def mine(*, store: Any, val_dataset: Any) -> None:
        seen.append(threading.current_thread().name)
        assert val_dataset == [1]

    agl.Trainer(algorithm=mine, settings=settings, strategy="shm").fit(parity, [], val_dataset=[1])
    assert seen
    assert seen[0] != "MainThread"


def test_any_command_is_an_agent(settings: Settings, tmp_path: Path) -> None:
    script = tmp_path / "agent.sh"
    script.write_text('read task; echo "working on $task"; echo "{\\"reward\\": 0.25}"\n')
    events: list[dict[str, Any]] = []
    agl.Trainer(settings=settings, strategy="shm", on_event=events.append).fit(
        agl.CommandAgent(["sh", str(script)]), TASKS
    )
    assert [e["accuracy"] for e in events if e["type"] == "eval"] == [0.25]


def test_stopping_keeps_what_is_done_and_the_same_run_continues(settings: Settings) -> None:
    def slow(task: dict[str, Any]) -> float:
        time.sleep(0.3)
        return float(task["n"] % 2)

    many = [{"n": i} for i in range(12)]
    interrupt = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    trainer = agl.Trainer(settings=settings, strategy="shm", run_id="stopped", max_concurrency=2)
    interrupt.start()
    with pytest.raises(agl.AgentLightningError, match="stopped") as caught:
        trainer.fit(slow, many)
    assert "Repeat" in caught.value.hint
    assert json.loads((trainer.directory / "run.json").read_text())["status"] == "stopped"

    events: list[dict[str, Any]] = []
    agl.Trainer(settings=settings, strategy="shm", run_id="stopped", on_event=events.append).fit(slow, many)
    assert [e["accuracy"] for e in events if e["type"] == "eval"] == [0.5]
    with sqlite3.connect(settings.store_location) as connection:
        assert connection.execute("SELECT status, count(*) FROM rollouts GROUP BY status").fetchall() == [
            ("succeeded", 12)
        ]


def test_two_runs_under_one_id_are_refused(settings: Settings) -> None:
    @agl.algo
    async def nested(*, store: Any) -> None:
        other = agl.Trainer(settings=settings, strategy="shm", run_id="same", algorithm=nested)
        with pytest.raises(BusyError, match="already running"):
            await other.fit_async(parity, TASKS)

    agl.Trainer(settings=settings, strategy="shm", run_id="same", algorithm=nested).fit(parity, TASKS)


async def test_fit_works_inside_a_running_loop(settings: Settings) -> None:
    events: list[dict[str, Any]] = []
    agl.Trainer(settings=settings, strategy="shm", on_event=events.append).fit(parity, TASKS)
    assert [e["n"] for e in events if e["type"] == "eval"] == [4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": agl.GRPO()}, "needs model="),
        ({"lora": {"r": 4}}, "no effect: lora"),
        ({"strategy": "ray"}, "Unknown strategy"),
        ({"strategy": {"type": "cs", "port": 1}}, "not honoured"),
        ({"tracer": object()}, "strategy='shm' only"),
        ({"algorithm": 3}, "is no algorithm"),
        ({"n_runners": -1, "strategy": "shm"}, "n_runners"),
    ],
)
def test_arguments_that_have_no_effect_are_errors(settings: Settings, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agl.Trainer(settings=settings, **arguments).fit(parity, TASKS)


def test_no_data_is_an_error(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="no data"):
        agl.Trainer(settings=settings, strategy="shm").fit(parity, [])
