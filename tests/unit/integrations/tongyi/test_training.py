"""Agents that learn: interactions kept and traced, rewards, experiments, the three modes. A scripted model server."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentlightning.config import Settings
from agentlightning.integrations.tongyi import (
    OptimizedTongyiAgent,
    ResearchError,
    TongyiConfig,
    Toolset,
    TrainingManager,
    get_training_manager,
)
from agentlightning.integrations.tongyi.agent import shorten
from agentlightning.integrations.tongyi.book import PromptBook
from agentlightning.integrations.tongyi.finetuning import best_rated
from agentlightning.integrations.tongyi.optimized_agent import OptimizedAgent
from agentlightning.integrations.tongyi.rewards import WEIGHTS
from agentlightning.kit.errors import BadInputError, ConfigError, MissingExtraError, NotFoundError
from agentlightning.schemas import LLM
from agentlightning.store import SqlLightningStore
from tests.scripted_researcher import ScriptedResearcher
from tests.unit.integrations.tongyi.test_records import interaction
from tests.unit.learner.tiny import save_model

RULE = "Quote the line of the file"


@pytest.fixture
def server() -> Iterator[ScriptedResearcher]:
    with ScriptedResearcher() as server:
        yield server


def agent_of(server: ScriptedResearcher, config: TongyiConfig | None = None, **options: Any) -> OptimizedAgent:
    manager = TrainingManager(config or TongyiConfig())
    llm = LLM(endpoint=server.url, model="scripted")
    return manager.create_optimized_agent(
        **{"enable_training": True, "toolset": Toolset(".", {}), "llm": llm, **options}
    )


def with_history(config: TongyiConfig, count: int = 12) -> None:
    data = TrainingManager(config).create_optimized_agent(toolset=Toolset(".", {})).data
    for number in range(count):
        more = {"reward": number / count, "model_calls": 4, "timestamp": 1000.0 + number}
        data.append(interaction(f"How old is dragon {number}?", **more))
    data.save()


async def test_an_interaction_is_kept_in_the_documented_shape_and_is_a_rollout(server: ScriptedResearcher) -> None:
    agent = agent_of(server)
    answer = await agent.process_query("How old is the oldest dragon?")
    kept = agent.data.read()
    assert [entry.response for entry in kept] == [answer]
    one = kept[0]
    assert (one.claude_success, one.tools_used, one.model_calls) == (True, ["Grep", "Read"], 5)
    assert (one.query_length, one.response_length) == (29, len(answer))
    assert one.reward is not None
    assert one.rollout_id is not None
    store = SqlLightningStore(Settings().store_location)
    try:
        rollout = await store.get_rollout_by_id(one.rollout_id)
        spans = list(await store.query_spans(one.rollout_id))
    finally:
        await store.close()
    assert rollout is not None
    assert (rollout.status, rollout.input["agent"]) == ("succeeded", "tongyi/tongyi")
    assert len([span for span in spans if span.attributes.get("gen_ai.request.model") == "scripted"]) == 5
    assert any(one.reward in span.attributes.values() for span in spans)


async def test_without_training_nothing_is_kept(server: ScriptedResearcher, place: Path) -> None:
    agent = agent_of(server, enable_training=False)
    await agent.process_query("How old is the oldest dragon?")
    assert not (place / ".tongyi_training").exists()
    assert not (place / ".agentlightning").exists()
    with pytest.raises(BadInputError, match="empty"):
        await agent.process_query("  ")


async def test_a_failure_is_kept_and_an_outage_has_no_reward(server: ScriptedResearcher) -> None:
    server.final, server.steps = "", []
    agent = agent_of(server)
    with pytest.raises(ResearchError, match=r"The model gave no answer\."):
        await agent.process_query("one")
    server.status = 400
    with pytest.raises(ResearchError, match="does not answer"):
        await agent.process_query("two")
    kept = agent.data.read()
    assert [(entry.claude_success, entry.reward) for entry in kept] == [(False, 0.0), (False, None)]
    assert "does not answer" in kept[1].error


class Custom(OptimizedTongyiAgent):
    """As the guide shows it."""

    def _custom_reward_function(self, query: str, response: str, tools_used: list[str]) -> float:
        reward = 0.0
        if len(response) > 1000:
            reward += 0.2
        reward += 0.3 * len(set(tools_used))
        if "http" in response or "doi" in response:
            reward += 0.2
        return reward

    def _research_quality_metric(self, query: str, response: str) -> float:
        citations = response.count("http") + response.count("doi")
        analysis_depth = len(response.split("\n"))
        return (citations * 0.3) + (analysis_depth * 0.7)


async def test_rewards_and_metrics_of_a_subclass_are_used(server: ScriptedResearcher) -> None:
    agent = agent_of(server, agent_class=Custom)
    await agent.process_query("How old is the oldest dragon?")
    entry = agent.data.read()[0]
    assert entry.reward == pytest.approx(0.6)
    assert entry.metrics["research_quality"] == pytest.approx(4 * 0.7)
    assert TrainingManager(agent.config).statistics().metrics["research_quality"] == pytest.approx(2.8)


async def test_a_reward_that_fails_is_named_and_the_interaction_kept(server: ScriptedResearcher) -> None:
    class Broken(OptimizedTongyiAgent):
        def _custom_reward_function(self, query: str) -> float:
            return float("nan") if query == "nan" else {}["x"]

    agent = agent_of(server, agent_class=Broken)
    with pytest.raises(BadInputError, match=r"Broken\._custom_reward_function failed: KeyError"):
        await agent.process_query("q")
    with pytest.raises(BadInputError, match="gave nan"):
        await agent.process_query("nan")
    assert [entry.reward for entry in agent.data.read()] == [None, None]


@pytest.mark.parametrize("target", list(WEIGHTS))
async def test_every_target_rewards_good_research_more(server: ScriptedResearcher, target: str) -> None:
    config = TongyiConfig().changed(prompt_optimization={"optimization_target": target})
    agent = agent_of(server, config)
    await agent.process_query("How old is the oldest dragon?")
    assert agent.last is not None
    good = agent.judge(agent.last).reward
    worse = agent.last
    worse.cited, worse.answer, worse.seconds = [], "No.", worse.seconds + 20
    worse.calls = [*worse.calls, *worse.calls]
    bad = agent.judge(worse).reward
    assert good is not None
    assert bad is not None
    assert 0 <= bad < good <= 1
    assert sum(WEIGHTS[target].values()) == pytest.approx(1)  # type: ignore[index]


async def test_a_store_that_cannot_be_used_costs_the_trace_only(
    server: ScriptedResearcher, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "broken.db").write_text("this is no database " * 100)
    monkeypatch.setenv("AGL_STORE", str(place / "broken.db"))
    agent = agent_of(server)
    assert "Smaug" in await agent.process_query("How old is the oldest dragon?")
    assert agent.data.read()[0].rollout_id is None
    assert any("is not traced" in record.getMessage() for record in caplog.records)


def test_optimisation_finds_better_prompts_and_puts_them_to_work(server: ScriptedResearcher, place: Path) -> None:
    server.needs = RULE
    config = TongyiConfig().changed(prompt_optimization={"optimizer": "apo"})
    with_history(config)
    manager = TrainingManager(config)
    agent = agent_of(server, config)
    outcome = manager.run_optimization(agent, iterations=100)
    assert outcome.success, outcome.reason
    assert outcome.gain is not None
    assert outcome.gain[1] > 0
    assert (outcome.version, outcome.queries, outcome.held_out) == (1, 12, True)
    assert "Version 1 of the prompts is at work" in outcome.message
    assert RULE in agent.book.prompts(agent.book.active)["research_prompt"].template
    assert outcome.spent["calls"] == server.total <= 400
    assert "Smaug" in asyncio.run(agent.process_query("How old is the oldest dragon?"))
    assert agent.last_interaction is not None
    assert agent.last_interaction.prompt_version == 1
    assert not [entry for entry in agent.data.read() if entry.query == "How old is dragon 0?" and entry.rollout_id]


@pytest.mark.parametrize(
    ("count", "settings", "told"),
    [
        (0, {}, "No training data found"),
        (9, {}, "There are 9 interactions; 10 or more are needed"),
        (12, {"use_history": False}, "use_history = false"),
        (12, {"history_size": 3}, "3 different queries are too few"),
        (12, {"optimizer": "magic"}, "magic"),
    ],
)
def test_why_an_optimisation_fails_is_said(
    server: ScriptedResearcher, count: int, settings: dict[str, Any], told: str
) -> None:
    config = TongyiConfig().changed(prompt_optimization=settings)
    with_history(config, count)
    outcome = TrainingManager(config).run_optimization(agent_of(server, config), iterations=5)
    assert not outcome.success
    assert told in outcome.reason


def test_sft_writes_the_best_rated_and_says_what_is_missing(server: ScriptedResearcher, place: Path) -> None:
    config = TongyiConfig()
    with_history(config, 11)
    agent = agent_of(server, config, optimization_mode="sft")
    outcome = TrainingManager(config).run_optimization(agent)
    assert outcome.success
    assert "Weights were not trained" in outcome.message
    assert "agl train --algorithm sft --data .tongyi_training/sft.jsonl" in outcome.message
    lines = (place / ".tongyi_training" / "sft.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert len(examples) == 6
    assert [message["role"] for message in examples[0]["messages"]] == ["system", "user", "assistant"]
    assert examples[0]["messages"][1]["content"] == "How old is dragon 10?"
    rewards = [example["reward"] for example in examples]
    assert rewards == sorted(rewards, reverse=True)
    assert server.total == 0


@pytest.mark.slow
def test_rl_without_an_open_model_says_so_and_takes_the_prompts(server: ScriptedResearcher) -> None:
    server.needs = RULE
    config = TongyiConfig().changed(prompt_optimization={"optimizer": "apo"})
    with_history(config)
    agent = agent_of(server, config, optimization_mode="rl")
    outcome = TrainingManager(config).run_optimization(agent, iterations=60)
    assert outcome.success, outcome.reason
    assert outcome.message.startswith("Weights were not trained: reinforcement learning needs an open model")
    assert outcome.version == 1


def test_an_ab_test_splits_the_queries_and_decides(server: ScriptedResearcher) -> None:
    server.needs = RULE
    config = TongyiConfig().changed(experiments={"enable_ab_testing": True, "experiment_duration": 60})
    agent = agent_of(server, config)
    better = agent.book.prompts(0)["research_prompt"].template + f"\n- {RULE}."
    prompts = {"research_prompt": better}
    version = agent.book.add(prompts, run_id="r", optimizer="apo", evidence={}, on_trial=True)
    choices = {query: agent.trials.choose(query) for query in (f"query {n}" for n in range(60))}
    assert {choice.arm for choice in choices.values()} == {"control", "treatment"}
    assert {choice.version for choice in choices.values()} == {0, version}
    verdict = None
    for number, (query, choice) in enumerate(choices.items()):
        assert agent.trials.choose(query) == choice
        reward = (0.8 if choice.arm == "treatment" else 0.2) + number % 3 / 100
        verdict = agent.trials.record(query, choice, reward) or verdict
        if verdict is not None:
            break
    assert verdict is not None
    assert verdict.winner == "treatment"
    assert (agent.book.active, agent.book.candidate) == (version, None)
    assert agent.trials.decided()[0]["winner"] == "treatment"
    assert agent.trials.choose("query 1").arm is None


async def test_arms_are_kept_with_the_interactions(server: ScriptedResearcher) -> None:
    config = TongyiConfig().changed(experiments={"enable_ab_testing": True})
    agent = agent_of(server, config)
    agent.book.add({}, run_id="r", optimizer="apo", evidence={}, on_trial=True)
    for number in range(4):
        await agent.process_query(f"How old is dragon {number}?")
    kept = agent.data.read()
    assert [entry.prompt_version for entry in kept] == [int(entry.arm == "treatment") for entry in kept]
    verdict = agent.trials.verdict()
    assert verdict is not None
    assert sum(verdict.n.values()) == 4


def test_a_schedule_counts_over_processes_and_starts_an_optimisation(server: ScriptedResearcher) -> None:
    config = TongyiConfig().changed(
        optimization_schedule={"schedule": "periodic", "periodic_interval": 2}, training={"mode": "sft"}
    )
    with_history(config, 10)
    manager = TrainingManager(config)
    asyncio.run(agent_of(server, config).process_query("first"))
    agent = agent_of(server, config)
    assert manager.optimize_if_due(agent) is None
    asyncio.run(agent.process_query("second"))
    outcome = manager.optimize_if_due(agent)
    assert outcome is not None
    assert outcome.success
    assert agent_of(server, config).trials.due() is None


def test_a_drop_of_performance_is_a_reason(server: ScriptedResearcher) -> None:
    config = TongyiConfig().changed(
        optimization_schedule={"trigger_on_performance_drop": True, "performance_threshold": 0.99, "window": 2}
    )
    agent = agent_of(server, config)
    for query in ("one", "two"):
        asyncio.run(agent.process_query(query))
    trigger = agent.trials.due()
    assert trigger is not None
    assert trigger.kind == "drop"


def test_a_schedule_does_not_cut_a_trial_short(server: ScriptedResearcher) -> None:
    config = TongyiConfig().changed(
        experiments={"enable_ab_testing": True, "experiment_duration": 30},
        optimization_schedule={"trigger_on_performance_drop": True, "performance_threshold": 0.99, "window": 2},
    )
    agent = agent_of(server, config)
    version = agent.book.add({}, run_id="r", optimizer="apo", evidence={}, on_trial=True)
    for number in range(30):
        assert agent.book.candidate == version
        assert agent.trials.due() is None
        agent.trials.record(f"query {number}", agent.trials.choose(f"query {number}"), 0.5)
    assert agent.book.candidate is None
    assert agent.trials.due() is not None


async def test_a_training_session_answers_and_optimises_also_inside_a_running_loop(server: ScriptedResearcher) -> None:
    manager = get_training_manager()
    agent = agent_of(server, optimization_mode="sft")
    queries = [f"How old is dragon {number}?" for number in range(10)]
    results = manager.run_training_session(agent=agent, queries=queries, optimization_iterations=20)
    assert results["success"]
    assert (results["queries_processed"], results["queries_failed"]) == (10, 0)
    assert results["statistics"]["total_interactions"] == 10
    assert (agent.data.folder / "interactions-00001.json").exists()
    with pytest.raises(BadInputError, match="needs queries"):
        manager.run_training_session()


def test_a_session_without_a_model_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="There is no model to do research with"):
        get_training_manager().run_training_session(agent_type="tongyi", queries=["q"])


def test_an_export_and_what_the_manager_refuses(server: ScriptedResearcher, place: Path) -> None:
    manager = get_training_manager()
    with pytest.raises(NotFoundError, match="No training data found"):
        manager.export_training_data(None, "x.json")
    agent = agent_of(server)
    asyncio.run(agent.process_query("How old is the oldest dragon?"))
    assert manager.export_training_data(agent, "x.json") == 1
    assert json.loads((place / "x.json").read_text())["metrics"]["average_response_time"] > 0
    with pytest.raises(BadInputError, match="agent type 'gpt'"):
        manager.create_optimized_agent(agent_type="gpt")
    with pytest.raises(BadInputError, match="mode 'dpo'"):
        manager.create_optimized_agent(optimization_mode="dpo")
    with pytest.raises(BadInputError, match="too few"):
        manager.run_optimization(agent, iterations=0)


def test_damaged_prompts_and_experiments_are_kept_aside(server: ScriptedResearcher, place: Path) -> None:
    folder = place / ".tongyi_training"
    folder.mkdir()
    (folder / "prompts.json").write_text("{")
    (folder / "experiments.json").write_text("[1]")
    agent = agent_of(server)
    assert (agent.book.active, agent.trials.due()) == (0, None)
    assert len(list(folder.glob("*damaged*"))) == 2
    (folder / "experiments.json").write_text('{"schedule": {"interactions": "many"}}')
    assert agent.trials.due() is None


def test_the_claude_form_needs_its_package() -> None:
    try:
        import claude_agent_sdk
    except ImportError:
        with pytest.raises(MissingExtraError, match="No module named 'claude_agent_sdk'"):
            get_training_manager().create_optimized_agent(agent_type="claude")
    else:
        del claude_agent_sdk


async def test_the_claude_form_does_the_same_research(server: ScriptedResearcher, place: Path) -> None:
    pytest.importorskip("claude_agent_sdk", reason="the SDK brings a program of 350 MB and is not installed here")
    agent = agent_of(server, agent_type="claude")
    assert "[1] notes/dragons.md" in await agent.process_query("How old is the oldest dragon?")
    entry = agent.data.read()[0]
    assert (entry.agent, entry.tools_used, entry.model_calls) == ("claude", ["Grep", "Read"], 3)
    assert entry.rollout_id is not None


def test_versions_of_prompts(place: Path) -> None:
    book = PromptBook(place / "data")
    assert (book.active, book.candidate, book.versions) == (0, None, [])
    first = book.add({"plan_prompt": "a"}, run_id="r", optimizer="apo", evidence={}, on_trial=False)
    second = book.add({"plan_prompt": "b"}, run_id="s", optimizer="apo", evidence={}, on_trial=True)
    assert (book.active, book.candidate) == (first, second) == (1, 2)
    book.decide(7, is_better=True)
    book.decide(second, is_better=False)
    assert (book.active, book.candidate) == (1, None)
    assert book.prompts(2)["plan_prompt"].template == "b"
    assert "{plan}" in book.prompts(1)["research_prompt"].template


@pytest.mark.slow
def test_rl_trains_the_weights_of_an_open_model(place: Path) -> None:
    training = {"mode": "rl", "local_model": "nano", "enabled": True}
    config = TongyiConfig().changed(training=training, agent={"timeout_s": 60, "max_steps": 2})
    with_history(config)
    manager = TrainingManager(config)
    agent = manager.create_optimized_agent(toolset=Toolset(".", {}))
    steps: list[dict[str, Any]] = []
    outcome = manager.run_optimization(agent, 16, report=lambda e: steps.append(e) if e["type"] == "step" else None)
    assert outcome.success, outcome.reason
    assert outcome.message.startswith("1 steps of GRPO on nano.")
    assert outcome.gain is not None
    assert [step["tokens_trained"] > 0 for step in steps] == [True]


@pytest.mark.slow
def test_sft_trains_an_open_model_on_every_call_of_the_best(server: ScriptedResearcher, place: Path) -> None:
    local = save_model(place / "open-model", context=8192)
    training = {"mode": "sft", "local_model": str(local), "enabled": True}
    config = TongyiConfig().changed(training=training, agent={"timeout_s": 60, "max_steps": 2})
    agent = agent_of(server, config)
    for number in range(2):
        asyncio.run(agent.process_query(f"How old is the oldest dragon of clan {number}?"))
    with_history(config)  # older ones, without traces
    events: list[dict[str, Any]] = []
    outcome = TrainingManager(config).run_optimization(agent, 3, report=events.append)
    assert outcome.success, outcome.reason
    assert "was fine-tuned on" in outcome.message
    [data] = [event for event in events if event["type"] == "data"]
    chosen = best_rated(agent.data.read())
    assert any(entry.rollout_id for entry in chosen)
    assert data["train"] + data["held_out"] == sum(entry.model_calls if entry.rollout_id else 1 for entry in chosen)
    assert data["held_out"]
    assert outcome.held_out
    assert [event for event in events if event["type"] == "step"]
    assert not [event for event in events if event["type"] == "rollouts"], "three iterations are too few to measure"
    assert outcome.dataset == Path(".tongyi_training/sft.jsonl")


@pytest.mark.slow
def test_an_optimisation_that_was_cut_goes_on_and_pays_for_nothing_twice(server: ScriptedResearcher) -> None:
    server.needs = RULE
    config = TongyiConfig().changed(prompt_optimization={"optimizer": "apo"})
    with_history(config)
    manager, agent = TrainingManager(config), agent_of(server, config)
    whole = server.speak

    def cut(body: dict[str, Any]) -> dict[str, Any]:
        if "You improve the prompts" in body["messages"][0]["content"]:
            server.status = 401  # from here on, nothing works
        return whole(body)

    server.speak = cut  # type: ignore[method-assign]
    first = manager.run_optimization(agent, iterations=100)
    assert not first.success
    assert "does not answer" in first.reason
    paid = server.total
    server.status, server.speak = 200, whole  # type: ignore[method-assign]
    second = manager.run_optimization(agent, iterations=100)
    assert second.success, second.reason
    assert second.run_id == first.run_id
    asked = [json.dumps(body["messages"]) for body in server.bodies[paid:] if RULE not in json.dumps(body["messages"])]
    done = {json.dumps(body["messages"]) for body in server.bodies[: paid - 3]}
    assert not [question for question in asked if question in done and "You plan" not in question]
    third = manager.run_optimization(agent_of(server, config), iterations=100)
    assert third.run_id != first.run_id


def test_what_tools_said_is_shortened_when_it_grows_too_long() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "q"}]
    messages += [{"role": "tool", "content": f"[S{n}] " + "x" * 30_000} for n in range(6)]
    shorten(messages)
    lengths = [len(message["content"]) for message in messages[1:]]
    assert sum(lengths) <= 120_000
    assert lengths[:2] == [lengths[0]] * 2
    assert lengths[0] < 500
    assert lengths[-1] > 30_000
    assert messages[1]["content"].startswith("[S0] xxx")
