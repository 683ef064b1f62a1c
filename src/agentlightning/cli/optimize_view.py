"""The live view of a prompt optimisation, with what it has cost so far; and its result in words."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from agentlightning.algorithm.prompt import Budget, OptimizationResult
from agentlightning.cli.live import LiveView
from agentlightning.cli.output import duration, interval, percent


class OptimizeView(LiveView):
    """Context manager that shows events; plain lines where the output is no terminal."""

    def __init__(self, title: str, budget: Budget, *, console: Console | None = None) -> None:
        super().__init__(title, console)
        self.budget = budget
        self.phase = "starting"
        self.batch: dict[str, Any] = {}
        self.spent: dict[str, Any] = {}
        self.held: dict[str, Any] | None = None
        self.rounds: tuple[int, int] = (0, 0)
        self.candidates = 1
        self.started = time.monotonic()

    def __rich__(self) -> Panel:
        grid = Table.grid(padding=(0, 2))
        for _ in range(2):
            grid.add_column(style="dim")
            grid.add_column()
        grid.add_row("phase", self.phase, "time", duration(time.monotonic() - self.started))
        grid.add_row("round", f"{self.rounds[0]} of {self.rounds[1]}", "prompts tried", str(self.candidates))
        grid.add_row("best on validation", interval(self.held) if self.held else "-", "cost", self.cost())
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=1.0, completed=self.fraction()))
        return Panel(Group(grid, bar), title=self.title, title_align="left", border_style="blue")

    def cost(self) -> str:
        """What was spent so far, of what may be."""
        spent, budget = self.spent, self.budget
        if not spent:
            return "nothing yet"
        parts = [f"{spent['calls']:,}{_of(budget.calls)} calls", f"{spent['tokens']:,}{_of(budget.tokens)} tokens"]
        if spent["usd"] or budget.usd is not None:
            parts.append(f"{spent['usd']:.4f}{_of(budget.usd)} USD")
        return ", ".join(parts)

    def fraction(self) -> float:
        """How far it is: of the budget or of the rounds, whichever ends first."""
        parts = [self.rounds[0] / self.rounds[1] if self.rounds[1] else 0.0]
        for name in ("calls", "tokens", "usd", "wall_s"):
            limit = getattr(self.budget, name)
            if limit and self.spent:
                parts.append(self.spent[name] / limit)
        return min(1.0, max(parts))

    def _say(self, text: str) -> None:
        if self._live is None:
            since = duration(time.monotonic() - self.started)
            self.console.print(f"[{since}] {text}", markup=False, highlight=False, soft_wrap=True)

    def _on_phase(self, event: dict[str, Any]) -> None:
        self.phase = event["name"]
        self._say(self.phase)

    def _on_choice(self, event: dict[str, Any]) -> None:
        self._say(f"optimizer: {event['why']}")

    def _on_rollouts(self, event: dict[str, Any]) -> None:
        self.batch = event
        self.phase = f"{event['label']}: {event['done']} of {event['total']} rollouts"

    def _on_spent(self, event: dict[str, Any]) -> None:
        self.spent = event

    def _on_eval(self, event: dict[str, Any]) -> None:
        self.held = event

    def _on_step(self, event: dict[str, Any]) -> None:
        self.rounds = (event["step"], event["steps"])
        self.candidates = event["candidates"]
        self.spent = event["spent"]
        best = interval(self.held) if self.held else percent(event["reward"])
        self._say(f"round {event['step']}/{event['steps']}  best {best}  {self.cost()}")


def show_result(result: OptimizationResult, console: Console | None = None) -> None:
    """The best prompts, the gain with its interval, the cost, and what to do next."""
    console = console or Console()

    def say(text: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say()
    if result.best == result.start:
        say("No better prompt was found; the starting one stays.")
    for name, prompt in result.best_prompts.items() if result.best != result.start else ():
        say(f"--- {name}")
        say(prompt.template)
        say("---")
    for comparison in result.comparisons:
        say(gain_line(comparison))
    if result.stopped_because:
        say(f"Ended: {result.stopped_because}")
    if result.dropped:
        say("Proposals that never ran: " + ", ".join(f"{n} x {reason}" for reason, n in result.dropped.items()))
    spent = result.spent
    money = f", {spent['usd']:.4f} USD" if spent["usd"] else ""
    say(
        f"{result.candidates} prompts in {result.rounds} rounds: {spent['calls']:,} calls, {spent['tokens']:,} tokens"
        f"{money}, {duration(spent['wall_s'])}"
    )
    say(f"Prompts: {result.directory / 'best_prompts.json'}")
    say(f"Look closer: agl lineage {result.run_id}")


def gain_line(comparison: Any) -> str:
    """`test (held out, n=24): 25.0 % -> 100.0 %, gain +75.0 points [+50.1, +86.2]`."""
    scale = 100 if 0 <= comparison.before <= 1 and 0 <= comparison.after <= 1 else 1
    gain, low, high = (scale * value for value in comparison.gain)
    kind = "held out" if comparison.held_out else "prompts were chosen on it, so the gain is too good"
    verdict = "" if comparison.is_shown else "; better is not shown"
    unit = " points" if scale == 100 else ""
    return (
        f"{comparison.data} ({kind}, n={comparison.n}): {percent(comparison.before)} -> {percent(comparison.after)}, "
        f"gain {gain:+.3g}{unit} [{low:+.3g}, {high:+.3g}]{verdict}"
    )


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of {limit:,g}"
