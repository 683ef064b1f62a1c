"""Scores of candidates on examples, each paid for once in the life of a run.

A rollout's id is made from the run, the candidate's content and the example's content. So the store itself is the
cache: whoever asks again, in this process or after a kill, gets the rollout that is there. Knows no search.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentlightning.agent import TraceToMessages
from agentlightning.algorithm.base import RunContext
from agentlightning.algorithm.prompt.budget import BudgetSpent, Purse
from agentlightning.algorithm.prompt.candidate import Candidate, content_id
from agentlightning.algorithm.prompt.journal import Journal
from agentlightning.algorithm.rewards.judging import judge_call
from agentlightning.algorithm.rollouts import Outcome, Plan, run_batch
from agentlightning.kit.stats import mean_interval
from agentlightning.schemas import NamedResources, RolloutMode, Span, is_model_call, semconv


@dataclass(frozen=True)
class Example:
    """A task under an id made from its content."""

    id: str
    task: Any
    mode: RolloutMode = "train"

    @classmethod
    def of(cls, task: Any, mode: RolloutMode = "train") -> Example:
        """The example of a task."""
        return cls(content_id(task), task, mode)


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of a candidate on an example; `reward is None` means that nobody gave one."""

    rollout_id: str
    reward: float | None
    error: dict[str, Any] | None = None
    calls: int = 1


