"""How good an interaction was: four documented measures between 0 and 1, and the methods that users add.

All are computed from what happened (calls, sources, citations, seconds); no model is asked. A run that failed because a
server was away has no reward, which is not 0.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from agentlightning.integrations.tongyi.config import Target
from agentlightning.integrations.tongyi.research import Research
from agentlightning.kit.errors import BadInputError

WEIGHTS: Mapping[Target, Mapping[str, float]] = {
    "research_efficiency": {"citations": 0.4, "completeness": 0.2, "tool_efficiency": 0.2, "speed": 0.2},
    "response_quality": {"completeness": 0.6, "citations": 0.4},
    "tool_usage": {"tool_efficiency": 0.7, "citations": 0.3},
    "response_speed": {"speed": 0.7, "completeness": 0.3},
}
"""Reward of a target: the weighted sum of these parts."""
CITATIONS_WANTED = 3
LENGTH_WANTED = 600
"""Characters from which on an answer is not called short."""
_STOP = frozenset(
    {
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "how",
        "in",
        "is",
        "it",
        "its",
    }
    | {"of", "on", "or", "that", "the", "their", "these", "this", "to", "was", "what", "when", "where", "which", "who"}
    | {"why", "with", "you", "your"}
)


def parts_of(research: Research, *, max_response_time: float) -> dict[str, float]:
    """The measures.

    * `citations`: how many sources are cited, 3 are enough, times the share of citations that were really read;
    * `completeness`: half the share of the question's words that the answer takes up, half its length up to 600;
    * `tool_efficiency`: the share of calls that neither failed nor repeated one before; 0 without any call;
    * `speed`: 1 for at once, 0.5 at half of `max_response_time`, 0 from there on.
    """
    if not research.is_success:
        return dict.fromkeys(("citations", "completeness", "tool_efficiency", "speed"), 0.0)
    kept, wrong = len(research.cited), len(research.flagged) + len(research.unsupported)
    honest = kept / (kept + wrong) if kept + wrong else 0.0
    return {
        "citations": min(1.0, kept / CITATIONS_WANTED) * honest,
        "completeness": _completeness(research.query, research.answer),
        "tool_efficiency": tool_efficiency(research),
        "speed": max(0.0, 1.0 - research.seconds / max_response_time),
    }


def tool_efficiency(research: Research) -> float:
    """The share of calls that were worth it."""
    seen: set[tuple[str, str]] = set()
    useful = 0
    for call in research.calls:
        useful += not call.is_error and (call.tool, call.arguments) not in seen
        seen.add((call.tool, call.arguments))
    return useful / len(research.calls) if research.calls else 0.0


def reward_of(parts: Mapping[str, float], target: Target) -> float:
    """The reward of a target, between 0 and 1."""
    return math.fsum(weight * parts[name] for name, weight in WEIGHTS[target].items())


def own_metrics(owner: Any, research: Research) -> dict[str, float]:
    """What the methods `_..._metric(query, response)` of an agent give, by name without the affixes.

    Raises:
        BadInputError: One gives something else than a finite number; it is named.
    """
    names = [n for n in dir(type(owner)) if n.startswith("_") and n.endswith("_metric") and not n.startswith("__")]
    return {
        name.removeprefix("_").removesuffix("_metric"): called(owner, name, research)
        for name in names
        if callable(getattr(owner, name))
    }


def called(owner: Any, method: str, research: Research) -> float:
    """What a user's method gives for an interaction, called by the names of its arguments.

    Raises:
        BadInputError: It fails, or gives something else than a finite number.
    """
    function = getattr(owner, method)
    offers = {"query": research.query, "response": research.answer, "tools_used": research.tools_used}
    offers["research"] = research  # pyright: ignore[reportArgumentType]
    wanted = [name for name in inspect.signature(function).parameters if name in offers]
    label = f"{type(owner).__name__}.{method}"
    try:
        value = float(function(**{name: offers[name] for name in wanted}))
    except Exception as error:  # a user's code may raise anything; which method it was is what helps
        raise BadInputError(f"{label} failed: {type(error).__name__}: {error}.") from error
    if not math.isfinite(value):
        raise BadInputError(f"{label} gave {value}, which is no reward.", hint="Give a finite number.")
    return value


def _completeness(query: str, answer: str) -> float:
    words = {word for word in re.findall(r"\w{2,}", query.lower()) if word not in _STOP}
    told = answer.lower()
    covered = sum(word in told for word in words) / len(words) if words else 1.0
    return 0.5 * covered + 0.5 * min(1.0, len(answer) / LENGTH_WANTED)
