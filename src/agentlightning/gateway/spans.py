"""Turns a call and what was captured of it into spans, one per choice. Knows nothing of storage."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from agentlightning.gateway.call import Capture, CapturedChoice, UpstreamCall
from agentlightning.gateway.capture import CALL_FAILED, IDS_MASKED, NO_CHOICES
from agentlightning.gateway.continuity import Continuity, History
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.masking import Masker, Place
from agentlightning.gateway.masking_finders import Kind
from agentlightning.kit.ids import new_span_id
from agentlightning.schemas import semconv
from agentlightning.schemas.building import construct
from agentlightning.schemas.span import OtelResource, Span, SpanContext, TraceStatus

OPERATION = "gen_ai.operation.name"
"""`chat` or `text_completion`, as OpenTelemetry names them."""
REQUEST_PARAMETERS = "agentlightning.call.request_parameters"
"""JSON of the sampling parameters sent to the upstream."""
REPLACED_PARAMETERS = "agentlightning.call.replaced_parameters"
"""JSON of the agent's own values that the sampling policy overrode; null where it gave none."""
STREAMED = "agentlightning.call.streamed"
LATENCY_MS = "agentlightning.call.latency_ms"
ERROR_REASON = "agentlightning.call.error_reason"
ERROR_STATUS = "agentlightning.call.error_status"
CACHED = "agentlightning.call.from_cache"
"""The response cache answered; ids and logprobs are those of the first time."""
API = "agentlightning.call.api"
"""The API the agent spoke: `chat.completions`, `completions`, `messages` or `responses`."""
MASKED = "agentlightning.call.masked"
"""Kinds of what was masked in this record, where anything was."""
UPSTREAM_RESPONSE_ID = "agentlightning.call.upstream_response_id"
"""The model server's own id, where the agent was given another."""

TARGET = "agentlightning.call.target"
"""Name of the target that answered, or failed last."""
FAILED_TARGETS = "agentlightning.call.failed_targets"
"""Names of those that were asked before it and failed, in order."""
KEY = "agentlightning.call.key"
"""Name of the gateway's key that the call came with; never the key."""

# Shared by all spans: nobody changes them.
_OK = TraceStatus(status_code="OK")
_NO_RESOURCE = OtelResource()

_CONTENT = frozenset({"model", "messages", "prompt", "tools", "stream", "stream_options"})


class SpanMaker:
    """Makes the spans of calls.

    Args:
        masker: Takes out of them what shall not be kept.
    """

    def __init__(self, masker: Masker | None = None) -> None:
        self._masker = masker
        self.continuity = Continuity()
        self.histories: Counter[History] = Counter()
        """Answered calls with token ids, by how they relate to those before them."""

    def of_answer(self, call: UpstreamCall, capture: Capture) -> list[Span]:
        """The spans of an answered call: one for each choice. Choices that lose their token ids are labelled."""
        found: set[Kind] = set()
        shared = _request_attributes(call, self._mask("prompts", found))
        shared[semconv.RESPONSE_MODEL] = capture.model
        shared[semconv.RESPONSE_ID] = capture.response_id
        shared[semconv.MODEL_VERSION] = capture.model_version
        if capture.prompt_tokens is not None:
            shared[semconv.INPUT_TOKENS] = capture.prompt_tokens
        if capture.from_cache:
            shared[CACHED] = True
        if call.not_trainable_because is not None:
            shared[semconv.NOT_TRAINABLE_BECAUSE] = call.not_trainable_because
        ended_at = time.time()
        shared[LATENCY_MS] = (ended_at - call.started_at) * 1000
        if not capture.choices:  # some servers answer so; the call was made, so there is a record of it
            shared[semconv.NOT_TRAINABLE_BECAUSE] = NO_CHOICES
            return [_span(call, shared | _masked(found), ended_at, _OK)]
        only = capture.completion_tokens if len(capture.choices) == 1 else None
        history = self.continuity.check(call, capture)
        if history is not None:
            self.histories[history] += 1
        spans: list[Span] = []
        for choice in capture.choices:
            own = set(found)
            attributes = _choice_attributes(choice, only, self._mask("completions", own))
            if own:
                attributes |= self._without_ids(choice, attributes) | _masked(own)
            if history is not None and not spans:
                attributes[semconv.CALL_HISTORY] = history
            spans.append(_span(call, shared | attributes, ended_at, _OK))
        return spans

    def of_failure(self, call: UpstreamCall, error: CallError, partial: Capture | None) -> list[Span]:
        """The span of a failed call, with what had been answered until then."""
        found: set[Kind] = set()
        message = self._mask("errors", found)(error.message)
        attributes = _request_attributes(call, self._mask("prompts", found)) | {
            semconv.NOT_TRAINABLE_BECAUSE: CALL_FAILED,
            semconv.EXCEPTION_TYPE: type(error.__cause__ or error).__name__,
            semconv.EXCEPTION_MESSAGE: message,
            ERROR_REASON: error.reason or error.kind,
            ERROR_STATUS: error.status,
        }
        if partial is not None and partial.choices:
            outputs = [choice.output for choice in partial.choices]
            attributes[semconv.CALL_OUTPUT_MESSAGES] = _json(self._mask("completions", found)(outputs))
            attributes[semconv.RESPONSE_ID] = partial.response_id
            attributes[semconv.RESPONSE_MODEL] = partial.model
        ended_at = time.time()
        attributes[LATENCY_MS] = (ended_at - call.started_at) * 1000
        status = TraceStatus(status_code="ERROR", description=message)
        return [_span(call, attributes | _masked(found), ended_at, status)]

    def _mask(self, place: Place, found: set[Kind]) -> Callable[[Any], Any]:
        masker = self._masker
        if masker is None or place not in masker.policy.places:
            return _as_it_is
        return lambda value: masker.value(value, found)

    def _without_ids(self, choice: CapturedChoice, attributes: dict[str, Any]) -> dict[str, Any]:
        """Take the token ids out, which say what the text says; returns what to add."""
        if self._masker is None or self._masker.policy.token_ids == "keep":
            return {}
        had_ids = False
        for name in (semconv.PROMPT_TOKEN_IDS, semconv.RESPONSE_TOKEN_IDS, semconv.RESPONSE_LOGPROBS):
            had_ids |= attributes.pop(name, None) is not None
        if had_ids:
            choice.not_trainable_because = choice.not_trainable_because or IDS_MASKED
        reason = choice.not_trainable_because
        return {} if reason is None else {semconv.NOT_TRAINABLE_BECAUSE: reason}


