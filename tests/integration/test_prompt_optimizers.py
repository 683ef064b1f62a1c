"""GEPA, few-shot, edit search and auto, with real stores, gateways and runners before a scripted model server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithm.prompt import make_optimizer, read_tree
from agentlightning.config import Settings
from agentlightning.kit.errors import ConfigError, SignalError
from tests.integration.prompt_agents import answering, answering_thrice, answering_unlabelled
from tests.scripted_model import PROPOSER, SEED, ScriptedModel, tasks


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel() as server:
        yield server


def run(
    tmp_path: Path,
    server: ScriptedModel,
    algorithm: Any,
    *,
    train: int = 16,
    val: int = 8,
    is_labelled: bool = True,
    agent: Any = None,
    **options: Any,
) -> agl.OptimizationResult:
    data = tasks if is_labelled else questions
    trainer = agl.Trainer(
        algorithm=algorithm,
        strategy="shm",
        initial_resources={
            "llm": agl.LLM(endpoint=server.url, model="task"),
            "prompt_template": agl.PromptTemplate(template=SEED),
        },
        settings=Settings(home=tmp_path / "home"),
        run_id="run",
        **options,
    )
    agent = agent or (answering if is_labelled else answering_unlabelled)
    result = trainer.fit(
        agent, data(train), val_dataset=data(val, 100), test_datasets={"test": data(8, 200)}
    ).optimization
    assert result is not None
    return result


def questions(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Tasks without reference answers."""
    return [{"question": task["question"]} for task in tasks(count, offset)]


def reflecting(text: str) -> str:
    """Answers GEPA's own question: the instruction between fences, with a rule that a failed run lacked."""
    current = text.partition("```")[2].partition("```")[0].strip()
    runs = re.findall(r"(.*?)Reward (\d) ", text, re.DOTALL)
    failed = [re.findall(r"category=(\w+)", run)[-1] for run, reward in runs if reward == "0"]
    needed = [name for name in failed if name != "plain" and f"rule {name}" not in current]
    return f"```\n{current}{f' Use rule {needed[0]}.' if needed else ''}\n```"


def learning(text: str) -> str:
    """A task model that answers every third question, and all of a category it has seen an example of."""
    category, value = re.findall(r"category=(\w+) value=(\d+)", text)[-1]
    seen = f"Input: category={category} " in text
    return value if seen or int(value) % 3 == 0 else "no idea"


def test_gepa_runs_by_its_own_library_on_our_store(tmp_path: Path, server: ScriptedModel) -> None:
    pytest.importorskip("gepa")
    server.propose = reflecting
    optimizer = agl.GEPA(proposer_model=PROPOSER, budget=agl.Budget(calls=150))
    found = run(tmp_path, server, optimizer)
    assert "rule" in found.best_prompt.template
    assert found.comparisons[0].gain[0] > 0
    assert found.spent["calls"] == server.total <= 150
    tree = read_tree(found.directory)
    assert tree is not None
    assert {node.origin for node in tree.nodes.values()} == {"start", "gepa"}
    paid = server.total
    assert run(tmp_path, server, agl.GEPA(proposer_model=PROPOSER, budget=agl.Budget(calls=150))).best == found.best
    assert server.total == paid


def test_gepa_with_a_useless_proposer_ends(tmp_path: Path, server: ScriptedModel) -> None:
    pytest.importorskip("gepa")
    server.propose = lambda text: "no"
    found = run(tmp_path, server, agl.GEPA(proposer_model=PROPOSER, budget=agl.Budget(calls=60)))
    assert server.total <= 60
    assert not found.is_improved


def test_good_answers_become_demonstrations(tmp_path: Path, server: ScriptedModel) -> None:
    server.answer = learning
    found = run(tmp_path, server, agl.FewShot(sets=6, rounds=2), train=24)
    assert found.best_prompt.template.startswith("Examples of good answers:\nInput: category=")
    assert found.best_prompt.template.endswith(SEED)
    assert found.comparisons[0].gain[0] > 0
    shown = {int(n) for n in re.findall(r"Input: category=\w+ value=(\d+)", found.best_prompt.template)}
    assert shown
    assert shown <= set(range(24))
    assert PROPOSER not in server.calls


