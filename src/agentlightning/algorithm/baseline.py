"""Baseline: run the data through the agent and report, without learning. The smoke test of an agent."""

from __future__ import annotations

from typing import Any, Literal

from agentlightning.algorithm.base import Algorithm, Dataset
from agentlightning.algorithm.evaluation import evaluate
from agentlightning.kit.errors import ConfigError


class Baseline(Algorithm):
    """Runs each task once and reports mean rewards.

    Args:
        n_epochs: Passes over the data.
        train_split: Accepted for 0.3 compatibility; data sets are used as they are given.
        polling_interval: Accepted for 0.3 compatibility; completion is event-driven.
        max_queue_length: Accepted for 0.3 compatibility; the queue is durable and unbounded.
        span_verbosity: How much of each span goes into the report: `none`, `keys` or `key_values`.

    Raises:
        ValueError: `train_split` lies outside (0, 1).
    """

    def __init__(
        self,
        *,
        n_epochs: int = 1,
        train_split: float = 0.5,
        polling_interval: float = 5.0,
        max_queue_length: int = 4,
        span_verbosity: Literal["keys", "key_values", "none"] = "keys",
    ) -> None:
        if not 0.0 < train_split < 1.0:
            raise ValueError("train_split must be between 0 and 1.")
        self.n_epochs = n_epochs
        self.train_split = train_split
        self.polling_interval = polling_interval
        self.max_queue_length = max_queue_length
        self.span_verbosity: Literal["keys", "key_values", "none"] = span_verbosity

    async def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None:
        """Evaluate the data sets that are given.

        Raises:
            ConfigError: There is no data.
            SignalError: No rollout got a reward.
        """
        context = self.get_context()
        named = {
            name: data
            for name, data in (("train", train_dataset), ("val", val_dataset))
            if data is not None and len(data)
        }
        if not named:
            raise ConfigError("Baseline has no data to run.", hint="Give train_dataset or val_dataset.")
        for epoch in range(self.n_epochs):
            for name, data in named.items():
                result = await evaluate(context, data, label=f"baseline-{name}-{epoch}")
                context.report({"type": "eval", "name": name, "step": epoch, **result.as_dict()})
                await self._report_spans(result.rollout_ids)

    async def _report_spans(self, rollout_ids: list[str]) -> None:
        if self.span_verbosity == "none":
            return
        context = self.get_context()
        for rollout_id, spans in (await context.store.query_many_spans(rollout_ids)).items():
            shown = [
                {
                    "name": span.name,
                    "attributes": span.attributes if self.span_verbosity == "key_values" else list(span.attributes),
                }
                for span in spans
            ]
            context.report({"type": "trace", "rollout_id": rollout_id, "spans": shown})