def _as_it_is(value: Any) -> Any:
    return value


def _masked(found: set[Kind]) -> dict[str, Any]:
    return {MASKED: sorted(found)} if found else {}


def _request_attributes(call: UpstreamCall, mask: Callable[[Any], Any]) -> dict[str, Any]:
    body = call.body
    attributes: dict[str, Any] = {
        OPERATION: "chat" if call.kind == "chat" else "text_completion",
        semconv.REQUEST_MODEL: call.model,
        semconv.CALL_INPUT_MESSAGES: _json(mask(_input_messages(body))),
        REQUEST_PARAMETERS: _json(mask({k: v for k, v in body.items() if k not in _CONTENT})),
        STREAMED: call.is_streamed,
        **call.attributes,
    }
    if body.get("tools"):
        attributes[semconv.CALL_TOOLS] = _json(mask(body["tools"]))
    if isinstance(body.get("temperature"), int | float):
        attributes[semconv.CALL_TEMPERATURE] = float(body["temperature"])
    if call.replaced:
        attributes[REPLACED_PARAMETERS] = _json(mask(call.replaced))
    return attributes


def _input_messages(body: dict[str, Any]) -> Any:
    messages = body.get("messages")
    return [{"role": "user", "content": body.get("prompt")}] if messages is None else messages


def _choice_attributes(
    choice: CapturedChoice, completion_tokens: int | None, mask: Callable[[Any], Any]
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        semconv.CALL_CHOICE: choice.index,
        semconv.CALL_OUTPUT_MESSAGES: _json([mask(choice.output)]),
        semconv.FINISH_REASONS: [choice.finish_reason],
    }
    if choice.prompt_token_ids is not None:
        attributes[semconv.PROMPT_TOKEN_IDS] = choice.prompt_token_ids
    if choice.token_ids is not None:
        attributes[semconv.RESPONSE_TOKEN_IDS] = choice.token_ids
        attributes[semconv.OUTPUT_TOKENS] = len(choice.token_ids)
    elif completion_tokens is not None:
        attributes[semconv.OUTPUT_TOKENS] = completion_tokens
    if choice.logprobs is not None:
        attributes[semconv.RESPONSE_LOGPROBS] = choice.logprobs
    if choice.not_trainable_because is not None:
        attributes[semconv.NOT_TRAINABLE_BECAUSE] = choice.not_trainable_because
    return attributes


def _span(call: UpstreamCall, attributes: dict[str, Any], ended_at: float, status: TraceStatus) -> Span:
    scope = call.scope
    assert scope is not None, "only calls that belong to a rollout are recorded"
    # One trace per attempt, the same whoever computes it.
    trace_id = hashlib.blake2b(f"{scope.rollout_id}/{scope.attempt_id}".encode(), digest_size=16).hexdigest()
    span_id = new_span_id()
    # As `Span.from_attributes`, without the checks: everything here is ours, and this runs for every call.
    return construct(
        Span,
        {
            "rollout_id": scope.rollout_id,
            "attempt_id": scope.attempt_id,
            "sequence_id": 0,  # the store numbers it
            "trace_id": trace_id,
            "span_id": span_id,
            "parent_id": None,
            "name": semconv.MODEL_CALL,
            "status": status,
            "attributes": attributes,
            "events": [],
            "links": [],
            "start_time": call.started_at,
            "end_time": ended_at,
            "context": construct(
                SpanContext, {"trace_id": trace_id, "span_id": span_id, "is_remote": False, "trace_state": {}}
            ),
            "parent": None,
            "resource": _NO_RESOURCE,
        },
    )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