def test_without_good_answers_there_are_no_demonstrations(tmp_path: Path, server: ScriptedModel) -> None:
    class Deaf(agl.FewShot[Any]):
        async def _answer(self, search: Any, candidate: Any) -> None:
            """Nothing is run on training examples."""

    found = run(tmp_path, server, Deaf(flat_start=True))
    assert "no" in found.stopped_because.lower()


def test_edits_need_no_proposer(tmp_path: Path, server: ScriptedModel) -> None:
    def obedient(text: str) -> str:
        category, value = re.findall(r"category=(\w+) value=(\d+)", text)[-1]
        return value if category == "plain" or "step by step" in text else "no idea"

    server.answer = obedient
    found = run(tmp_path, server, agl.EditSearch(max_demonstrations=0, rounds=4, width=8))
    assert "step by step" in found.best_prompt.template
    assert found.is_improved
    assert PROPOSER not in server.calls
    tree = read_tree(found.directory)
    assert tree is not None
    assert {node.origin for node in tree.nodes.values()} <= {"start", "add", "drop", "move"}


def test_auto_says_why_it_takes_edits(tmp_path: Path, server: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.algorithm.prompt.optimizer.resource_proposer", lambda *_: None)
    events: list[dict[str, Any]] = []
    found = run(tmp_path, server, make_optimizer("auto", budget=agl.Budget(calls=90)), on_event=events.append)
    assert found.why.startswith("edit: no model that writes prompts")
    assert server.total <= 90
    assert [e["optimizer"] for e in events if e["type"] == "choice"] == ["edit"]


def test_auto_takes_gradients_where_there_is_a_proposer(tmp_path: Path, server: ScriptedModel) -> None:
    def both(text: str) -> str:
        lacking = re.search(r'reward="0">\ntask: [^\n]*category=(?!plain)(\w+)', text)
        prompt = re.search(r'<prompt name="prompt_template">\n(.*?)\n</prompt>', text, re.DOTALL)
        assert prompt is not None
        rules = set(re.findall(r"Use (rule \w+)", text)) | ({f"rule {lacking[1]}"} if lacking else set())
        added = "".join(f" Use {rule}." for rule in sorted(rules) if rule not in prompt[1])
        return f'Because.\n<prompt name="prompt_template">\n{prompt[1]}{added}\n</prompt>'

    server.propose = both
    found = run(tmp_path, server, agl.Auto(proposer_model=PROPOSER, budget=agl.Budget(calls=300)))
    assert found.why.startswith("fewshot, then apo: there is a proposer, and reference answers can be shown")
    assert found.comparisons[0].after > found.comparisons[0].before
    tree = read_tree(found.directory)
    assert tree is not None
    assert tree.run["why"] == found.why


def test_auto_teaches_at_once_where_tasks_have_no_reference_answers(tmp_path: Path, server: ScriptedModel) -> None:
    optimizer = agl.Auto(proposer_model=PROPOSER, budget=agl.Budget(calls=120))
    found = run(tmp_path, server, optimizer, val=16, is_labelled=False)
    assert found.why.startswith("apo, then fewshot: there is a proposer, no reference answers can be shown")
    assert server.total <= 120
    assert all(f"rule {name}" in found.best_prompt.template for name in ("alpha", "beta", "gamma"))
    first = next(n for n, body in enumerate(server.bodies) if body["model"] == PROPOSER)
    before = [body["messages"][-1]["content"] for body in server.bodies[:first]]
    assert before
    assert not any("Examples of good answers" in text for text in before)


def test_sizes_follow_from_what_a_rollout_costs(tmp_path: Path, server: ScriptedModel) -> None:
    server.answer = learning
    optimizer = agl.Auto(proposer_model=PROPOSER, budget=agl.Budget(calls=240))
    found = run(tmp_path, server, optimizer, agent=answering_thrice, val=16)
    assert "for about 63 rollouts; 8 validation examples" in found.why  # (240 - 3) / 3, and 2 * 8 are set aside
    assert found.comparisons[0].after > found.comparisons[0].before
    assert server.total <= 240


@pytest.mark.parametrize("calls", [31, 60])
def test_auto_keeps_to_little_money_and_pays_for_nothing_twice(
    tmp_path: Path, server: ScriptedModel, calls: int
) -> None:
    server.answer = learning
    found = run(tmp_path, server, agl.Auto(proposer_model=PROPOSER, budget=agl.Budget(calls=calls)))
    paid = server.total
    assert found.spent["calls"] == paid <= calls
    assert found.best_prompt.template.startswith("Examples of good answers:\nInput: category=")
    assert found.best_prompt.template.endswith("{question}.")
    again = run(tmp_path, server, agl.Auto(proposer_model=PROPOSER, budget=agl.Budget(calls=calls)))
    assert again.best == found.best
    assert server.total == paid


def shown(text: str) -> str:
    """A task model that knows nothing but what it was shown, in an example or as a rule."""
    category, value = re.findall(r"category=(\w+) value=(\d+)", text)[-1]
    return value if f"Input: category={category} " in text or f"rule {category}" in text else "no idea"


def test_references_are_a_way_out_of_rewards_that_are_all_zero(tmp_path: Path, server: ScriptedModel) -> None:
    server.answer = shown
    optimizer = agl.Auto(proposer_model=PROPOSER, budget=agl.Budget(calls=120))
    found = run(tmp_path, server, optimizer, val=16)
    assert found.comparisons[0].before == 0
    assert found.comparisons[0].after > 0.5
    assert server.total <= 120
    examples = set(re.findall(r"Input: category=\w+ value=(\d+)\nOutput: (\d+)", found.best_prompt.template))
    assert examples
    assert all(question == answer and int(question) < 16 for question, answer in examples)


def test_instructions_are_edited_under_the_examples(tmp_path: Path, server: ScriptedModel) -> None:
    def half_shown(text: str) -> str:
        """Examples teach two categories only; the other two need their rule, which critics find."""
        category, value = re.findall(r"category=(\w+) value=(\d+)", text)[-1]
        taught = category in ("alpha", "plain") and f"Input: category={category} " in text
        return value if taught or f"rule {category}" in text else "no idea"

    server.answer = half_shown
    found = run(tmp_path, server, agl.Auto(proposer_model=PROPOSER, budget=agl.Budget(calls=300)), train=24, val=24)
    examples, _, instruction = found.best_prompt.template.partition("End of the examples.")
    assert "Input: category=" in examples
    assert "rule beta" in instruction
    assert "rule gamma" in instruction
    assert found.comparisons[0].after == 1.0
    asked = [b["messages"][-1]["content"] for b in server.bodies if b["model"] == PROPOSER]
    assert all("Examples of good answers" not in text for text in asked)
    tree = read_tree(found.directory)
    assert tree is not None
    assert tree.nodes[found.best.id].scores["val"]["n"] > 8  # the last few were judged on more than the others


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("no idea", r"all \d+ rewards of the starting prompt are 0, and so are 12 of 3"),
        ("always", r"prompt are 1\."),
    ],
)
def test_auto_refuses_rewards_that_stay_the_same(tmp_path: Path, server: ScriptedModel, answer: str, told: str) -> None:
    server.answer = lambda text: answer
    data = [{**task, "expected": "always"} for task in tasks(64)]
    trainer = agl.Trainer(
        algorithm=agl.Auto(proposer_model=PROPOSER, budget=agl.Budget(calls=200)),
        strategy="shm",
        initial_resources={
            "llm": agl.LLM(endpoint=server.url, model="task"),
            "prompt_template": agl.PromptTemplate(template=SEED),
        },
        settings=Settings(home=tmp_path / "home"),
    )
    with pytest.raises(SignalError, match=told):
        trainer.fit(answering, data)
    assert server.calls[PROPOSER] == 0
    assert 40 < server.total <= 100  # more than a handful, and no more than half of the budget


def test_names_and_settings_are_checked() -> None:
    for name, kind in (("apo", agl.APO), ("gepa", agl.GEPA), ("fewshot", agl.FewShot), ("edit", agl.EditSearch)):
        assert isinstance(make_optimizer(name), kind)
    with pytest.raises(ConfigError, match="no algorithm 'genetic'"):
        agl.Trainer(algorithm="genetic")
    with pytest.raises(ConfigError, match=r"fewshot: .*beam"):
        make_optimizer("fewshot", beam=3)
    for wrong in ({"rounds": 0}, {"val_fraction": 1.0}, {"repeats": 0}):
        with pytest.raises(ConfigError):
            agl.EditSearch(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError):
        agl.FewShot(max_tokens=0)
    with pytest.raises(ConfigError):
        agl.GEPA(reflection_minibatch_size=0)
