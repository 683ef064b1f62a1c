"""Which agent fits a task best, by the words of both. Knows no database, no loads and no learning.

Words are compared by their beginnings (`analyse`, `analysis`); rare ones count more than those that many agents have.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from agentlightning.schemas.agent import AgentDefinition

_WORD = re.compile(r"[a-z0-9]+")
_STEM = 5
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be by can do does for from give has have how i in into is it its me my of on or our out "
        "please show so some tell that the their them then there this to up use us was we what when where which who "
        "will with you your make need want task agent about"
    )
)
_WEIGHTS = (3.0, 2.0, 1.0)  # capabilities, name and type, description and role


def best(text: str, agents: Sequence[AgentDefinition]) -> tuple[AgentDefinition, list[str]] | None:
    """The agent whose capabilities, name and description have most in common with `text`, and the words of it.

    `None` when none has any. The first one wins a draw.
    """
    wanted = {stem: word for word in _words(text) for stem in (_stem(word),)}
    described = [_described(agent) for agent in agents]
    known = Counter(stem for weights in described for stem in weights)
    scores = [
        sum(weights[stem] * math.log(1 + len(agents) / known[stem]) for stem in wanted if stem in weights)
        for weights in described
    ]
    if not scores or max(scores) <= 0:
        return None
    first = scores.index(max(scores))
    return agents[first], sorted(wanted[stem] for stem in wanted if stem in described[first])


def _described(agent: AgentDefinition) -> dict[str, float]:
    weights: dict[str, float] = {}
    parts = (" ".join(agent.capabilities), f"{agent.name} {agent.type}", f"{agent.description} {agent.role}")
    for weight, part in zip(_WEIGHTS, parts, strict=True):
        for word in _words(part):
            weights[_stem(word)] = max(weight, weights.get(_stem(word), 0.0))
    return weights


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower().replace("_", " ")) if word not in _COMMON]


def _stem(word: str) -> str:
    return word[:_STEM]
