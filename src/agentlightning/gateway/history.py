"""Finds the conversation of an earlier answer in the record. Knows nothing of dialects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from agentlightning.gateway.call import INSTRUCTIONS, CallScope, UpstreamCall
from agentlightning.gateway.errors import CallError, invalid
from agentlightning.schemas import semconv
from agentlightning.schemas.span import Span


class SpanReader(Protocol):
    """The part of `LightningStore` that finding needs."""

    async def query_spans(self, rollout_id: str, attempt_id: Any = None, *, name: str | None = None) -> Sequence[Span]:
        """Spans of an attempt."""
        ...


async def put_before(call: UpstreamCall, response_id: str, store: SpanReader) -> None:
    """Put the conversation that ended with an answer before the call's own messages.

    As in OpenAI's API, the instructions of the earlier call do not carry over.

    Raises:
        CallError: 400; the call is on no rollout, or no such answer is recorded on its attempt.
    """
    if call.scope is None:
        raise invalid(
            "'previous_response_id' works on rollout URLs only, where answers are recorded. "
            "Send the whole conversation as 'input' instead.",
            "previous_response_id",
            "unsupported_parameter",
        )
    span = await _find(call.scope, response_id, store)
    if span is None:
        raise CallError(
            f"Previous response with id '{response_id}' not found on this attempt.",
            status=400,
            param="previous_response_id",
            reason="previous_response_not_found",
        )
    earlier = orjson.loads(span.attributes[semconv.CALL_INPUT_MESSAGES])
    earlier = earlier[1:] if span.attributes.get(INSTRUCTIONS) else earlier
    earlier += orjson.loads(span.attributes[semconv.CALL_OUTPUT_MESSAGES])
    own = call.body["messages"]
    head = 1 if call.attributes.get(INSTRUCTIONS) else 0
    call.body["messages"] = [*own[:head], *earlier, *own[head:]]


async def _find(scope: CallScope, response_id: str, store: SpanReader) -> Span | None:
    spans = await store.query_spans(scope.rollout_id, scope.attempt_id, name=semconv.MODEL_CALL)
    for span in spans:
        is_it = span.attributes.get(semconv.RESPONSE_ID) == response_id
        if is_it and span.status.status_code == "OK":
            return span
    return None
