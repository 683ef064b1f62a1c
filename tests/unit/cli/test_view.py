"""The live view and the helpers that print."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from agentlightning.cli.output import duration, interval, percent, print_json, print_table
from agentlightning.cli.view import RunView

EVENTS: list[dict[str, Any]] = [
    {"type": "phase", "name": "starting"},
    {"type": "plan", "rollouts": 100, "steps": 2, "resumed": False},
    {"type": "phase", "name": "before", "detail": "val/sampled"},
    {"type": "rollouts", "label": "before", "done": 0, "total": 20, "tokens_per_s": 0.0},
    {"type": "rollouts", "label": "before", "done": 10, "total": 20, "tokens_per_s": 1234.0},
    {
        "type": "compare",
        "when": "before",
        "name": "val/sampled",
        "accuracy": 0.25,
        "ci_low": 0.1,
        "ci_high": 0.4,
        "n": 20,
    },
    {"type": "resumed", "step": 1, "steps": 2},
    {"type": "rollouts", "label": "train-1", "done": 40, "total": 40, "tokens_per_s": 1234.0},
    {"type": "step", "step": 2, "steps": 2, "reward": 0.5, "sample_s": 1.0, "train_s": 0.5},
    {"type": "eval", "step": 2, "name": "val", "accuracy": 0.75, "ci_low": 0.6, "ci_high": 0.9, "n": 20},
    {"type": "checkpoint", "step": 2},
]


def test_on_a_terminal_the_panel_shows_the_newest_numbers() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with RunView("a run", console=console) as view:
        for event in EVENTS:
            view(event)
        with console.capture() as captured:
            console.print(view)
    shown = captured.get()
    for text in ("a run", "2 of 2", "50.0 %", "75.0 %", "1,234", "60 of 100", "reward", "▄"):
        assert text in shown, text


def test_an_evaluation_has_no_steps() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with RunView("agl eval", console=console) as view:
        view({"type": "phase", "name": "evaluating"})
        view({"type": "plan", "rollouts": 20, "steps": 0})
        view({"type": "rollouts", "label": "eval", "done": 5, "total": 20})
        with console.capture() as captured:
            console.print(view)
    shown = captured.get()
    assert "evaluating" in shown
    assert "5 of 20" in shown
    assert "step" not in shown
    assert "training" not in shown


def test_without_a_terminal_each_event_is_a_line() -> None:
    output = io.StringIO()
    with RunView("a run", console=Console(file=output, width=160)) as view:
        for event in EVENTS:
            view(event)
    lines = output.getvalue().splitlines()
    assert any("before: val/sampled" in line for line in lines)
    assert any("step 2/2  reward 50.0 %" in line for line in lines)
    assert any("continuing after step 1 of 2" in line for line in lines)
    assert any("held-out after step 2: 75.0 %" in line for line in lines)


def test_time_left_is_unknown_until_something_is_done() -> None:
    view = RunView("a run", console=Console(file=io.StringIO()))
    assert view._left() == "?"  # pyright: ignore[reportPrivateUsage]
    for event in EVENTS[:5]:
        view(event)
    assert view._left() == "?"  # pyright: ignore[reportPrivateUsage]
    view({"type": "rollouts", "label": "before", "done": 20, "total": 20})
    assert view._left() != "?"  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (95, "1 min 35 s"), (3_720, "1 h 2 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_percentages_and_intervals() -> None:
    assert percent(None) == "-"
    assert interval({"accuracy": 0.873, "ci_low": 0.8, "ci_high": 0.9}) == "87.3 %  [80.0, 90.0]"
    assert interval({"accuracy": 12.5, "ci_low": 11.0, "ci_high": 14.0}) == "12.5  [11.0, 14.0]"
    for unknown in (None, float("-inf")):
        assert interval({"accuracy": 3.0, "ci_low": unknown, "ci_high": None}) == "3  [?]"


def test_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ("a", "b"), [(1, None)])
    print_table("", ("a",), [], empty="nothing here")
    print_json({"n": 1})
    shown = capsys.readouterr().out
    assert "title" in shown
    assert "-" in shown
    assert "nothing here" in shown
    assert json.loads(shown[shown.index("{") :]) == {"n": 1}
