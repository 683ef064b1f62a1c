"""APO with real stores, gateways and runners, in front of a scripted model server."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.algorithm.prompt import read_tree
from agentlightning.algorithm.prompt.placeholders import placeholders
from agentlightning.config import Settings
from agentlightning.kit.errors import BadInputError, ConfigError, SignalError, UpstreamError
from tests.integration.prompt_agents import answering, two_steps
from tests.scripted_model import PROPOSER, SEED, ScriptedModel, edit, propose, tasks

SMALL = {"beam_width": 2, "branch_factor": 2, "beam_rounds": 3, "val_batch_size": 8, "gradient_batch_size": 4}


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel() as server:
        yield server


def trainer(
    tmp_path: Path, server: ScriptedModel, algorithm: Any, *, prompts: dict[str, str] | None = None, **options: Any
) -> agl.Trainer:
    templates = {name: agl.PromptTemplate(template=t) for name, t in (prompts or {"prompt_template": SEED}).items()}
    return agl.Trainer(
        algorithm=algorithm,
        strategy="shm",
        initial_resources={"llm": agl.LLM(endpoint=server.url, model="task"), **templates},
        settings=Settings(home=tmp_path / "home"),
        run_id="run",
        **options,
    )


def apo(**options: Any) -> agl.APO[Any]:
    return agl.APO(**{**SMALL, "proposer_model": PROPOSER, **options})


def test_it_finds_the_rules_and_shows_the_gain_on_held_out_examples(tmp_path: Path, server: ScriptedModel) -> None:
    optimizer = apo(beam_rounds=4)
    run = trainer(tmp_path, server, optimizer)
    result = run.fit(answering, tasks(16), val_dataset=tasks(8, 100), test_datasets={"test": tasks(24, 200)})
    found = result.optimization
    assert found is not None
    assert all(f"rule {name}" in found.best_prompt.template for name in ("alpha", "beta", "gamma"))
    assert placeholders(found.best_prompt.template) == ("question",)
    assert optimizer.get_best_prompt() == found.best_prompt
    held_out = found.comparisons[0]
    assert (held_out.data, held_out.held_out, held_out.n) == ("test", True, 24)
    assert (held_out.before, held_out.after) == (0.25, 1.0)
    assert result.gain == held_out.gain
    assert found.is_improved
    assert 0 < held_out.gain[1] < 0.75 < held_out.gain[2] <= 1
    written = json.loads((result.directory / "best_prompts.json").read_text())
    assert written["status"] == "done"
    assert written["best"]["prompts"]["prompt_template"]["template"] == found.best_prompt.template
    assert found.spent["calls"] == server.total
    assert found.spent["input_tokens"] > 0


def test_the_tree_says_where_each_candidate_came_from(tmp_path: Path, server: ScriptedModel) -> None:
    run = trainer(tmp_path, server, apo())
    run.fit(answering, tasks(16), val_dataset=tasks(8, 100))
    tree = read_tree(run.directory)
    assert tree is not None
    assert [node.origin for node in tree.roots] == ["start"]
    children = [node for node in tree.nodes.values() if node.parents]
    assert children
    assert all(node.critique.startswith("- The prompt lacks rule") for node in children)
    assert all(parent in tree.nodes for node in children for parent in node.parents)
    assert any("val" in node.scores for node in children)
    assert [r["round"] for r in tree.rounds] == list(range(len(tree.rounds)))
    assert tree.rounds[-1]["spent_calls"] <= server.total
    assert tree.result is not None
    assert tree.result["best"] in tree.nodes


def test_several_prompts_are_improved_at_once(tmp_path: Path, server: ScriptedModel) -> None:
    def both(text: str) -> str:
        if "<critique>" not in text:
            return propose(text)
        one = edit(text)
        other = edit(text.replace('name="first"', 'name="gone"', 1)[text.index('<prompt name="second">') - 10 :])
        return f"{one}\n{other}"

    server.propose = both
    prompts = {"first": "One: {question}", "second": "Two: {question}"}
    run = trainer(tmp_path, server, apo(), prompts=prompts)
    found = run.fit(two_steps, tasks(12), val_dataset=tasks(8, 100)).optimization
    assert found is not None
    assert set(found.best_prompts) == {"first", "second"}
    assert all("rule" in prompt.template for prompt in found.best_prompts.values())


def test_no_prompt_meets_the_same_example_twice(tmp_path: Path, server: ScriptedModel) -> None:
    run = trainer(tmp_path, server, apo())
    run.fit(answering, tasks(16), val_dataset=tasks(8, 100))
    asked = [body["messages"][0]["content"] for body in server.bodies if body["model"] == "task"]
    assert len(asked) == len(set(asked))


def test_rollouts_and_questions_of_a_round_are_in_flight_together(tmp_path: Path) -> None:
    with ScriptedModel(delay_s=0.2) as server:
        trainer(tmp_path, server, apo(beam_rounds=1)).fit(answering, tasks(16), val_dataset=tasks(8, 100))
        assert server.most_in_flight >= 8


def test_the_same_run_again_pays_for_nothing(tmp_path: Path, server: ScriptedModel) -> None:
    first = trainer(tmp_path, server, apo()).fit(answering, tasks(16), val_dataset=tasks(8, 100)).optimization
    paid = server.total
    again = trainer(tmp_path, server, apo()).fit(answering, tasks(16), val_dataset=tasks(8, 100)).optimization
    assert first is not None
    assert again is not None
    assert server.total == paid
    assert again.best == first.best
    assert again.spent["calls"] == first.spent["calls"]
    tree = read_tree(first.directory)
    assert tree is not None
    assert len(tree.nodes) == first.candidates


def test_a_budget_is_kept_to_the_call(tmp_path: Path, server: ScriptedModel) -> None:
    optimizer = apo(beam_rounds=5, budget=agl.Budget(calls=40))
    found = trainer(tmp_path, server, optimizer).fit(
        answering, tasks(16), val_dataset=tasks(8, 100), test_datasets={"test": tasks(4, 200)}
    )
    assert found.optimization is not None
    assert server.total <= 40
    assert found.optimization.comparisons[0].data == "test"  # its calls were kept back


def test_a_budget_holds_for_agents_of_many_calls(tmp_path: Path, server: ScriptedModel) -> None:
    prompts = {"first": SEED, "second": SEED}
    for limit in (agl.Budget(calls=14), agl.Budget(tokens=60)):
        paid = server.total
        run = trainer(tmp_path / repr(limit), server, apo(budget=limit), prompts=prompts)
        found = run.fit(two_steps, tasks(16), val_dataset=tasks(8, 100)).optimization
        assert found is not None
        assert "budget is spent" in found.stopped_because
        assert server.total - paid == 2  # one rollout shows that the first batch is not paid for


def test_a_small_budget_goes_into_critiques_that_one_prompt_heeds(tmp_path: Path, server: ScriptedModel) -> None:
    optimizer = apo(branch_factor=3, beam_rounds=2, budget=agl.Budget(calls=70))
    run = trainer(tmp_path, server, optimizer)
    found = run.fit(answering, tasks(16), val_dataset=tasks(24, 100)).optimization
    assert found is not None
    assert server.total <= 70
    assert all(f"rule {name}" in found.best_prompt.template for name in ("alpha", "beta", "gamma"))
    tree = read_tree(run.directory)
    assert tree is not None
    born = [node for node in tree.nodes.values() if node.parents]
    assert "merge" in {node.origin for node in born}
    critics = sum("list of at most six" in body["messages"][-1]["content"] for body in server.bodies)
    assert critics > len(born)


def test_what_does_not_pay_for_all_rounds_is_not_spent_on_single_edits(tmp_path: Path, server: ScriptedModel) -> None:
    run = trainer(tmp_path, server, apo(branch_factor=3, beam_rounds=4, budget=agl.Budget(calls=100)))
    run.fit(answering, tasks(32), val_dataset=tasks(16, 100))
    tree = read_tree(run.directory)
    assert tree is not None
    first = [node.origin for node in tree.nodes.values() if node.round == 1]
    assert first == ["merge"]  # the race of an edit would take the critics of a later round


def test_a_flat_start_of_zeros_is_no_perfect_prompt(tmp_path: Path, server: ScriptedModel) -> None:
    data = [task for task in tasks(48) if "plain" not in task["question"]]
    run = trainer(tmp_path, server, apo(flat_start=True))
    found = run.fit(answering, data[:18], val_dataset=data[18:]).optimization
    assert found is not None
    assert "rule" in found.best_prompt.template


def test_a_budget_too_small_for_anything_says_so(tmp_path: Path, server: ScriptedModel) -> None:
    run = trainer(tmp_path, server, apo(budget=agl.Budget(calls=3)))
    found = run.fit(answering, tasks(16), val_dataset=tasks(8, 100)).optimization
    assert found is not None
    assert server.total == 0
    assert "budget is spent" in found.stopped_because
    assert found.best == found.start


def test_money_needs_prices_and_stops(tmp_path: Path, server: ScriptedModel) -> None:
    with pytest.raises(ConfigError, match="price of 'task' is not known"):
        trainer(tmp_path, server, apo(budget=agl.Budget(usd=1))).fit(answering, tasks(16), val_dataset=tasks(8, 100))
    prices = {"task": (1.0, 1.0), PROPOSER: (1.0, 1.0)}
    priced = apo(budget=agl.Budget(usd=0.0006, prices=prices), beam_rounds=9)
    found = trainer(tmp_path / "two", server, priced).fit(answering, tasks(16), val_dataset=tasks(8, 100)).optimization
    assert found is not None
    assert 0 < found.spent["usd"] < 0.0012
    assert "USD" in found.stopped_because


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I am sorry, Dave.", "no prompt in the answer"),
        ("", "an empty critique"),
        (f'<prompt name="prompt_template">\n{SEED}\n</prompt>', "unchanged"),
    ],
)
def test_a_useless_proposer_is_noticed_and_nothing_of_it_runs(
    tmp_path: Path, server: ScriptedModel, answer: str, reason: str
) -> None:
    server.propose = lambda text: answer
    found = trainer(tmp_path, server, apo()).fit(answering, tasks(16), val_dataset=tasks(8, 100)).optimization
    assert found is not None
    assert found.best == found.start
    assert not found.is_improved
    assert reason in found.stopped_because
    assert found.dropped[reason] > 0
    prompts = {b["messages"][0]["content"].partition("category")[0] for b in server.bodies if b["model"] == "task"}
    assert prompts == {"Answer the question "}


def test_a_candidate_never_runs_without_its_placeholder(tmp_path: Path, server: ScriptedModel) -> None:
    def careless(text: str) -> str:
        if "<critique>" not in text:
            return critique_with_json(text)
        return '<prompt name="prompt_template">\nUse rule alpha. Answer as {"answer": 1} about {topic}.\n</prompt>'

    def critique_with_json(text: str) -> str:
        return propose(text) or "none"

    server.propose = careless
    run = trainer(tmp_path, server, apo(beam_rounds=1))
    run.fit(answering, tasks(16), val_dataset=tasks(8, 100))
    asked = [b["messages"][0]["content"] for b in server.bodies if b["model"] == "task"]
    assert all("category=" in text for text in asked)
    assert any('{"answer": 1} about {topic}' in text for text in asked)
    tree = read_tree(run.directory)
    assert tree is not None
    assert [n.note for n in tree.nodes.values() if n.note] == [
        'repaired: prompt_template: The placeholder {"answer"} has no name.'
    ] or any(n.note.startswith("repaired:") for n in tree.nodes.values())


def test_a_proposer_that_is_down_ends_the_run(tmp_path: Path, server: ScriptedModel) -> None:
    with ScriptedModel(status=400) as down:
        optimizer = apo(proposer=agl.HttpProposer(down.url, PROPOSER))
        with pytest.raises(UpstreamError, match="HTTP 400"):
            trainer(tmp_path, server, optimizer).fit(answering, tasks(16), val_dataset=tasks(8, 100))


@pytest.mark.parametrize(("answer", "value"), [("no idea", "0"), ("always right", "1")])
def test_constant_rewards_are_refused_before_anything_is_proposed(
    tmp_path: Path, server: ScriptedModel, answer: str, value: str
) -> None:
    data = [{**task, "expected": "always right"} for task in tasks(16)]
    server.answer = lambda text: answer
    with pytest.raises(SignalError, match=f"all 16 rewards of the starting prompt are {value}"):
        trainer(tmp_path, server, apo()).fit(answering, data)
    assert server.calls[PROPOSER] == 0


@agl.rollout
async def failing(task: dict[str, Any], prompt_template: agl.PromptTemplate) -> float:
    raise RuntimeError("the tool is gone")


def test_no_reward_at_all_names_the_error(tmp_path: Path, server: ScriptedModel) -> None:
    with pytest.raises(SignalError, match=r"none of 12 rollouts has a reward.*the tool is gone"):
        trainer(tmp_path, server, apo()).fit(failing, tasks(16), val_dataset=tasks(8, 100))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([], None, "no training examples"),
        (tasks(1), None, "1 different example"),
        (tasks(1) * 9, None, "1 different example"),
        (tasks(4), tasks(1, 9), "validation set of 1"),
        (tasks(4), [], "validation set of 0"),
        (tasks(4), tasks(4), "4 example.s. of 'val' are in 'train' too"),
    ],
)
def test_data_that_proves_nothing_is_refused(
    tmp_path: Path, server: ScriptedModel, train: Any, val: Any, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        trainer(tmp_path, server, apo()).fit(answering, train, val_dataset=val)
    assert server.total == 0


def test_without_prompt_or_proposer_it_says_what_is_missing(
    tmp_path: Path, server: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no PromptTemplate"):
        agl.Trainer(algorithm=apo(), strategy="shm", settings=Settings(home=tmp_path)).fit(answering, tasks(8))
    prompt = {"prompt_template": agl.PromptTemplate(template=SEED)}
    run = agl.Trainer(algorithm="apo", strategy="shm", settings=Settings(home=tmp_path), initial_resources=prompt)
    with pytest.raises(ConfigError, match="needs a model that writes"):
        run.fit(answering, tasks(8))


def test_the_interface_of_03_works_with_a_client_and_runner_processes(tmp_path: Path, server: ScriptedModel) -> None:
    client = AsyncOpenAI(base_url=server.url, api_key="unused")
    optimizer = agl.APO[dict[str, Any]](
        client,
        gradient_model=PROPOSER,
        apply_edit_model=PROPOSER,
        val_batch_size=8,
        gradient_batch_size=4,
        beam_width=2,
        branch_factor=2,
        beam_rounds=2,
        _poml_trace=True,
    )
    run = agl.Trainer(
        algorithm=optimizer,
        n_runners=2,
        adapter=agl.TraceToMessages(),
        initial_resources={
            "llm": agl.LLM(endpoint=server.url, model="task"),
            "prompt_template": agl.PromptTemplate(template=SEED, engine="f-string"),
        },
        settings=Settings(home=tmp_path / "home"),
    )
    run.fit(agent=answering, train_dataset=tasks(16), val_dataset=tasks(8, 100))
    assert "rule" in optimizer.get_best_prompt().template
    # As in 0.3 the client is its owner's to close, and the loop its connections lived in is over.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del client, optimizer, run
        gc.collect()


def test_a_prompt_asked_for_too_early_is_an_error() -> None:
    with pytest.raises(ValueError, match="has not run"):
        apo().get_best_prompt()
    with pytest.raises(ValueError, match="initial resources"):
        apo().get_seed_prompt_template()
    with pytest.raises(ConfigError, match="beam_width is at least 1"):
        agl.APO(beam_width=0)
    with pytest.raises(ConfigError, match="Give either"):
        agl.APO(object(), proposer=object())
    with pytest.raises(ConfigError, match="no proposer"):
        agl.APO(object())
