"""The live view of a run: progress bar, newest numbers, a small curve. Plain lines when the output is no terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agentlightning.cli.live import LiveView
from agentlightning.cli.output import duration, interval, percent

_BLOCKS = " ▁▂▃▄▅▆▇█"
_LINES = 20
"""Most lines about steps of fine-tuning where the output is no terminal."""
_MEASURES = ("loss", "token_accuracy", "margin", "accuracy", "preferred")


class RunView(LiveView):
    """Context manager that shows the events of a run."""

    def __init__(self, title: str, *, console: Console | None = None) -> None:
        super().__init__(title, console)
        self.phase = "starting"
        self.total = 0
        self.steps = 0
        self.step = 0
        self.finished = 0
        self.batch: dict[str, Any] = {}
        self.rewards: list[float] = []
        self.evals: list[dict[str, Any]] = []
        self.compares: list[dict[str, Any]] = []
        self.last_step: dict[str, Any] = {}
        self.started = time.monotonic()
        self.held_out: dict[str, Any] = {}
        self.losses: list[float] = []
        self._worked_from: tuple[float, int] | None = None

    def __rich__(self) -> Panel:
        return Panel(Group(*self._lines()), title=self.title, title_align="left", border_style="blue")

    # -- events

    def _on_phase(self, event: dict[str, Any]) -> None:
        detail = event.get("detail")
        self.phase = f"{event['name']}: {detail}" if detail else event["name"]
        self._say(self.phase)

    def _on_plan(self, event: dict[str, Any]) -> None:
        self.steps = event["steps"]
        if event.get("counts_steps"):
            self.total += self.steps  # a step is work as a rollout is
        else:
            self.total = event["rollouts"]

    def _on_data(self, event: dict[str, Any]) -> None:
        left_out = ", ".join(f"{count} {reason}" for reason, count in event["skipped"].items())
        self._say(
            f"{event['train']:,} {event['unit']} to learn from, {event['held_out']:,} held out"
            + (f"; left out: {left_out}" if left_out else "")
        )

    def _on_held_out(self, event: dict[str, Any]) -> None:
        self.held_out = event
        self._say(f"held-out examples after step {event['step']}: {measures(event)}")

    def _on_resumed(self, event: dict[str, Any]) -> None:
        self.step = event["step"]
        self._say(f"continuing after step {event['step']} of {event['steps']}")

    def _on_rollouts(self, event: dict[str, Any]) -> None:
        if event["label"] != self.batch.get("label"):
            self.finished += self.batch.get("total", 0)
        self.batch = event
        if self._worked_from is None and event["done"]:
            self._worked_from = (time.monotonic(), self.finished + event["done"])

    def _on_step(self, event: dict[str, Any]) -> None:
        self.step, self.last_step = event["step"], event
        if "sample_s" not in event:
            self._on_fit(event)
            return
        if event.get("reward") is not None:
            self.rewards.append(event["reward"])
        reward = percent(event.get("reward"))
        self._say(
            f"step {event['step']}/{event['steps']}  reward {reward}  "
            f"{event['sample_s']:.1f}+{event['train_s']:.1f} s  {self._tokens_per_second():.0f} tokens/s  "
            f"left {self._left()}"
        )

    def _on_fit(self, event: dict[str, Any]) -> None:
        self.losses.append(event["loss"])
        self.finished += 1
        if self._worked_from is None:
            self._worked_from = (time.monotonic(), self._done())
        every = max(1, event["steps"] // _LINES)
        if event["step"] % every == 0 or event["step"] == event["steps"]:
            self._say(
                f"step {event['step']}/{event['steps']}  {measures(event)}  {event['tokens_per_s']:,.0f} tokens/s  "
                f"left {self._left()}"
            )

    def _on_eval(self, event: dict[str, Any]) -> None:
        self.evals.append(event)
        self._say(f"held-out after step {event['step']}: {interval(event)} (n={event['n']})")

    def _on_compare(self, event: dict[str, Any]) -> None:
        self.compares.append(event)
        self._say(f"{event['when']} {event['name']}: {interval(event)} (n={event['n']})")

    # -- drawing

    def _say(self, text: str) -> None:
        if self._live is None:
            self.console.print(
                f"[{duration(time.monotonic() - self.started)}] {text}", markup=False, highlight=False, soft_wrap=True
            )

    def _done(self) -> int:
        return self.finished + self.batch.get("done", 0)

    def _left(self) -> str:
        if self._worked_from is None or not self.total:
            return "?"
        since, already = self._worked_from
        done = self._done() - already
        if done <= 0:
            return "?"
        return duration((time.monotonic() - since) / done * max(0, self.total - self._done()))

    def _tokens_per_second(self) -> float:
        return float(self.batch.get("tokens_per_s", 0.0))

    def _lines(self) -> list[Any]:
        grid = Table.grid(padding=(0, 2))
        for _ in range(2):
            grid.add_column(style="dim")
            grid.add_column()
        if self.losses:
            return self._fit_lines(grid)
        held_out = self.evals[-1] if self.evals else None
        grid.add_row("phase", self.phase, "time", duration(time.monotonic() - self.started))
        rollouts = f"{self._done():,} of {self.total:,}"
        if self.phase == "evaluating":  # neither steps nor a training reward
            grid.add_row("rollouts", rollouts, "left", self._left())
            return [grid, self._bar()]
        grid.add_row("step", f"{self.step} of {self.steps}", "left", self._left())
        grid.add_row("reward", percent(self.last_step.get("reward")), "tokens/s", f"{self._tokens_per_second():,.0f}")
        grid.add_row("held-out", interval(held_out) if held_out else "-", "rollouts", rollouts)
        lines: list[Any] = [grid, self._bar()]
        if self.rewards:
            lines.append(Text(f"reward   {_sparkline(self.rewards)}", style="cyan"))
        return lines

    def _fit_lines(self, grid: Table) -> list[Any]:
        speed = f"{self.last_step.get('tokens_per_s', 0.0):,.0f}"
        grid.add_row("phase", self.phase, "time", duration(time.monotonic() - self.started))
        grid.add_row("step", f"{self.step} of {self.steps}", "left", self._left())
        grid.add_row("batch", measures(self.last_step), "tokens/s", speed)
        grid.add_row("held-out", measures(self.held_out) or "-", "", "")
        top = max(self.losses)
        curve = _sparkline([loss / top if top > 0 else 0.0 for loss in self.losses])
        return [grid, self._bar(), Text(f"loss     {curve}", style="cyan")]

    def _bar(self) -> Table:
        bar = Table.grid(expand=True)  # a bare bar ends without a line break
        bar.add_row(ProgressBar(total=max(1, self.total), completed=min(self._done(), self.total)))
        return bar


def measures(facts: dict[str, Any]) -> str:
    """What is known of `loss`, `margin` and so on, in one line."""
    return "  ".join(f"{name} {facts[name]:.4g}" for name in _MEASURES if name in facts)


def _sparkline(values: list[float], width: int = 60) -> str:
    low, high = min(0.0, *values), max(1.0, *values)
    scale = (len(_BLOCKS) - 1) / (high - low)
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values[-width:])
