"""`agl train`: which options belong together, and what the view shows of fine-tuning."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from agentlightning.cli import train as commands
from agentlightning.cli.view import RunView
from agentlightning.kit.errors import AgentLightningError, BadInputError, ConfigError
from agentlightning.trainer import Trainer


def train(*arguments: str) -> Result:
    app = typer.Typer()
    commands.register(app)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGL_HOME", str(tmp_path / "home"))
    (tmp_path / "tuned.py").write_text("def agent(question, database):\n    return question\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algorithm", "ppo"), "no algorithm 'ppo'"),
        (("--agent", "tuned.py:agent"), "GRPO needs --data"),
        (("--data", "rows.jsonl"), "either --agent or --command"),
        (("--agent", "tuned.py:agent", "--data", "rows.jsonl", "--tasks", "rows.jsonl"), "--tasks is for sft and dpo"),
        (("--algorithm", "sft", "--tasks", "rows.jsonl"), "belong together"),
        (("--algorithm", "dpo", "--agent", "tuned.py:agent"), "belong together"),
        (("--algorithm", "sft", "--agent", "tuned.py:agent", "--tasks", "rows.jsonl"), "lacks the column"),
        (("--algorithm", "sft", "--data", "none.jsonl"), "no file"),
        (("--algorithm", "sft", "--set", "beta=1"), "not honoured"),
        (("--algorithm", "dpo", "--set", "beta=0"), "beta"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_starts(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(AgentLightningError, match=message) as caught:
        train(*arguments, "--model", "nano")
    assert isinstance(caught.value, BadInputError | ConfigError) or caught.value.hint
    assert not (folder / "home" / "runs").exists()


def test_an_agent_is_needed_where_there_is_something_to_do_for_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Baseline needs an agent"):
        Trainer().fit(None, [{"question": "a"}])
    with pytest.raises(ConfigError, match="test_datasets are tasks for an agent"):
        Trainer(algorithm="sft", model="nano").fit(None, [], test_datasets={"tasks": []})
    with pytest.raises(ConfigError, match="DPO trains weights and needs model"):
        Trainer(algorithm="dpo")
    assert not (folder / "home").exists()


STEP: dict[str, Any] = {"type": "step", "steps": 2, "token_accuracy": 0.5, "tokens_per_s": 1000.0, "train_s": 0.1}
EVENTS: list[dict[str, Any]] = [
    {"type": "phase", "name": "training"},
    {"type": "plan", "rollouts": 4, "steps": 0},
    {"type": "plan", "steps": 2, "counts_steps": True},
    {"type": "held_out", "step": 0, "loss": 2.0, "n": 3, "tokens": 9},
    {"type": "data", "used": 8, "skipped": {"too_long": 2}, "unit": "pairs", "train": 5, "held_out": 3},
    {**STEP, "step": 1, "loss": 1.5},
    {**STEP, "step": 2, "loss": 0.0},
    {"type": "held_out", "step": 2, "loss": 1.25, "n": 3, "tokens": 9},
]


def test_the_view_of_fine_tuning() -> None:
    plain = Console(file=io.StringIO(), width=60)
    view = RunView("a run", console=plain)
    with view:
        for event in EVENTS:
            view(event)
    told = plain.file.getvalue()  # type: ignore[attr-defined]
    assert "5 pairs to learn from, 3 held out; left out: 2 too_long" in told
    assert "step 1/2  loss 1.5  token_accuracy 0.5  1,000 tokens/s" in told
    assert "held-out examples after step 2: loss 1.25" in told
    assert (view.total, view._done()) == (6, 2)  # pyright: ignore[reportPrivateUsage]
    shown = Console(file=io.StringIO(), width=100)
    shown.print(view)
    picture = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "2 of 2" in picture
    assert "loss 1.25" in picture
    assert "█" in picture
