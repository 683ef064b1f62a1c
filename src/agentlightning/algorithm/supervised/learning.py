"""What SFT and DPO have in common: data as tokens, steps by tokens, held-out measures, checkpoints, going on.

Knows nothing of tensors: the learner gets token ids and masks.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from agentlightning.algorithm.base import Algorithm, Dataset, RunContext, RunStopped
from agentlightning.algorithm.judged.stream import Skips
from agentlightning.algorithm.supervised.encoding import Encoder
from agentlightning.algorithm.supervised.plan import Measure, Prepared, keep, kept, plan_steps, split
from agentlightning.config import SupervisedConfig
from agentlightning.kit.errors import ConfigError, SignalError
from agentlightning.kit.stats import paired_interval
from agentlightning.learner.client import EngineClient
from agentlightning.learner.protocol import FitConfig
from agentlightning.schemas.example import TokenExample, TokenPair

T = TypeVar("T", TokenExample, TokenPair)
C = TypeVar("C", bound=SupervisedConfig)

DATA_FILE = "examples.msgpack"
_TOLD_EVERY = 1000
_SCORED_AT_ONCE = 256
"""Examples per question to the model, so that it answers others, and Ctrl-C, in between."""


@dataclass
class LearningResult:
    """What fine-tuning did. `before` and `after` are measures on the held-out examples, empty where there are none."""

    measure: str
    """What `gain` is the gain of."""
    unit: str = "examples"
    """What is counted: `examples` or `pairs`."""
    steps: int = 0
    train: int = 0
    held_out: int = 0
    tokens: int = 0
    """Learned tokens of the training examples."""
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    """How many were used, and how many were left out by reason, with the first few of each."""
    before: dict[str, float] = field(default_factory=dict[str, float])
    after: dict[str, float] = field(default_factory=dict[str, float])
    gain: tuple[float, float, float] | None = None
    """Mean change over the held-out examples and its 95 % interval; greater is better."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class Supervised(Algorithm, Generic[T, C]):
    """Base of `SFT` and `DPO`.

    `train_dataset` holds rows as of a file; without it, the store is asked. `val_dataset` holds rows that are only
    measured on; without it, a share of the tasks is held out.
    """

    trains_weights = True
    needs_agent = False
    measure = ""
    unit = "examples"
    source_settings: tuple[str, ...] = ("run", "modes", "tokens")
    """Settings that have an effect on data from the store only."""
    config: C
    result: LearningResult | None = None
    """Of the last run."""

    # -- what differs

    @abstractmethod
    def from_rows(self, rows: Dataset[Any]) -> AsyncIterator[Any]:
        """Rows of a file, before they are tokens."""

    @abstractmethod
    async def from_store(self, context: RunContext, report: Skips) -> AsyncIterator[Any]:
        """What the store has, before it is tokens."""

    @abstractmethod
    async def encode(self, encoder: Encoder, source: AsyncIterator[Any], *, distinct: bool) -> list[tuple[str, T]]:
        """As tokens, each with the key of its task."""

    async def complete(self, context: RunContext, found: list[T]) -> list[T]:
        """What only the model as it is at first can add."""
        del context
        return found

    @abstractmethod
    async def measured(self, context: RunContext, held_out: Sequence[T]) -> Measure:
        """Held-out examples under the present weights."""

    @abstractmethod
    def kind(self) -> type[Prepared[T]]:
        """The type of what is kept."""

    def fit_config(self, rate: float) -> FitConfig:
        """Of one step."""
        config = self.config
        return FitConfig(
            lr=rate,
            microbatch_tokens=config.microbatch_tokens,
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
        )

    # -- the run

    async def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None:
        """Learn from the last checkpoint of this run on.

        Raises:
            ConfigError: No model, settings without effect, or a run that began with others.
            SignalError: There is nothing to learn from; the reasons are counted.
            BadInputError: Rows of another shape, or tokens of another model.
            RunStopped: The run was asked to stop; what it learned is kept.
        """
        context = self.get_context()
        engine = context.require_engine()
        data = await self._data(context, train_dataset, val_dataset)
        sizes = [_size(example) for example in data.train]
        config = self.config
        steps = plan_steps(sizes, epochs=config.epochs, batch_tokens=config.batch_tokens, seed=config.seed)
        self.result = LearningResult(
            self.measure,
            unit=self.unit,
            steps=len(steps),
            train=len(data.train),
            held_out=len(data.held_out),
            tokens=sum(_learned(example) for example in data.train),
            data=data.report,
        )
        context.report({"type": "plan", "steps": len(steps), "counts_steps": True})
        checkpoints = context.directory / "checkpoints"
        meta = await engine.load_checkpoint(checkpoints) or {}
        first = int(meta.get("step", 0))
        context.report({"type": "resumed" if first else "started", "step": first, "steps": len(steps)})
        context.report({"type": "phase", "name": "training"})
        await self._learn(context, data, steps, first, checkpoints)
        await engine.set_version(f"{context.run_id}@step{len(steps)}")
        before, after = data.before, await self._held_out(context, data.held_out, len(steps))
        if before is not None and after is not None:
            self.result.before, self.result.after = before.facts, after.facts
            self.result.gain = paired_interval(list(zip(before.values, after.values, strict=True)))

    async def _learn(
        self, context: RunContext, data: Prepared[T], steps: Sequence[Sequence[int]], first: int, checkpoints: Path
    ) -> None:
        engine, config = context.require_engine(), self.config
        saved = done = first
        try:
            for step in range(first, len(steps)):
                context.check()
                if config.eval_every and step > first and step % config.eval_every == 0:
                    await self._held_out(context, data.held_out, step)
                started = time.monotonic()
                batch = [data.train[place] for place in steps[step]]
                metrics = await engine.fit(batch, self.fit_config(config.learning_rate_at(step, len(steps))))
                done = step + 1
                seconds = time.monotonic() - started
                speed = sum(_size(example) for example in batch) / max(seconds, 1e-9)
                facts = {"step": done, "steps": len(steps), "tokens_per_s": speed, "train_s": seconds}
                context.report({"type": "step", **metrics, **facts})
                if done % config.checkpoint_every == 0 or done == len(steps):
                    saved = await self._save(engine, checkpoints, done, context)
        except RunStopped:
            if done > saved:
                await self._save(engine, checkpoints, done, context)
            raise

    async def _save(self, engine: EngineClient, checkpoints: Path, step: int, context: RunContext) -> int:
        await engine.save_checkpoint(checkpoints, meta={"step": step}, keep=self.config.keep_checkpoints)
        context.report({"type": "checkpoint", "step": step})
        return step

    async def _held_out(self, context: RunContext, examples: Sequence[T], step: int) -> Measure | None:
        if not examples:
            return None
        found = await self.measured(context, examples)
        context.report({"type": "held_out", "step": step, **found.facts})
        return found

    async def scores(self, context: RunContext, examples: Sequence[TokenExample]) -> list[float]:
        """Log-probability of each example under the present weights."""
        engine = context.require_engine()
        found: list[float] = []
        for start in range(0, len(examples), _SCORED_AT_ONCE):
            context.check()
            part = examples[start : start + _SCORED_AT_ONCE]
            found += await engine.score(part, microbatch_tokens=self.config.microbatch_tokens)
        return found

    # -- data

    async def _data(self, context: RunContext, train: Dataset[Any] | None, val: Dataset[Any] | None) -> Prepared[T]:
        settings = {
            **self.config.model_dump(mode="json"),
            "model": context.require_engine().info.model,
            "train_rows": _digest(train),
            "held_out_rows": _digest(val),
        }
        path = context.directory / DATA_FILE
        known = kept(path, self.kind(), settings)
        if known is None:
            context.report({"type": "phase", "name": "reading the data"})
            known = await self._prepared(context, train, val, settings)
            keep(path, known)
        context.report(
            {
                "type": "data",
                **known.report,
                "unit": self.unit,
                "train": len(known.train),
                "held_out": len(known.held_out),
            }
        )
        return known

    async def _prepared(
        self, context: RunContext, train: Dataset[Any] | None, val: Dataset[Any] | None, settings: dict[str, Any]
    ) -> Prepared[T]:
        engine, config, report = context.require_engine(), self.config, Skips()
        if val is not None and config.held_out and "held_out" in config.model_fields_set:
            raise ConfigError(
                "held_out is for data without held-out rows of their own; here it would do nothing.",
                hint="Leave out held_out, or the held-out data.",
            )
        longest = min(config.max_length or engine.info.max_context, engine.info.max_context)
        encoder = Encoder(engine, longest, report)
        if train is not None:
            self._check_rows_settings()
            source = self.from_rows(train)
        else:
            source = await self.from_store(context, report)
        found = await self.encode(encoder, _watched(context, source), distinct=train is None)
        if not found:
            raise SignalError(f"There is nothing to learn from: {_reasons(report)}.", hint=self._hint(report, longest))
        if val is not None:
            learn = [example for _, example in found]
            held = [
                example
                for _, example in await self.encode(
                    Encoder(engine, longest, Skips()), self.from_rows(val), distinct=False
                )
            ]
            _check_apart(learn, held)
        else:
            learn, held = split(found, config.held_out, config.seed)
        train_set, held_out = await self.complete(context, learn), await self.complete(context, held)
        before = await self._held_out(context, held_out, 0)
        return Prepared(settings=settings, train=train_set, held_out=held_out, report=report.as_dict(), before=before)

    def _check_rows_settings(self) -> None:
        plain = type(self.config)()
        idle = [name for name in self.source_settings if getattr(self.config, name) != getattr(plain, name)]
        if idle:
            raise ConfigError(f"With data of your own these have no effect: {', '.join(idle)}.")

    def _hint(self, report: Skips, longest: int) -> str:
        hints = {  # what comes last on the way to tokens is what is in the way
            "too_long": f"Examples have to fit into {longest} tokens; nothing is cut.",
            "no_response": "Each example needs something that the assistant says.",
            "same_completion": "The better and the worse answer have to differ.",
            "template_refuses": "The model's chat template does not take these messages: check roles and their order.",
            "low_reward": "Lower min_reward.",
            "equal_rewards": "Rollouts of the same task need different rewards.",
            "no_reward": "Give rewards: return a number from the agent, or use an evaluator.",
            "other_mode": "Rollouts of other modes are not learned from; see the setting modes.",
        }
        if not report.skipped:
            return "Run the agent first, or give data with --data."
        return next((hint for reason, hint in hints.items() if report.skipped[reason]), "")


