"""Finds the conversation that an earlier answer belongs to: in memory, else in the record. Knows nothing of dialects.

The record may be on its way (in the spool, while the store is away) or masked; then memory is the only source that says
what the model has really seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from agentlightning.gateway.call import INSTRUCTIONS, CallScope, Capture, UpstreamCall
from agentlightning.gateway.errors import CallError, invalid
from agentlightning.gateway.spans import MASKED
from agentlightning.gateway.spooling import is_outage
from agentlightning.schemas import semconv
from agentlightning.schemas.span import Span


class SpanReader(Protocol):
    """The part of `LightningStore` that finding needs."""

    async def query_spans(self, rollout_id: str, attempt_id: Any = None, *, name: str | None = None) -> Sequence[Span]:
        """Spans of an attempt."""
        ...


class Conversations:
    """The latest conversations of Responses calls, least recently used first to go.

    Args:
        max_bytes: Bound of all together.
    """

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[CallScope, str], bytes] = OrderedDict()

    def remember(self, call: UpstreamCall, capture: Capture) -> None:
        """Keep what a later call may continue."""
        if call.scope is None or not capture.choices:
            return
        head = 1 if call.attributes.get(INSTRUCTIONS) else 0
        data = orjson.dumps([*call.body["messages"][head:], capture.choices[0].output])
        key = _key(call.scope, capture.response_id)
        self._bytes += len(data) - len(self._kept.pop(key, b""))
        self._kept[key] = data
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._kept.popitem(last=False)[1])

    def find(self, scope: CallScope, response_id: str) -> list[Any] | None:
        """The messages up to and with that answer, without instructions."""
        key = _key(scope, response_id)
        data = self._kept.get(key)
        if data is None:
            return None
        self._kept.move_to_end(key)
        return orjson.loads(data)


def _key(scope: CallScope, response_id: str) -> tuple[CallScope, str]:
    return CallScope(scope.rollout_id, scope.attempt_id), response_id


async def put_before(call: UpstreamCall, response_id: str, store: SpanReader, conversations: Conversations) -> None:
    """Put the conversation that ended with an answer before the call's own messages.

    As in OpenAI's API, the instructions of the earlier call do not carry over.

    Raises:
        CallError: 400; the call is on no rollout, no such answer is recorded on its attempt, or its record is masked.
            503; the store is away.
    """
    if call.scope is None:
        raise invalid(
            "'previous_response_id' works on rollout URLs only, where answers are recorded. "
            "Send the whole conversation as 'input' instead.",
            "previous_response_id",
            "unsupported_parameter",
        )
    earlier = conversations.find(call.scope, response_id)
    if earlier is None:
        earlier = await _recorded(call.scope, response_id, store)
    own = call.body["messages"]
    head = 1 if call.attributes.get(INSTRUCTIONS) else 0
    call.body["messages"] = [*own[:head], *earlier, *own[head:]]


async def _recorded(scope: CallScope, response_id: str, store: SpanReader) -> list[Any]:
    try:
        span = await _find(scope, response_id, store)
    except Exception as error:  # stores fail in their own ways; what is no outage goes on as it is
        if not is_outage(error):
            raise
        raise CallError(
            f"The conversation before response '{response_id}' cannot be read now: the store is away.",
            status=503,
            param="previous_response_id",
            reason="store_unavailable",
        ) from error
    if span is None:
        raise CallError(
            f"Previous response with id '{response_id}' not found on this attempt.",
            status=400,
            param="previous_response_id",
            reason="previous_response_not_found",
        )
    if MASKED in span.attributes:
        raise CallError(
            f"The conversation before response '{response_id}' is recorded masked, which is not what the model saw. "
            "Send the whole conversation as 'input' instead.",
            status=400,
            param="previous_response_id",
            reason="previous_response_masked",
        )
    earlier = orjson.loads(span.attributes[semconv.CALL_INPUT_MESSAGES])
    earlier = earlier[1:] if span.attributes.get(INSTRUCTIONS) else earlier
    return earlier + orjson.loads(span.attributes[semconv.CALL_OUTPUT_MESSAGES])


async def _find(scope: CallScope, response_id: str, store: SpanReader) -> Span | None:
    spans = await store.query_spans(scope.rollout_id, scope.attempt_id, name=semconv.MODEL_CALL)
    for span in spans:
        is_it = span.attributes.get(semconv.RESPONSE_ID) == response_id
        if is_it and span.status.status_code == "OK":
            return span
    return None
