"""The frame of every prompt optimizer: data in, search, honest comparison, result. Subclasses think of candidates."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Generic, TypeVar

from agentlightning.agent import TraceToMessages
from agentlightning.algorithm.asking import ClientProposer, Proposer, environment_proposer, resource_proposer
from agentlightning.algorithm.base import Algorithm, Dataset, RunContext
from agentlightning.algorithm.datasets import check_leaks, example_key, split_dataset
from agentlightning.algorithm.prompt.budget import Budget, BudgetSpent, PriceOf, Purse
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.journal import SNAPSHOTS, Journal
from agentlightning.algorithm.prompt.lineage import Lineage
from agentlightning.algorithm.prompt.proposer import AskedOnce
from agentlightning.algorithm.prompt.result import Comparison, OptimizationResult, prompts_of, write_result
from agentlightning.algorithm.prompt.scoring import Example, Scorer
from agentlightning.algorithm.prompt.search import Search
from agentlightning.kit.errors import BadInputError, ConfigError
from agentlightning.kit.stats import paired_interval
from agentlightning.schemas import PromptTemplate, ResourcesUpdate, RolloutMode

T = TypeVar("T")

_LEAST_SPLIT = 4


class PromptOptimizer(Algorithm, Generic[T]):
    """Finds better prompts for an agent.

    Args:
        budget: The most that the whole run may use, the comparison at the end included.
        proposer: Who writes new prompts: a `Proposer`, or a client of the shape of `openai.AsyncOpenAI`. By default the
            agent's own model server (the `LLM` among the resources), else `OPENAI_BASE_URL` and `OPENAI_API_KEY`.
        proposer_model: Its model, when it has several.
        val_fraction: Share of the training examples that is set aside when there is no `val_dataset`.
        val_batch_size: Validation examples in use; all when `None`.
        rollout_timeout_s: Longest time of one rollout.
        repeats: Rollouts of a candidate on an example; more than 1 where the agent or its judge is noisy.
        flat_start: Go on even when all rewards of the starting prompt are the same.
        price_of: Prices of models that the budget does not list.

    Raises:
        ConfigError: A setting is out of range.
    """

    reads_model_calls = True
    phase = "optimising prompts"
    name = "prompt"
    needs_proposer = False

    def __init__(
        self,
        *,
        budget: Budget | None = None,
        proposer: Any = None,
        proposer_model: str | None = None,
        val_fraction: float = 0.5,
        val_batch_size: int | None = None,
        rollout_timeout_s: float = 600.0,
        repeats: int = 1,
        flat_start: bool = False,
        price_of: PriceOf | None = None,
    ) -> None:
        _require_positive(val_batch_size=val_batch_size, rollout_timeout_s=rollout_timeout_s, repeats=repeats)
        if not 0 < val_fraction < 1:
            raise ConfigError("val_fraction lies between 0 and 1.")
        self.budget = budget or Budget()
        self.proposer = _as_proposer(proposer)
        self.proposer_model = proposer_model
        # Read now: during a run the variables may point to the run's own gateway.
        self._environment_proposer = environment_proposer(proposer_model)
        self.val_fraction = val_fraction
        self.val_batch_size = val_batch_size
        self.rollout_timeout_s = rollout_timeout_s
        self.repeats = repeats
        self.flat_start = flat_start
        self.price_of = price_of
        self.result: OptimizationResult | None = None
        self.why = ""
        self._best: Candidate | None = None

    # -- what users ask for

    def get_best_prompt(self) -> PromptTemplate:
        """The best prompt so far: the only one, or the first by name.

        Raises:
            ValueError: The optimizer has not run.
        """
        return next(iter(self.get_best_prompts().values()))

    def get_best_prompts(self) -> dict[str, PromptTemplate]:
        """The best prompts so far, by resource name.

        Raises:
            ValueError: The optimizer has not run.
        """
        if self._best is None:
            raise ValueError("There is no best prompt yet: the optimizer has not run.")
        return dict(self._best.prompts)

    def get_seed_prompt_template(self) -> tuple[str, PromptTemplate]:
        """Name and text of the first prompt among the initial resources.

        Raises:
            ValueError: There is none.
        """
        resources = self.get_initial_resources()
        if resources is None:
            raise ValueError("There are no initial resources: give them to Trainer(initial_resources=...).")
        for name, resource in resources.items():
            if isinstance(resource, PromptTemplate):
                return name, resource
        raise ValueError("There is no PromptTemplate among the initial resources.")

    def get_adapter(self) -> Any:
        """How spans become messages; `TraceToMessages` unless the trainer has another one."""
        return self._adapter or TraceToMessages()

    def optimize(self, data: Any, **options: Any) -> OptimizationResult:
        """Optimise in one call, without a `Trainer` of one's own.

        Args:
            data: A list of tasks; an export with `rollouts` and `resources`; or what `load_export` of
                `agentlightning.integrations.training_camp` returns.
            **options: `agent` (by default one chat call with the prompt), `prompt` (by default the data's), `reward`
                (by default the agent's, else the tasks' references, else a judge that is shown what people scored),
                `model` and `base_url` (by default `OPENAI_*`), `val_data`, `test_data`, and arguments of `Trainer`.

        Raises:
            ConfigError: There is no prompt, no model, or no proposer where one is needed.
            BadInputError: The data cannot be used.
            SignalError: There is nothing to optimise by.

        Example:
            ```python
            best = agl.APO(beam_width=4, rounds=3).optimize(data).best_prompt
            ```
        """
        from agentlightning.algorithm.prompt.direct import optimize

        return optimize(self, data, **options)

    # -- the run

    async def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, train_dataset: Dataset[T] | None = None, val_dataset: Dataset[T] | None = None
    ) -> None:
        """Search, then compare the best prompt with the starting one.

        Repeated under the same run id after an interruption, it takes the same way again, but what was answered
        before is not asked again.

        Raises:
            ConfigError: There is no prompt, no proposer where one is needed, or no price for a budget in money.
            BadInputError: Too few examples, or examples that are in two parts.
            SignalError: There is nothing to optimise by.
            UpstreamError: The proposer does not answer.
            RunStopped: Somebody asked the run to stop; the best so far is in the run's folder.
        """
        search, tests = await self._open(train_dataset, val_dataset)
        search.purse.keep_back(2 * sum(len(examples) for examples in tests.values()) * self.repeats)
        try:
            await self.search(search)
        except BudgetSpent as spent:
            search.stopped_because = spent.message
        finally:
            self._best = search.best
        self.result = await self._finish(search, tests)

    async def search(self, search: Search) -> None:
        """Find better candidates until done.

        Raises:
            BudgetSpent: The budget ends first.
        """
        # A hook, as `Algorithm.run` is: APO, GEPA, FewShot, EditSearch and Auto are what users make.
        raise NotImplementedError(f"{type(self).__name__} does not implement search()")

    def settings(self) -> dict[str, Any]:
        """What goes into the record of the run."""
        plain = (int, float, str, bool, type(None))
        shown = {n: v for n, v in vars(self).items() if not n.startswith("_") and isinstance(v, plain)}
        return {**shown, "budget": {k: v for k, v in asdict(self.budget).items() if v is not None}}

    async def _open(self, train: Any, val: Any) -> tuple[Search, dict[str, list[Example]]]:
        context = self.get_context()
        base = await _base_resources(context)
        seed = Candidate.of_resources(base)
        parts = self._split(train, val, context)
        lineage = Lineage(context.directory)
        purse = Purse(self.budget, price_of=self.price_of, spent_s=lineage.spent_s)
        snapshots = Journal(context.directory / SNAPSHOTS)
        scorer = Scorer(context, base, purse, snapshots, timeout_s=self.rollout_timeout_s, repeats=self.repeats)
        val_examples = _examples(parts["val"], "val")
        random.Random(f"{context.seed}/val").shuffle(val_examples)
        search = Search(
            context=context,
            seed=seed,
            train=_examples(parts["train"], "train"),
            val=val_examples[: self.val_batch_size],
            scorer=scorer,
            purse=purse,
            lineage=lineage,
            proposer=self._asked_once(context, purse),
            rng=random.Random(f"{context.seed}/search"),
            on_best=self._note_best,
        )
        lineage.began(optimizer=self.name, why=self.why, settings=self.settings(), seed=context.seed, **search.facts())
        self._note_best(seed)
        return search, {name: _examples(data, "test") for name, data in parts.items() if name not in ("train", "val")}

    def _asked_once(self, context: RunContext, purse: Purse) -> AskedOnce | None:
        resources = self.get_initial_resources()
        proposer = self.proposer or resource_proposer(resources, self.proposer_model) or self._environment_proposer
        if proposer is None and self.needs_proposer:
            raise ConfigError(
                f"{self.name} needs a model that writes new prompts, and there is none.",
                hint="Give proposer=AsyncOpenAI(...) (--proposer MODEL --base-url URL), set OPENAI_API_KEY, or take "
                "the optimizer 'edit', which needs none.",
            )
        if proposer is None:
            return None
        return AskedOnce(proposer, Journal(context.directory / "proposals.jsonl"), purse)

    def _split(self, train: Any, val: Any, context: RunContext) -> dict[str, list[Any]]:
        given = _rows(train)
        if not given:
            raise BadInputError(
                "There are no training examples to optimise by.", hint="Give train_dataset (--data FILE)."
            )
        if val is None:
            different = len({example_key(example) for example in given})
            if different < _LEAST_SPLIT:
                raise BadInputError(
                    f"{different} different example(s) are too few: half of them is needed to tell whether a new "
                    "prompt is better on others.",
                    hint=f"Give at least {_LEAST_SPLIT}, better 30, or a val_dataset of your own.",
                )
            shares = {"train": 1 - self.val_fraction, "val": self.val_fraction}
            parts = split_dataset(given, shares, seed=context.seed)
        else:
            parts = {"train": given, "val": _rows(val)}
            if len({example_key(example) for example in parts["val"]}) < 2:
                raise BadInputError(
                    f"A validation set of {len(parts['val'])} example(s) cannot tell prompts apart.",
                    hint="Give at least 2, better 20 or more.",
                )
        tests = {f"test {n}" if n in parts else n: _rows(data) for n, data in context.tests.items() if len(data)}
        check_leaks({**parts, **tests})
        return {**parts, **tests}

    def _note_best(self, candidate: Candidate) -> None:
        if candidate == self._best:
            return
        self._best = candidate
        content = {"status": "running", "best": {"id": candidate.id, "prompts": prompts_of(candidate)}}
        write_result(self.get_context().directory, content)

    async def _finish(self, search: Search, tests: dict[str, list[Example]]) -> OptimizationResult:
        search.purse.keep_back(0)
        comparisons: list[Comparison] = []
        for name, examples in tests.items():
            try:
                await search.score([search.seed, search.best], examples, f"held-out {name}")
            except BudgetSpent as spent:
                search.stopped_because = f"{spent.message} It does not pay for the comparison on {name!r}."
                continue
            for candidate in {search.seed, search.best}:
                score = search.scorer.score(candidate, examples)
                search.lineage.scored(candidate, name, score, round_number=search.rounds_done)
            comparisons.append(_compare(search, examples, name, held_out=True))
        comparisons.append(_compare(search, search.val, "val", held_out=False))
        result = OptimizationResult(
            run_id=search.context.run_id,
            directory=search.context.directory,
            optimizer=self.name,
            best=search.best,
            start=search.seed,
            comparisons=[c for c in comparisons if c.n],
            rounds=search.rounds_done,
            candidates=len(search.born),
            dropped=dict(search.drops),
            stopped_because=search.stopped_because,
            why=self.why,
            spent=search.purse.as_dict(),
        )
        write_result(search.context.directory, {"status": "done", **result.as_dict()})
        search.lineage.ended(
            best=result.best.id,
            comparisons=[c.as_dict() for c in result.comparisons],
            stopped_because=result.stopped_because,
        )
        for comparison in result.comparisons:
            search.context.report({"type": "comparison", **comparison.as_dict()})
        return result


def _compare(search: Search, examples: Sequence[Example], name: str, *, held_out: bool) -> Comparison:
    before = search.scorer.rewards(search.seed, examples)
    after = search.scorer.rewards(search.best, examples)
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    n = len(pairs)
    if not n:
        return Comparison(name, held_out, 0, math.nan, math.nan, (math.nan, math.nan, math.nan))
    means = [math.fsum(pair[side] for pair in pairs) / n for side in (0, 1)]
    gain = (0.0, 0.0, 0.0) if search.best == search.seed else paired_interval(pairs)
    return Comparison(name, held_out, n, means[0], means[1], gain)


async def _base_resources(context: RunContext) -> dict[str, Any]:
    update: ResourcesUpdate | None = None
    if context.resources_id is not None:
        update = await context.store.get_resources_by_id(context.resources_id)
    return dict(update.resources) if update else {}


def _rows(dataset: Any) -> list[Any]:
    return [] if dataset is None else [dataset[index] for index in range(len(dataset))]


def _examples(rows: Sequence[Any], mode: RolloutMode) -> list[Example]:
    return [Example.of(row, mode) for row in rows]


def _as_proposer(proposer: Any) -> Proposer | None:
    if proposer is None or hasattr(proposer, "ask"):
        return proposer
    if hasattr(proposer, "chat"):
        return ClientProposer(proposer)
    raise ConfigError(
        f"{type(proposer).__name__} is no proposer.", hint="Give an openai.AsyncOpenAI client, or HttpProposer(...)."
    )


def _require_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is positive, not {value}.")