async def _watched(context: RunContext, source: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same, but it can be stopped, and tells how far it is."""
    count = 0
    async for item in source:
        context.check()
        yield item
        count += 1
        if count % _TOLD_EVERY == 0:
            context.report({"type": "phase", "name": "reading the data", "detail": f"{count:,}"})


def _check_apart(train: Sequence[TokenExample | TokenPair], held_out: Sequence[TokenExample | TokenPair]) -> None:
    known = {tuple(_first(example).token_ids) for example in train}
    both = sum(tuple(_first(example).token_ids) in known for example in held_out)
    if both:
        raise ConfigError(
            f"{both} of {len(held_out)} held-out examples are in the training data, too.",
            hint="Take them out of one of the two: what is learned by heart says nothing.",
        )


def _first(example: TokenExample | TokenPair) -> TokenExample:
    return example if isinstance(example, TokenExample) else example.chosen


def _size(example: TokenExample | TokenPair) -> int:
    if isinstance(example, TokenPair):
        return len(example.chosen.token_ids) + len(example.rejected.token_ids)
    return len(example.token_ids)


def _learned(example: TokenExample | TokenPair) -> int:
    if isinstance(example, TokenPair):
        return example.chosen.learned + example.rejected.learned
    return example.learned


def _reasons(report: Skips) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in report.skipped.most_common()) or "no examples"


def _digest(rows: Dataset[Any] | None) -> str | None:
    if rows is None:
        return None
    digest = hashlib.sha256()
    for index in range(len(rows)):
        digest.update(json.dumps(rows[index], sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]
