"""What the command line names is found, or the error says what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentlightning.cli.agents import load_dataset, load_object, required_columns
from agentlightning.cli.train import grpo_settings, load_agent
from agentlightning.kit.errors import BadInputError, NotFoundError


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / f"agent_{tmp_path.name.replace('-', '_')}.py"
    path.write_text("def solve(task): return 1.0\ndef answer(question, database, model=None): return 'x'\n")
    return path


def test_an_object_is_loaded_from_a_file_or_a_module(module: Path) -> None:
    assert load_object(f"{module}:solve")({}) == 1.0
    assert load_object("json:dumps") is json.dumps


@pytest.mark.parametrize("reference", ["agent.py", "agent.py:", "agent.py:a.b", ""])
def test_a_reference_without_a_name_is_refused(reference: str) -> None:
    with pytest.raises(BadInputError, match="names no agent"):
        load_object(reference)


def test_missing_file_module_and_name_are_told_apart(module: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        load_object("nowhere.py:solve")
    with pytest.raises(NotFoundError, match="no module"):
        load_object("nowhere_at_all:solve")
    with pytest.raises(NotFoundError, match=r"has no 'sole'.*solve, answer"):
        load_object(f"{module}:sole")
    broken = tmp_path / f"broken_{module.stem}.py"
    broken.write_text("import not_installed_anywhere\n")
    with pytest.raises(BadInputError, match="pip install not_installed_anywhere"):
        load_object(f"{broken}:solve")
    broken = tmp_path / f"raising_{module.stem}.py"
    broken.write_text("raise RuntimeError('on import')\n")
    with pytest.raises(BadInputError, match="RuntimeError: on import"):
        load_object(f"{broken}:solve")


def test_required_columns_are_the_parameters_of_plain_functions(module: Path) -> None:
    assert required_columns(load_object(f"{module}:answer")) == ["question", "database"]
    assert required_columns(load_object(f"{module}:solve")) == []


def test_data_sets_are_read_in_each_format(tmp_path: Path) -> None:
    rows = [{"question": "a", "n": "1"}, {"question": "b", "n": "2"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "\n")
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "d.csv").write_text("question,n\na,1\nb,2\n")
    for name in ("d.jsonl", "d.json", "d.csv"):
        assert load_dataset(tmp_path / name, columns=["question"]) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": \n', "line 2 is not JSON"),
        ("a.json", '{"q": 1}', "no array"),
        ("a.json", "[", "not JSON"),
        ("a.jsonl", "", "no tasks"),
        ("a.xlsx", "x", "unknown format"),
        ("a.jsonl", '{"question": 1}\n{"q": 1}\n', r"task 2 lacks the column\(s\) question"),
        ("a.jsonl", '"just text"\n', "lacks"),
    ],
)
def test_bad_data_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInputError, match=message):
        load_dataset(tmp_path / name, columns=["question"])


def test_a_missing_data_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        load_dataset(tmp_path / "none.jsonl")


def test_settings_come_from_toml_and_assignments(tmp_path: Path) -> None:
    config = tmp_path / "grpo.toml"
    config.write_text("[grpo]\nsteps = 5\nloss_type = 'grpo'\n")
    assert grpo_settings(config, ["steps=7", "learning_rate=1e-5", "loss_type=dapo"]) == {
        "steps": 7,
        "learning_rate": 1e-5,
        "loss_type": "dapo",
    }
    with pytest.raises(BadInputError, match="no '='"):
        grpo_settings(None, ["steps"])
    config.write_text("steps = ")
    with pytest.raises(BadInputError, match="not TOML"):
        grpo_settings(config, [])
    with pytest.raises(BadInputError, match="Cannot read"):
        grpo_settings(tmp_path / "none.toml", [])


def test_exactly_one_of_agent_and_command() -> None:
    for pair in ((None, None), ("a.py:b", "cmd")):
        with pytest.raises(BadInputError, match="either --agent or --command"):
            load_agent(*pair)


@pytest.mark.parametrize("kind", ["OpenAI", "AsyncOpenAI"])
def test_an_agent_may_make_its_client_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = tmp_path / f"early_{kind.lower()}.py"
    path.write_text(f"import openai\nclient = openai.{kind}()\ndef answer(task): return client\n")
    assert load_object(f"{path}:answer")(None).api_key == "unused"
    assert "OPENAI_API_KEY" not in os.environ


def test_a_key_that_is_not_a_models_is_missed_by_name(tmp_path: Path) -> None:
    path = tmp_path / "needs_other_key.py"
    path.write_text("raise KeyError('SEARCH_API_KEY')\n")
    with pytest.raises(BadInputError, match="SEARCH_API_KEY"):
        load_object(f"{path}:answer")
