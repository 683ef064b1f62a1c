"""DPO: the model learns to prefer better answers to worse ones, without leaving what it was at first."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from agentlightning.algorithm.base import Dataset, RunContext
from agentlightning.algorithm.judged.stream import Skips
from agentlightning.algorithm.supervised.encoding import Encoder, check_tokenizer
from agentlightning.algorithm.supervised.learning import Supervised
from agentlightning.algorithm.supervised.plan import Measure, Prepared
from agentlightning.algorithm.supervised.rows import Preferred, as_preferred
from agentlightning.algorithm.supervised.sft import some_calls
from agentlightning.algorithm.supervised.traces import contrasted, contrasts, preferred, rated_rollouts
from agentlightning.config import DPOConfig
from agentlightning.learner.protocol import FitConfig
from agentlightning.schemas.example import TokenPair


class DPO(Supervised[TokenPair, DPOConfig]):
    """Direct Preference Optimization (Rafailov et al. 2023, equation 7).

    The reference is the model as it is loaded; its log-probabilities are computed once, before the first step.

    Args:
        config: A `DPOConfig` or its fields as a mapping; keyword arguments override single fields.

    Raises:
        ConfigError: A key is unknown or a value is wrong.

    Example:
        ```python
        trainer = agl.Trainer(algorithm=agl.DPO(beta=0.1), model="path/to/model")
        trainer.fit()  # from the preferences of the store
        ```
    """

    measure = "implied reward margin"
    unit = "pairs"
    source_settings = ("run", "modes", "tokens", "pairs", "same", "sources", "min_margin", "pairs_per_task")

    def __init__(self, config: DPOConfig | dict[str, Any] | None = None, **overrides: Any) -> None:
        base = config.model_dump(exclude_unset=True) if isinstance(config, DPOConfig) else dict(config or {})
        self.config = DPOConfig(**{**base, **overrides})

    async def from_rows(self, rows: Dataset[Any]) -> AsyncIterator[Preferred]:
        """Rows of a file."""
        for index in range(len(rows)):
            yield as_preferred(rows[index], index + 1, self.config.plain_text)

    async def from_store(self, context: RunContext, report: Skips) -> AsyncIterator[Preferred]:
        """The preferences of the store, or its rollouts of the same task with different rewards.

        Raises:
            BadInputError: Their tokens are another model's.
        """
        config = self.config
        if config.pairs == "preferences":
            return preferred(context.store, config, report)
        rated = await rated_rollouts(context.store, config, report, without=f"{context.run_id}.")
        pairs = contrasts(rated, config, report)
        if config.tokens != "messages":
            chosen = [better for better, _ in pairs]
            await check_tokenizer(context.require_engine(), await some_calls(context.store, chosen))
        return contrasted(context.store, pairs, config.tokens, report)

    async def encode(
        self, encoder: Encoder, source: AsyncIterator[Any], *, distinct: bool
    ) -> list[tuple[str, TokenPair]]:
        """As tokens."""
        del distinct
        return await encoder.pairs(source)

    async def complete(self, context: RunContext, found: list[TokenPair]) -> list[TokenPair]:
        """With the reference's log-probabilities."""
        scores = await self._sides(context, found)
        return [
            msgspec.structs.replace(pair, reference_chosen=chosen, reference_rejected=rejected)
            for pair, (chosen, rejected) in zip(found, scores, strict=True)
        ]

    async def measured(self, context: RunContext, held_out: Sequence[TokenPair]) -> Measure:
        """Loss, mean margin, the share of positive margins, and how often the better answer is the likelier one."""
        beta = self.config.beta
        scores = await self._sides(context, held_out)
        margins = [
            beta * ((chosen - pair.reference_chosen) - (rejected - pair.reference_rejected))
            for pair, (chosen, rejected) in zip(held_out, scores, strict=True)
        ]
        n = len(held_out)
        facts = {
            "loss": sum(_softplus(-margin) for margin in margins) / n,
            "margin": sum(margins) / n,
            "accuracy": sum(margin > 0 for margin in margins) / n,
            "preferred": sum(chosen > rejected for chosen, rejected in scores) / n,
            "logprob_chosen": sum(chosen for chosen, _ in scores) / n,
            "logprob_rejected": sum(rejected for _, rejected in scores) / n,
            "n": n,
        }
        return Measure(facts=facts, values=margins)

    def fit_config(self, rate: float) -> FitConfig:
        """Of one step."""
        return msgspec.structs.replace(
            super().fit_config(rate), beta=self.config.beta, sft_weight=self.config.sft_weight
        )

    def kind(self) -> type[Prepared[TokenPair]]:
        """The type of what is kept."""
        return Prepared[TokenPair]

    async def _sides(self, context: RunContext, pairs: Sequence[TokenPair]) -> list[tuple[float, float]]:
        scores = iter(await self.scores(context, [side for pair in pairs for side in (pair.chosen, pair.rejected)]))
        return [(next(scores), next(scores)) for _ in pairs]


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
