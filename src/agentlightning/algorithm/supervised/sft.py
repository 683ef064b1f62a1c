"""SFT: the model learns to say what demonstrations or the best rollouts say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from agentlightning.algorithm.base import Dataset, RunContext
from agentlightning.algorithm.judged.stream import Skips
from agentlightning.algorithm.supervised.encoding import Encoder, check_tokenizer
from agentlightning.algorithm.supervised.learning import Supervised
from agentlightning.algorithm.supervised.plan import Measure, Prepared
from agentlightning.algorithm.supervised.rows import Demonstration, as_demonstration
from agentlightning.algorithm.supervised.traces import (
    LeaveOut,
    Rated,
    best_of,
    demonstrations,
    first_call,
    rated_rollouts,
)
from agentlightning.config import SFTConfig
from agentlightning.kit.errors import ConfigError
from agentlightning.schemas.example import TokenExample
from agentlightning.store import LightningStore

_CHECKED = 8


class SFT(Supervised[TokenExample, SFTConfig]):
    """Supervised fine-tuning: mean negative log-likelihood of what the assistant says; all else is only read.

    Args:
        config: An `SFTConfig` or its fields as a mapping; keyword arguments override single fields.
        leave_out: Asked about each rollout of the store: why it is not learned from (a word to count by), or `None`.

    Raises:
        ConfigError: A key is unknown or a value is wrong.

    Example:
        ```python
        trainer = agl.Trainer(algorithm=agl.SFT(top_k=1, min_reward=1.0), model="path/to/model")
        trainer.fit()  # from the best rollouts of the store
        ```
    """

    measure = "log-likelihood of a token"
    source_settings = ("run", "modes", "tokens", "min_reward", "top_k", "feedback")

    def __init__(
        self,
        config: SFTConfig | dict[str, Any] | None = None,
        *,
        leave_out: LeaveOut | None = None,
        **overrides: Any,
    ) -> None:
        base = config.model_dump(exclude_unset=True) if isinstance(config, SFTConfig) else dict(config or {})
        self.config = SFTConfig(**{**base, **overrides})
        self._leave_out = leave_out

    async def from_rows(self, rows: Dataset[Any]) -> AsyncIterator[Demonstration]:
        """Rows of a file."""
        for index in range(len(rows)):
            yield as_demonstration(rows[index], index + 1, self.config.plain_text)

    async def from_store(self, context: RunContext, report: Skips) -> AsyncIterator[Demonstration]:
        """The best rollouts of the store.

        Raises:
            ConfigError: Nothing says which ones are good.
            BadInputError: Their tokens are another model's.
        """
        config = self.config
        if config.min_reward is None and config.top_k is None:
            raise ConfigError(
                "Nothing says which rollouts are worth learning from.",
                hint="Give min_reward= (what a rollout has to reach), top_k= (the best of each task), or data.",
            )
        rated = await rated_rollouts(
            context.store,
            config,
            report,
            without=f"{context.run_id}.",
            leave_out=self._leave_out,
            feedback=config.feedback,
        )
        chosen = best_of(rated, config, report)
        if config.tokens != "messages":
            await check_tokenizer(context.require_engine(), await some_calls(context.store, chosen))
        return demonstrations(context.store, chosen, config.tokens, report)

    async def encode(
        self, encoder: Encoder, source: AsyncIterator[Any], *, distinct: bool
    ) -> list[tuple[str, TokenExample]]:
        """As tokens."""
        return await encoder.examples(source, distinct=distinct)

    async def measured(self, context: RunContext, held_out: Sequence[TokenExample]) -> Measure:
        """Loss in nats a token."""
        scores = await self.scores(context, held_out)
        tokens = sum(example.learned for example in held_out)
        return Measure(
            facts={"loss": -sum(scores) / tokens, "n": len(held_out), "tokens": tokens},
            values=[value / example.learned for value, example in zip(scores, held_out, strict=True)],
        )

    def kind(self) -> type[Prepared[TokenExample]]:
        """The type of what is kept."""
        return Prepared[TokenExample]


async def some_calls(store: LightningStore, rated: Sequence[Rated]) -> list[Any]:
    """A few captured calls, as messages and as tokens."""
    few = [one.rollout_id for one in rated[:_CHECKED]]
    spans = await store.query_many_spans(few) if few else {}
    found = (first_call(spans.get(rollout_id, [])) for rollout_id in few)
    return [call for call in found if call is not None]