@dataclass(frozen=True)
class Score:
    """A candidate's mean reward with its 95 % interval; `rank` also counts failures, as the lowest reward seen."""

    mean: float
    low: float
    high: float
    n: int
    missing: int
    rank: float
    rewards: tuple[float | None, ...] = field(repr=False, default=())

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the single rewards."""
        return {name: getattr(self, name) for name in ("mean", "low", "high", "n", "missing", "rank")}


class Scorer:
    """Runs candidates on examples.

    Args:
        context: The run.
        base: The other resources agents get; prompts are put over them.
        purse: Pays.
        snapshots: Keeps which resources of the store are which candidate.
        timeout_s: Longest time of one rollout.
        repeats: Rollouts of a candidate on an example; their mean reward counts.
    """

    def __init__(
        self,
        context: RunContext,
        base: NamedResources,
        purse: Purse,
        snapshots: Journal,
        *,
        timeout_s: float = 3600.0,
        repeats: int = 1,
    ) -> None:
        self._context = context
        self._base = base
        self._purse = purse
        self._snapshots = snapshots
        self._resources_ids: dict[str, str] = {r["candidate"]: r["resources_id"] for r in snapshots.records}
        self._timeout_s = timeout_s
        self.repeats = repeats
        self._known: dict[tuple[str, str], list[Scored]] = {}
        self.lowest: float | None = None
        self.hits: Counter[str] = Counter()

    def unknown(self, candidate: Candidate, examples: Iterable[Example]) -> list[Example]:
        """The examples on which this candidate would have to be run, each once."""
        fresh = {e.id: e for e in examples if (candidate.id, e.id) not in self._known}
        return list(fresh.values())

    def cost(self, candidate: Candidate, examples: Iterable[Example]) -> int:
        """How many rollouts that takes."""
        return len(self.unknown(candidate, examples)) * self.repeats

    async def run(self, jobs: Sequence[tuple[Candidate, Sequence[Example]]], *, label: str) -> None:
        """Run what is not known yet, all of it at once.

        Raises:
            BudgetSpent: The rest of the budget does not pay for all of it; then nothing is run. Or its time is over.
        """
        wanted: dict[tuple[str, str], tuple[Candidate, Example]] = {}
        for candidate, examples in jobs:
            for example in examples:
                key = (candidate.id, example.id)
                if key in self._known or key in wanted:
                    self.hits["known"] += 1
                else:
                    wanted[key] = (candidate, example)
        waiting = list(wanted.values())
        if not waiting:
            return
        self._purse.require(rollouts=len(waiting) * self.repeats)
        if self._purse.knows_no_cost and len(waiting) > 1:
            # An agent may make any number of calls: before one has been seen at work, no limit can be held.
            await self._run_some([waiting.pop(0)], label)
            self._purse.require(rollouts=len(waiting) * self.repeats)
        await self._run_some(waiting, label)

    async def _run_some(self, jobs: Sequence[tuple[Candidate, Example]], label: str) -> None:
        plans: dict[RolloutMode, list[Plan]] = {}
        for candidate, example in jobs:
            resources_id = await self._resources_of(candidate)
            plans.setdefault(example.mode, []).extend(
                Plan(self._rollout_id(candidate, example, k), example.task, candidate.id, resources_id)
                for k in range(self.repeats)
            )
        outcomes = await self._run_all(plans, label)
        for candidate, example in jobs:
            ids = [self._rollout_id(candidate, example, k) for k in range(self.repeats)]
            self._known[candidate.id, example.id] = [self._take(outcomes[rollout_id]) for rollout_id in ids]
        self._context.report({"type": "spent", **self._purse.as_dict()})

    async def _run_all(self, plans: dict[RolloutMode, list[Plan]], label: str) -> dict[str, Outcome]:
        async def run(mode: RolloutMode, batch: list[Plan]) -> list[Outcome]:
            return await run_batch(
                self._context,
                batch,
                mode=mode,
                timeout_s=self._timeout_s,
                label=label,
                with_calls=False,
                keep_spans=True,
                samples_freely=False,
            )

        try:
            async with asyncio.timeout(self._purse.remaining_s()):
                done = await asyncio.gather(*(run(mode, batch) for mode, batch in plans.items()))
        except TimeoutError as error:
            raise BudgetSpent(self._purse.told()) from error
        return {outcome.rollout_id: outcome for outcomes in done for outcome in outcomes}

    def _take(self, outcome: Outcome) -> Scored:
        calls = [span for span in outcome.spans if is_model_call(span)]
        self._purse.spent.rollouts += 1
        for span in calls:
            self._purse.charge(*_usage(span)[:1], input_tokens=_usage(span)[1], output_tokens=_usage(span)[2])
        for judged in map(judge_call, outcome.spans):
            if judged is not None:
                self._purse.charge(judged.model, input_tokens=judged.input_tokens, output_tokens=judged.output_tokens)
        if not calls:
            self._purse.spent.calls += 1
        if outcome.reward is not None:
            self.lowest = outcome.reward if self.lowest is None else min(self.lowest, outcome.reward)
        outcome.spans.clear()
        return Scored(outcome.rollout_id, outcome.reward, outcome.error, len(calls))

    async def _resources_of(self, candidate: Candidate) -> str:
        known = self._resources_ids.get(candidate.id)
        if known is None:
            update = await self._context.store.add_resources({**self._base, **candidate.prompts})
            known = self._resources_ids[candidate.id] = update.resources_id
            self._snapshots.append({"candidate": candidate.id, "resources_id": known})
        return known

    def _rollout_id(self, candidate: Candidate, example: Example, repeat: int) -> str:
        return f"{self._context.run_id}.{candidate.id}.{example.id}.{repeat}"

    def rewards(self, candidate: Candidate, examples: Sequence[Example]) -> list[float | None]:
        """Rewards that are known, in the order of the examples; `None` where there is none."""
        found: list[float | None] = []
        for example in examples:
            given = [s.reward for s in self._known.get((candidate.id, example.id), []) if s.reward is not None]
            found.append(math.fsum(given) / len(given) if given else None)
        return found

    def scored(self, candidate: Candidate, example: Example) -> Scored:
        """The first rollout of a candidate on an example.

        Raises:
            KeyError: It was not run.
        """
        return self._known[candidate.id, example.id][0]

    def score(self, candidate: Candidate, examples: Sequence[Example]) -> Score:
        """Mean of what is known; all not-a-number when nothing is."""
        rewards = self.rewards(candidate, examples)
        present = [reward for reward in rewards if reward is not None]
        if not present:
            return Score(math.nan, math.nan, math.nan, 0, len(rewards), -math.inf, tuple(rewards))
        mean, low, high = mean_interval(present)
        missing = len(rewards) - len(present)
        floor = self.lowest if self.lowest is not None else 0.0
        rank = (math.fsum(present) + missing * floor) / len(rewards)
        return Score(mean, low, high, len(present), missing, rank, tuple(rewards))

    async def messages(self, scored: Scored) -> list[dict[str, Any]]:
        """The model calls of a rollout, as far as they were captured."""
        spans = list(await self._context.store.query_spans(scored.rollout_id))
        return [dict(entry) for entry in TraceToMessages().adapt(spans)]

    async def spans(self, scored: Scored) -> list[Span]:
        """Everything that was recorded of a rollout."""
        return list(await self._context.store.query_spans(scored.rollout_id))


def _usage(span: Span) -> tuple[str, int, int]:
    attributes = span.attributes
    model = attributes.get(semconv.REQUEST_MODEL) or attributes.get(semconv.RESPONSE_MODEL) or ""
    is_first = not attributes.get(semconv.CALL_CHOICE)
    prompt = attributes.get(semconv.INPUT_TOKENS) or 0
    return str(model), int(prompt) if is_first else 0, int(attributes.get(semconv.OUTPUT_TOKENS) or 0)
