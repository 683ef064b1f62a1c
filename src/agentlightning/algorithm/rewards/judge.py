"""Rewards by a model that judges: a score by a rubric, or which of two outputs is better; and how far it agrees.

A judge that answers anything but what it was asked for gives no reward: `None`, never 0.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentlightning.algorithm.asking import ClientProposer, Proposer, environment_proposer
from agentlightning.algorithm.rewards.base import Reward, output_text, reference_of
from agentlightning.algorithm.rewards.judging import note_judge_call
from agentlightning.kit.errors import ConfigError, SignalError

_OBJECT = re.compile(r"\{[^{}]*\}", re.DOTALL)
_RUBRIC = "Is the output correct and complete, and does it do what the task asks for?"


def _asking(proposer: Any, model: str | None) -> Proposer:
    found = ClientProposer(proposer, model) if hasattr(proposer, "chat") else proposer or environment_proposer(model)
    if found is None:
        raise ConfigError(
            "A judge needs a model.",
            hint="Give judge=HttpProposer(url, model), or set OPENAI_BASE_URL or OPENAI_API_KEY.",
        )
    return found


class Judge(Reward):
    """A model scores the output by a rubric.

    Args:
        rubric: What a good output is.
        judge: A client of the shape of `openai.AsyncOpenAI` or an `HttpProposer`; by default the environment's server.
        model: Its model.
        scale: Lowest and highest score it may give; the reward is between 0 and 1.
        votes: Questions in all; the median counts.
        temperature: Sampling temperature; with several votes above 0.

    Raises:
        ConfigError: There is no model, or the scale is none.
    """

    name = "judge"

    def __init__(
        self,
        rubric: str = _RUBRIC,
        *,
        judge: Any = None,
        model: str | None = None,
        scale: tuple[float, float] = (0, 10),
        votes: int = 1,
        temperature: float = 0.0,
    ) -> None:
        if not scale[0] < scale[1] or votes < 1:
            raise ConfigError("A judge has a scale from low to high and at least one vote.")
        self.rubric = rubric
        self.scale = scale
        self.votes = votes
        self.temperature = temperature
        self.model = model
        self._judge = _asking(judge, model)

    async def score(self, task: Any, output: Any) -> float | None:
        """From 0 to 1; `None` when the judge gives no score on its scale."""
        given = await asyncio.gather(*(self._vote(task, output) for _ in range(self.votes)))
        found = sorted(score for score in given if score is not None)
        if 2 * len(found) <= self.votes:
            return None
        middle = (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2
        low, high = self.scale
        return (middle - low) / (high - low)

    async def _vote(self, task: Any, output: Any) -> float | None:
        low, high = self.scale
        reference = reference_of(task)
        told = f"\n\nReference answer:\n{_text(reference)}" if reference is not None else ""
        question = (
            f"You judge the output of an AI agent strictly by a rubric.\n\nRubric:\n{self.rubric}\n\nTask:\n"
            f"{_text(task)}{told}\n\nOutput:\n{output_text(output)}\n\nAnswer with JSON only: "
            f'{{"reason": "one sentence", "score": a number from {low:g} (worst) to {high:g} (best)}}'
        )
        answer = await _ask(self._judge, question, self.model, self.temperature)
        score = _field(answer, "score")
        is_number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        return float(score) if is_number and low <= score <= high else None


class Pairwise(Reward):
    """A model says whether the output is better than a reference output: 1, 0, or 0.5 for as good.

    It is asked twice, with the two in either order, since judges prefer places (Zheng et al. 2023, MT-Bench).

    Args:
        rubric: What better means.
        key: Where tasks have the reference output.
        judge: See `Judge`.
        model: Its model.
    """

    name = "pairwise"

    def __init__(
        self, rubric: str = _RUBRIC, *, key: str | None = None, judge: Any = None, model: str | None = None
    ) -> None:
        self.rubric = rubric
        self.key = key
        self.model = model
        self._judge = _asking(judge, model)

    async def score(self, task: Any, output: Any) -> float | None:
        """`None` without a reference, or when the judge does not choose."""
        reference = reference_of(task, self.key)
        if reference is None:
            return None
        return await self.compare(task, output, reference)

    async def compare(self, task: Any, output: Any, other: Any) -> float | None:
        """How good `output` is beside `other`: 1 better, 0.5 as good (or it depends on the order), 0 worse."""
        first, second = await asyncio.gather(self._ask(task, output, other), self._ask(task, other, output))
        if first is None or second is None:
            return None
        return (first + 1 - second) / 2

    async def _ask(self, task: Any, one: Any, other: Any) -> float | None:
        question = (
            f"Which of two outputs of AI agents is better? Rubric:\n{self.rubric}\n\nTask:\n{_text(task)}\n\n"
            f"Output A:\n{output_text(one)}\n\nOutput B:\n{output_text(other)}\n\nAnswer with JSON only: "
            '{"reason": "one sentence", "better": "A", "B" or "same"}'
        )
        choice = _field(await _ask(self._judge, question, self.model, 0.0), "better")
        return {"a": 1.0, "b": 0.0, "same": 0.5}.get(str(choice).strip().lower())


async def _ask(judge: Proposer, question: str, model: str | None, temperature: float) -> str:
    named = model or judge.model or ""
    reply = await judge.ask([{"role": "user", "content": question}], model=named, temperature=temperature)
    note_judge_call(reply)
    return reply.text


def _field(answer: str, name: str) -> Any:
    for candidate in reversed([answer, *_OBJECT.findall(answer)]):
        try:
            found = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(found, dict) and name in found:
            return found[name]
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with labels."""

    n: int
    missing: int
    """Outputs that the judge gave no score."""
    correlation: float
    """Spearman's rank correlation; not a number when one side is constant."""
    mean_error: float
    """Mean absolute difference."""
    worst: list[tuple[Any, float, float]] = field(default_factory=list[tuple[Any, float, float]])
    """Tasks with the largest differences: task, label, score."""

    def require(self, correlation: float = 0.5) -> Agreement:
        """Make sure that optimising by this judge means something.

        Raises:
            SignalError: It agrees less, or does not answer more than a fifth of the time.
        """
        answers = self.n + self.missing
        if not answers or self.missing > answers / 5:
            raise SignalError(
                f"The judge gave no score to {self.missing} of {answers} outputs.",
                hint="Use a model that follows formats, or a shorter rubric.",
            )
        if not self.correlation >= correlation:
            raise SignalError(
                f"The judge agrees with the labels by {self.correlation:.2f} only (rank correlation, n={self.n}).",
                hint="Make the rubric more precise: see .worst for where they differ.",
            )
        return self


