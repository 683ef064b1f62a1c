"""What the training data say, in numbers and as a table. Knows no agent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agentlightning.integrations.tongyi.config import TongyiConfig
from agentlightning.integrations.tongyi.records import Interaction

if TYPE_CHECKING:
    from rich.table import Table

    from agentlightning.integrations.tongyi.book import PromptVersion


@dataclass
class Statistics:
    """Numbers over interactions; `None` where there is nothing to take them over."""

    total_interactions: int
    success_rate: float | None
    average_response_time: float
    """Seconds; 0.0 without interactions."""
    tool_usage_efficiency: float | None
    """Mean share of calls that neither failed nor repeated one before."""
    average_reward: float | None
    recent_reward: float | None
    """Of the newer half."""
    earlier_reward: float | None
    """Of the older half."""
    tools: dict[str, int] = field(default_factory=dict[str, int])
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    """Means of all measures, those of `_..._metric` methods included."""
    since: float | None = None
    until: float | None = None
    missed_goals: list[str] = field(default_factory=list[str])
    """Which of `[performance_metrics]` are not met."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; what an export has under `metrics`."""
        return dict(self.__dict__)


def statistics_of(interactions: Sequence[Interaction], config: TongyiConfig) -> Statistics:
    """Count."""
    goals = config.performance_metrics
    rewards = [entry.reward for entry in interactions if entry.reward is not None]
    half = len(rewards) // 2
    names = sorted({name for entry in interactions for name in entry.metrics})
    metrics = {n: _mean([e.metrics[n] for e in interactions if n in e.metrics]) or 0.0 for n in names}
    found = Statistics(
        total_interactions=len(interactions),
        success_rate=_mean([float(entry.claude_success) for entry in interactions]),
        average_response_time=_mean([entry.response_time for entry in interactions]) or 0.0,
        tool_usage_efficiency=metrics.get("tool_efficiency"),
        average_reward=_mean(rewards),
        recent_reward=_mean(rewards[half:]) if half else None,
        earlier_reward=_mean(rewards[:half]) if half else None,
        tools=dict(Counter(name for entry in interactions for name in entry.tools_used).most_common()),
        metrics=metrics,
        since=min((entry.timestamp for entry in interactions), default=None),
        until=max((entry.timestamp for entry in interactions), default=None),
    )
    if interactions:
        missed = {
            "max_response_time": found.average_response_time > goals.max_response_time,
            "min_success_rate": (found.success_rate or 0.0) < goals.min_success_rate,
            "min_tool_efficiency": found.tool_usage_efficiency is not None
            and found.tool_usage_efficiency < goals.min_tool_efficiency,
        }
        found.missed_goals = [name for name, is_missed in missed.items() if is_missed]
    return found


def table_of(
    found: Statistics, config: TongyiConfig, versions: Sequence[PromptVersion], *, active: int, candidate: int | None
) -> Table:
    """For a terminal."""
    from rich.table import Table

    goals = config.performance_metrics
    table = Table(title=f"Training data in {config.training.training_data_path}", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("goal")

    def goal(name: str, text: str) -> str:
        return f"{text}, missed" if name in found.missed_goals else text

    table.add_row("Total interactions", str(found.total_interactions), "")
    table.add_row(
        "Success rate", _percent(found.success_rate), goal("min_success_rate", f">= {goals.min_success_rate:.0%}")
    )
    table.add_row(
        "Average response time",
        f"{found.average_response_time:.2f} s",
        goal("max_response_time", f"<= {goals.max_response_time:g} s"),
    )
    table.add_row(
        "Tool usage efficiency",
        _percent(found.tool_usage_efficiency),
        goal("min_tool_efficiency", f">= {goals.min_tool_efficiency:.0%}"),
    )
    table.add_row(
        "Average reward", _number(found.average_reward), f"target {config.prompt_optimization.optimization_target}"
    )
    progress = f"{_number(found.earlier_reward)} to {_number(found.recent_reward)}"
    table.add_row("Training progress", progress if found.recent_reward is not None else "-", "older to newer half")
    for name, value in found.metrics.items():
        table.add_row(f"  {name}", _number(value), "")
    table.add_row("Tools used", "\n".join(f"{name} {count}" for name, count in found.tools.items()) or "-", "")
    newest = versions[-1].evidence.get("gain") if versions else None
    told = f"last gain {newest[0]:+.3f}" if newest else ""
    trial = f", {candidate} on trial" if candidate is not None else ""
    table.add_row("Prompt version", f"{active}{trial}", told)
    if found.since is not None and found.until is not None:
        table.add_row("From", _time(found.since), "")
        table.add_row("To", _time(found.until), "")
    return table


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
