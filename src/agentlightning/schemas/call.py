"""A model call as the gateway captured it, and the samples a learner trains on.

msgspec structs: they cross process borders in thousands and carry long integer lists.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentlightning.schemas import semconv
from agentlightning.schemas.span import Span


class ModelCall(msgspec.Struct, kw_only=True):
    """One choice of one model call.

    `prompt_token_ids` (P ints), `response_token_ids` (R ints) and `response_logprobs` (R floats, natural log, under the
    sampling distribution at the temperature used) are `None` when the upstream did not report them; then
    `not_trainable_because` says why.
    """

    rollout_id: str
    attempt_id: str
    sequence_id: int
    span_id: str
    response_id: str = ""
    choice: int = 0
    model: str = ""
    model_version: str = ""
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []
    output: dict[str, Any] = {}
    prompt_token_ids: list[int] | None = None
    response_token_ids: list[int] | None = None
    response_logprobs: list[float] | None = None
    temperature: float | None = None
    finish_reason: str = ""
    not_trainable_because: str | None = None
    history: str | None = None
    """How its prompt relates to the calls before it, as the gateway saw it; see `semconv.CALL_HISTORY`."""
    start_time: float | None = None
    end_time: float | None = None

    @property
    def trainable(self) -> bool:
        """Whether weights can be trained on it."""
        return self.not_trainable_because is None


def is_model_call(span: Span) -> bool:
    """Whether the span is a captured model call."""
    return span.name == semconv.MODEL_CALL


class TrainSample(msgspec.Struct, kw_only=True):
    """One token sequence with what the learner needs. T tokens.

    `loss_mask[t] == 1` where the policy sampled token t (never for t = 0); `logprobs[t]` is its log-probability when it
    was sampled, 0.0 elsewhere.
    """

    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float]
    advantage: float
    rollout_id: str = ""
    group_id: str = ""
    reward: float | None = None
