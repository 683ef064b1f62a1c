"""Which agent fits a task best, by the words of both. Knows no database, no loads and no learning.

Words are compared by their beginnings (`analyse`, `analysis`); rare ones count more than those that many agents have,
and an agent that is described at length has no advantage from that.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from agentlightning.schemas.agent import AgentDefinition

Profile = Mapping[str, float]
"""Beginnings of words, and how much they say of an agent."""

_WORD = re.compile(r"[a-z0-9]+")
_STEM = 5
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be by can do does for from give has have how i in into is it its me my of on or our out "
        "please show so some tell that the their them then there this to up use us was we what when where which who "
        "will with you your make need want task agent about"
    )
)
_CAPABILITIES, _NAME, _DESCRIPTION, _EXAMPLES, _PROMPT = 3.0, 2.0, 1.0, 1.0, 0.6


def profile(agent: AgentDefinition) -> Profile:
    """What an agent's definition says that it is for; its examples are those that it is not tested with."""
    weights: dict[str, float] = {}
    parts = (
        (_CAPABILITIES, " ".join(agent.capabilities)),
        (_NAME, f"{agent.name} {agent.type}"),
        (_DESCRIPTION, f"{agent.description} {agent.role}"),
        (_EXAMPLES, " ".join(str(case.input) for case in agent.cases("train"))),
        (_PROMPT, agent.system_prompt),
    )
    for weight, part in parts:
        for word in _words(part):
            weights[_stem(word)] = max(weight, weights.get(_stem(word), 0.0))
    return weights


def best(text: str, profiles: Sequence[Profile]) -> tuple[int, list[str]] | None:
    """Which profile has most in common with `text`, and the words of it; `None` when none has any.

    The first one wins a draw.
    """
    known = Counter(stem for each in profiles for stem in each)
    rarity = {stem: math.log(1 + len(profiles) / count) for stem, count in known.items()}
    wanted = {_stem(word): word for word in _words(text) if _stem(word) in rarity}
    if not wanted:
        return None
    scores = [
        sum(each[stem] * rarity[stem] for stem in wanted if stem in each)
        / math.sqrt(math.hypot(*(weight * rarity[stem] for stem, weight in each.items())))
        for each in profiles
    ]
    first = scores.index(max(scores))
    found = [stem for stem in wanted if stem in profiles[first]]
    found.sort(key=lambda stem: -profiles[first][stem] * rarity[stem])
    return first, [wanted[stem] for stem in found[:8]]


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower().replace("_", " ")) if word not in _COMMON]


def _stem(word: str) -> str:
    return word[:_STEM]
