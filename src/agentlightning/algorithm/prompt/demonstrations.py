"""Demonstrations: good answers of training rollouts, and reference answers, as examples inside a prompt. No search.

They are chosen by similarity: together they shall be near to the training tasks, above all to those that failed. The
built-in vectors are counts of letter triples, which need no model. Reference answers cost no call, and are there before
the first success (labelled demonstrations beside bootstrapped ones: Opsahl-Ong et al. 2024, "MIPRO", section 3).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentlightning.algorithm.datasets import example_key
from agentlightning.algorithm.prompt.block import split, written
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.placeholders import literal
from agentlightning.algorithm.prompt.scoring import Example
from agentlightning.algorithm.prompt.search import Search
from agentlightning.algorithm.rewards.base import REFERENCE_KEYS
from agentlightning.kit.errors import BadInputError

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Vectors of texts, all of one length."""

_ANSWERS = frozenset(
    {"answer", "expected", "expected_choice", "expected_output", "label", "output", "reference", "target"}
)
_LETTERS_PER_TOKEN = 4
_FAILED_WEIGHT = 3.0


@dataclass(frozen=True)
class Demonstration:
    """An input and a good output."""

    example_id: str
    question: str
    answer: str
    reward: float | None
    """What the answer earned; `None` of a reference answer, which nobody gave."""

    @property
    def tokens(self) -> int:
        """About so many, at four letters each."""
        return math.ceil((len(self.question) + len(self.answer) + 20) / _LETTERS_PER_TOKEN)


@dataclass
class Pool:
    """Demonstrations and the training tasks they are to cover."""

    demonstrations: list[Demonstration] = field(default_factory=list[Demonstration])
    references: list[Demonstration] = field(default_factory=list[Demonstration])
    """Of tasks without a good answer of the agent's own."""
    tasks: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    """Text and weight."""


async def collect(
    search: Search, candidates: Sequence[Candidate], *, within: float = 0.1, references: bool = False
) -> Pool:
    """Good answers that candidates gave to training examples, one for each example.

    Args:
        search: The search; what it has not run is left out.
        candidates: Whose answers.
        within: A reward counts as good when it is at most this share of the range of rewards below the highest.
        references: Also the reference answers of training examples, where the agent has a single prompt: what several
            prompts shall answer each, a reference for all does not say.
    """
    pool = Pool()
    found: list[tuple[float, Candidate, Example]] = []
    for example in search.train:
        known = [c for c in candidates if not search.scorer.cost(c, [example])]
        rewards = [(reward, c) for c in known if (reward := search.scorer.rewards(c, [example])[0]) is not None]
        best = max(rewards, key=lambda pair: pair[0], default=None)
        if best is not None:
            found.append((best[0], best[1], example))
    highest, lowest = max((r for r, *_ in found), default=0.0), min((r for r, *_ in found), default=0.0)
    enough = highest - within * (highest - lowest)
    for reward, candidate, example in found:
        is_good = reward >= enough and highest > lowest
        pool.tasks.append((input_text(example.task, candidate), 1.0 if is_good else _FAILED_WEIGHT))
        answer = await _answer(search, candidate, example) if is_good else ""
        if answer:
            question = input_text(example.task, candidate)
            pool.demonstrations.append(Demonstration(example.id, question, answer, reward))
    if references and len(search.seed.prompts) == 1:
        _add_references(pool, search, {example.id for *_, example in found})
    check_no_leak([*pool.demonstrations, *pool.references], search.train, [*search.val, *search.spare])
    return pool


def _add_references(pool: Pool, search: Search, ran: set[str]) -> None:
    answered = {d.example_id for d in pool.demonstrations}
    for example in search.train:
        question, answer = input_text(example.task, search.seed), reference_text(example.task, search.seed)
        if example.id not in ran:
            pool.tasks.append((question, 1.0))
        if answer and example.id not in answered:
            pool.references.append(Demonstration(example.id, question, answer, None))


def has_references(search: Search) -> bool:
    """Whether reference answers of training examples can be shown: `collect` says where they can."""
    is_one = len(search.seed.prompts) == 1
    return is_one and any(reference_text(example.task, search.seed) for example in search.train)


def reference_text(task: Any, candidate: Candidate) -> str:
    """The reference answer of a task as text; empty when there is none, or when it is what the prompts are given."""
    if not isinstance(task, Mapping):
        return ""
    shown = {name for prompt in candidate.prompts for name in candidate.placeholders(prompt)}
    key = next((key for key in REFERENCE_KEYS if key in _ANSWERS and task.get(key) is not None), None)
    if key is None or key in shown:
        return ""
    answer = task[key]
    return answer.strip() if isinstance(answer, str) else json.dumps(answer, default=str, ensure_ascii=False)


