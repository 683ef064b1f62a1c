"""GEPA (Agrawal et al. 2025) by its own library, on our runners, store, purse and lineage.

The library searches in a thread of its own; what it wants to know is run here, in the event loop. A run that is
continued takes the same way again: scores and answers come from the run's records.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.critique import Run, show_runs
from agentlightning.algorithm.prompt.optimizer import PromptOptimizer
from agentlightning.algorithm.prompt.scoring import Example
from agentlightning.algorithm.prompt.search import Search
from agentlightning.algorithm.prompt.signal import require_signal
from agentlightning.kit.errors import ConfigError, MissingExtraError

T = TypeVar("T")
R = TypeVar("R")

_UNLIMITED_CALLS = 500


class GEPA(PromptOptimizer[T]):
    """Reflective evolution of prompts over a Pareto front, by the package `gepa`.

    Args:
        max_metric_calls: Rollouts that GEPA may ask for, known ones included; by default what the budget pays for, at
            most 500 without one.
        reflection_minibatch_size: Training examples that a reflection sees.
        temperature: Sampling temperature of reflections.
        gepa_options: Further arguments of `gepa.optimize`, e.g. `{"use_merge": True}`.
        **options: See `PromptOptimizer`.

    Raises:
        ConfigError: A setting is out of range.
        MissingExtraError: The package is not installed; raised when the run begins.
    """

    name = "gepa"
    needs_proposer = True

    def __init__(
        self,
        *,
        max_metric_calls: int | None = None,
        reflection_minibatch_size: int = 3,
        temperature: float = 1.0,
        gepa_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if reflection_minibatch_size < 1 or (max_metric_calls is not None and max_metric_calls < 1):
            raise ConfigError("max_metric_calls and reflection_minibatch_size are at least 1.")
        self.max_metric_calls = max_metric_calls
        self.reflection_minibatch_size = reflection_minibatch_size
        self.temperature = temperature
        self.gepa_options = dict(gepa_options or {})

    async def search(self, search: Search) -> None:
        """See `PromptOptimizer.search`."""
        optimize = _library()
        if not self.flat_start:
            await require_signal(search, batch=search.minibatch(self.reflection_minibatch_size, 0), with_val=True)
        await search.race([search.seed], keep=1, round_number=0, halving=False)
        search.end_round(0, 1, [search.seed])
        room = search.purse.affordable_rollouts()
        # GEPA also counts what is known and costs nothing; the purse ends the run before this does.
        calls = self.max_metric_calls or (_UNLIMITED_CALLS if math.isinf(room) else 4 * int(room) + len(search.val))
        bridge = _Bridge(search, self.temperature)
        work = asyncio.to_thread(
            optimize,
            seed_candidate=search.seed.texts,
            trainset=search.train,
            valset=search.val,
            adapter=bridge,
            reflection_lm=bridge.reflect,
            reflection_minibatch_size=min(self.reflection_minibatch_size, len(search.train)),
            max_metric_calls=calls,
            stop_callbacks=bridge.is_over,
            logger=_Quiet(),
            seed=search.context.seed,
            raise_on_exception=True,
            **self.gepa_options,
        )
        try:
            await work
        finally:
            bridge.ended.set()
            search.end_round(bridge.evaluated, bridge.evaluated, [search.best])
        if bridge.failure is not None:
            raise bridge.failure
        search.stopped_because = (
            search.stopped_because or f"GEPA used its {calls} evaluations, those that were known already included."
        )


class _Bridge:
    """What GEPA calls from its thread; the work is done in the event loop."""

    propose_new_texts = None

    def __init__(self, search: Search, temperature: float) -> None:
        self._search = search
        self._temperature = temperature
        self._loop = asyncio.get_running_loop()
        self._parent: Candidate = search.seed
        self._reflection = ""
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self.evaluated = 0

    def evaluate(self, batch: list[Example], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        """Score a candidate; a missing reward counts as the lowest one seen."""
        from gepa.core.adapter import EvaluationBatch

        rewards, runs = self._here(lambda: self._evaluate(batch, candidate, capture_traces))
        return EvaluationBatch(outputs=list(rewards), scores=list(rewards), trajectories=runs)

    async def _evaluate(
        self, batch: Sequence[Example], texts: dict[str, str], with_runs: bool
    ) -> tuple[list[float], list[Run] | None]:
        search = self._search
        candidate = search.born.get(search.seed.changed(texts).id)
        if candidate is None:
            candidate = self._take(texts)
        if candidate is None:  # it may not run: the worst there is
            floor = search.scorer.lowest or 0.0
            return [floor] * len(batch), [Run(e.task, floor) for e in batch] if with_runs else None
        await search.score([candidate], batch, f"gepa {self.evaluated}")
        rewards = search.scorer.rewards(candidate, batch)
        if not search.scorer.cost(candidate, search.val) and candidate not in (search.best, search.seed):
            self.evaluated += 1
            await search.race([candidate], keep=1, round_number=self.evaluated, halving=False)
            search.end_round(self.evaluated, self.evaluated, [search.best])
        floor = search.scorer.lowest or 0.0
        runs: list[Run] | None = None
        if with_runs:
            self._parent = candidate
            scored = [search.scorer.scored(candidate, example) for example in batch]
            runs = [
                Run(e.task, s.reward, await search.scorer.messages(s), s.error)
                for e, s in zip(batch, scored, strict=True)
            ]
        return [floor if reward is None else reward for reward in rewards], runs

    def _take(self, texts: dict[str, str]) -> Candidate | None:
        changed = {n: t for n, t in texts.items() if t != self._parent.texts.get(n)}
        return self._search.propose(
            [self._parent],
            {**texts, **changed},
            round_number=self.evaluated + 1,
            origin="gepa",
            critique=self._reflection,
        )

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """What a reflection is shown of each rollout."""
        records = [
            {
                "Run": show_runs([run]).partition("\n")[2],
                "Feedback": "No reward." if run.reward is None else f"Reward {run.reward:g} (higher is better).",
            }
            for run in eval_batch.trajectories or []
        ]
        del candidate
        return dict.fromkeys(components_to_update, records)

    def reflect(self, prompt: str | list[dict[str, Any]]) -> str:
        """Ask the proposer."""

        async def ask() -> str:
            proposer = self._search.proposer
            assert proposer is not None
            self._search.purse.require(calls=1)
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return (await proposer.ask(messages, temperature=self._temperature)).text

        self._reflection = self._here(ask)
        return self._reflection

    def is_over(self, state: Any) -> bool:
        """Whether GEPA shall stop."""
        del state
        return (
            self.failure is not None
            or self.ended.is_set()
            or self._search.context.stopping.is_set()
            or self._search.purse.affordable_rollouts() < 1
        )

    def _here(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        if self.ended.is_set() or self.failure is not None:
            raise self.failure or RuntimeError("the run is over")
        try:
            return asyncio.run_coroutine_threadsafe(work(), self._loop).result()
        except BaseException as error:
            self.failure = error
            raise


class _Quiet:
    """GEPA's log goes nowhere: the lineage has it."""

    def log(self, message: str) -> None:
        """Ignore."""


def _library() -> Callable[..., Any]:
    try:
        from gepa.api import optimize
    except ImportError as error:
        raise MissingExtraError(
            "The optimizer 'gepa' needs the package gepa.", hint="pip install 'agentlightning[prompts]'"
        ) from error
    return optimize
