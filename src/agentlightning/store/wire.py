"""Verbs and their results as JSON or msgpack, in both directions. Knows no HTTP library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from agentlightning.kit import errors
from agentlightning.kit.errors import AgentLightningError, BadInputError
from agentlightning.schemas import (
    Attempt,
    AttemptedRollout,
    Feedback,
    Lineage,
    LineageSession,
    LineageStep,
    PaginatedResult,
    Preference,
    ResourcesUpdate,
    Rollout,
    TrainingEvent,
    Worker,
)
from agentlightning.store import verbs
from agentlightning.store.records import SpanRecord, bad_model, plain

T = TypeVar("T")

JSON = "application/json"
MSGPACK = "application/msgpack"

BATCH_PATH = "/v1/agl/batch"
DEQUEUE_PATH = "/v1/agl/queues/rollouts/dequeue"
WAIT_PATH = "/v1/agl/waits/rollouts"
EVENTS_PATH = "/v1/agl/events/search"
HEALTH_PATH = "/v1/agl/health"
OTLP_PATH = "/v1/traces"

json_encoder = msgspec.json.Encoder(enc_hook=plain)
msgpack_encoder = msgspec.msgpack.Encoder(enc_hook=plain)


def decode_hook(kind: type, value: Any) -> Any:
    """Build the types msgspec does not know: our pydantic models."""
    if issubclass(kind, BaseModel):
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise ValueError(bad_model(error).message.removesuffix(".")) from error
    raise NotImplementedError(f"cannot decode {kind}")  # a fault of ours, and what msgspec asks of its hooks


def decode(body: bytes, kind: Any, content_type: str) -> Any:
    """Decode and check a request body.

    Raises:
        BadInputError: It is not what `kind` says; the message names the place.
    """
    codec = msgspec.msgpack if content_type.startswith(MSGPACK) else msgspec.json
    try:
        return codec.decode(body, type=kind, dec_hook=decode_hook)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_body(error) from error


def convert(values: dict[str, Any], kind: type[T], *, strict: bool = True) -> T:
    """Like `decode`, from decoded values; not `strict` (query parameters), strings become what `kind` asks for.

    Raises:
        BadInputError: They do not fit.
    """
    try:
        return msgspec.convert(values, kind, strict=strict, dec_hook=decode_hook)
    except msgspec.MsgspecError as error:
        raise bad_body(error) from error


def bad_body(error: Exception) -> BadInputError:
    """The error for a request that does not fit its type."""
    return BadInputError(f"The request is malformed: {error}.", hint="See the API reference for the fields.")


class Outcome(msgspec.Struct, omit_defaults=True):
    """What became of one verb of a batch."""

    value: Any = None
    error: dict[str, Any] | None = None


_ERRORS: dict[str, type[AgentLightningError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AgentLightningError)
}


def error_from_wire(data: dict[str, Any]) -> AgentLightningError:
    """The exception that the server raised."""
    code = str(data.get("code", ""))
    error = _ERRORS.get(code, AgentLightningError)(
        str(data.get("message", data)), hint=str(data.get("hint", "")), details=data.get("details") or {}
    )
    return error


def _rollout(value: Any) -> Rollout:
    return (AttemptedRollout if "attempt" in value else Rollout).model_validate(value)


def _optional(read: Callable[[Any], T]) -> Callable[[Any], T | None]:
    return lambda value: None if value is None else read(value)


def _list(read: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    return lambda value: [read(item) for item in value]


def _page(read: Callable[[Any], T]) -> Callable[[Any], PaginatedResult[T]]:
    def page(value: Any) -> PaginatedResult[T]:
        fields = {**value, "items": [read(item) for item in value["items"]]}
        return PaginatedResult[Any].model_construct(None, **fields)

    return page


def _as_is(value: Any) -> Any:
    return value


def _span_record(value: Any) -> SpanRecord:
    return msgspec.convert(value, SpanRecord)


def _span_page(value: Any) -> verbs.SpanPage:
    return msgspec.convert(value, verbs.SpanPage)


def _event_page(value: Any) -> verbs.EventPage:
    items = [TrainingEvent.model_construct(None, **item) for item in value["items"]]
    return verbs.EventPage(items=items, last=value["last"])


RESULTS: dict[type, Callable[[Any], Any]] = {
    verbs.StartRollout: _rollout,
    verbs.EnqueueManyRollouts: _list(_rollout),
    verbs.DequeueManyRollouts: _list(_rollout),
    verbs.ReleaseClaim: _as_is,
    verbs.StartAttempt: _rollout,
    verbs.QueryRollouts: _page(_rollout),
    verbs.GetRolloutById: _optional(_rollout),
    verbs.WaitForRollouts: _list(_rollout),
    verbs.UpdateRollout: _rollout,
    verbs.QueryAttempts: _page(Attempt.model_validate),
    verbs.GetLatestAttempt: _optional(Attempt.model_validate),
    verbs.UpdateAttempt: Attempt.model_validate,
    verbs.AddManySpans: _as_is,
    verbs.GetManySpanSequenceIds: _as_is,
    verbs.QuerySpans: _span_page,
    verbs.QueryManySpans: _list(_span_record),
    verbs.AddResources: ResourcesUpdate.model_validate,
    verbs.UpdateResources: ResourcesUpdate.model_validate,
    verbs.QueryResources: _page(ResourcesUpdate.model_validate),
    verbs.GetResourcesById: _optional(ResourcesUpdate.model_validate),
    verbs.GetLatestResources: _optional(ResourcesUpdate.model_validate),
    verbs.QueryWorkers: _page(Worker.model_validate),
    verbs.GetWorkerById: _optional(Worker.model_validate),
    verbs.UpdateWorker: Worker.model_validate,
    verbs.AddFeedback: Feedback.model_validate,
    verbs.QueryFeedback: _page(Feedback.model_validate),
    verbs.AddPreference: Preference.model_validate,
    verbs.QueryPreferences: _page(Preference.model_validate),
    verbs.CreateLineageSession: LineageSession.model_validate,
    verbs.GetLineageSession: _optional(LineageSession.model_validate),
    verbs.QueryLineageSessions: _page(LineageSession.model_validate),
    verbs.AddToLineage: Lineage.model_validate,
    verbs.LockLineage: Lineage.model_validate,
    verbs.UnlockLineage: Lineage.model_validate,
    verbs.QueryLineageHistory: _page(LineageStep.model_validate),
    verbs.QueryEvents: _event_page,
    verbs.Statistics: _as_is,
}
"""How the client builds a verb's result from what was decoded."""