async def _answer(search: Search, candidate: Candidate, example: Example) -> str:
    calls = await search.scorer.messages(search.scorer.scored(candidate, example))
    for call in reversed(calls):
        last = call["messages"][-1] if call.get("messages") else {}
        if last.get("role") == "assistant" and isinstance(last.get("content"), str):
            return last["content"].strip()
    return ""


def input_text(task: Any, candidate: Candidate) -> str:
    """What of a task goes into the prompts, as text: the values of placeholders where the task has them."""
    if not isinstance(task, Mapping):
        return task if isinstance(task, str) else json.dumps(task, default=str, ensure_ascii=False)
    flat = {**{k: v for inner in task.values() if isinstance(inner, Mapping) for k, v in inner.items()}, **task}
    names = dict.fromkeys(name for prompt in candidate.prompts for name in candidate.placeholders(prompt))
    shown = {name: flat[name] for name in names if name in flat}
    if not shown:
        shown = {key: value for key, value in task.items() if key not in _ANSWERS}
    if len(shown) == 1:
        only = next(iter(shown.values()))
        return only if isinstance(only, str) else json.dumps(only, default=str, ensure_ascii=False)
    return json.dumps(shown, default=str, ensure_ascii=False)


def check_no_leak(demonstrations: Sequence[Demonstration], train: Sequence[Example], other: Sequence[Example]) -> None:
    """Make sure that demonstrations come from training examples only.

    Raises:
        BadInputError: One does not.
    """
    allowed = {example.id for example in train}
    forbidden = {example_key(example.task) for example in other}
    ids = {example.id: example for example in train}
    for demonstration in demonstrations:
        if demonstration.example_id not in allowed or example_key(ids[demonstration.example_id].task) in forbidden:
            raise BadInputError(f"The demonstration {demonstration.question[:100]!r} is no training example.")


def choose(
    pool: Pool,
    count: int,
    *,
    max_tokens: int,
    embed: Embed | None = None,
    among: Sequence[Demonstration] | None = None,
) -> list[Demonstration]:
    """The demonstrations that together are most similar to the pool's tasks, greedily, within the tokens.

    Args:
        pool: Tasks, and demonstrations to choose from.
        count: Most of them.
        max_tokens: About how many tokens they may have together.
        embed: Vectors of texts; counts of letter triples by default.
        among: Other demonstrations to choose from.
    """
    offered = pool.demonstrations if among is None else among
    texts = [text for text, _ in pool.tasks]
    questions = [d.question for d in offered]
    similar = _similarities(questions, texts, embed)
    nearest = [0.0] * len(texts)
    chosen: list[int] = []
    tokens = 0
    while len(chosen) < count:
        best, best_gain = None, 0.0
        for index, demonstration in enumerate(offered):
            if index in chosen or tokens + demonstration.tokens > max_tokens:
                continue
            gain = math.fsum(
                weight * max(0.0, similar[index][t] - nearest[t]) for t, (_, weight) in enumerate(pool.tasks)
            )
            if best is None or gain > best_gain:
                best, best_gain = index, gain
        if best is None:
            break
        chosen.append(best)
        tokens += offered[best].tokens
        nearest = [max(old, new) for old, new in zip(nearest, similar[best], strict=True)]
    return [offered[index] for index in chosen]


def _similarities(left: Sequence[str], right: Sequence[str], embed: Embed | None) -> list[list[float]]:
    if embed is not None:
        vectors = [_unit(dict(enumerate(vector))) for vector in embed([*left, *right])]
    else:
        vectors = [_unit(_triples(text)) for text in [*left, *right]]
    return [[_dot(one, other) for other in vectors[len(left) :]] for one in vectors[: len(left)]]


def _triples(text: str) -> Mapping[Any, float]:
    plain = f" {re.sub(r'[^a-z0-9]+', ' ', text.lower()).strip()} "
    return Counter(plain[i : i + 3] for i in range(max(1, len(plain) - 2)))


def _unit(vector: Mapping[Any, float]) -> dict[Any, float]:
    length = math.sqrt(math.fsum(value * value for value in vector.values())) or 1.0
    return {key: value / length for key, value in vector.items()}


def _dot(one: Mapping[Any, float], other: Mapping[Any, float]) -> float:
    if len(other) < len(one):
        one, other = other, one
    return math.fsum(value * other[key] for key, value in one.items() if key in other)


def with_demonstrations(candidate: Candidate, demonstrations: Sequence[Demonstration]) -> dict[str, str]:
    """The texts with these demonstrations at the head of each prompt that takes the input, in place of former ones."""
    texts: dict[str, str] = {}
    for name, prompt in candidate.prompts.items():
        bare = split(prompt.template)[1]
        if not candidate.placeholders(name) and any(candidate.placeholders(other) for other in candidate.prompts):
            texts[name] = bare
            continue
        shown = "\n\n".join(
            f"Input: {literal(d.question, prompt.engine)}\nOutput: {literal(d.answer, prompt.engine)}"
            for d in demonstrations
        )
        texts[name] = written(shown, bare)
    return texts