async def agreement(judge: Reward, labelled: Sequence[tuple[Any, Any, float]]) -> Agreement:
    """Compare a judge with labels from 0 to 1.

    Args:
        judge: The reward to be checked.
        labelled: Task, output and label of each.

    Raises:
        ConfigError: There are no labels.
    """
    if not labelled:
        raise ConfigError("An agreement needs labelled outputs.")
    scores = await asyncio.gather(*(judge(task, output) for task, output, _ in labelled))
    pairs = [(t, label, s) for (t, _, label), s in zip(labelled, scores, strict=True) if s is not None]
    errors = sorted(pairs, key=lambda pair: -abs(pair[1] - pair[2]))
    n = len(pairs)
    return Agreement(
        n=n,
        missing=len(labelled) - n,
        correlation=_spearman([p[1] for p in pairs], [p[2] for p in pairs]),
        mean_error=math.fsum(abs(p[1] - p[2]) for p in pairs) / n if n else math.nan,
        worst=errors[:5],
    )


def _spearman(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) < 2:
        return math.nan
    left, right = _ranks(one), _ranks(other)
    mean = (len(one) - 1) / 2
    shared = math.fsum((a - mean) * (b - mean) for a, b in zip(left, right, strict=True))
    spread = math.fsum((a - mean) ** 2 for a in left) * math.fsum((b - mean) ** 2 for b in right)
    return shared / math.sqrt(spread) if spread else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]
