"""The store over HTTP: the 0.3 REST routes, our bulk routes, and OTLP. Knows `LightningStore`, not its implementations.

Plain Starlette endpoints; the verbs' types check what comes in. Bodies are JSON, or msgpack where the content type
says so; answers follow the `accept` header. Errors are JSON: `code`, `message`, `hint`, `details`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.kit.errors import AgentLightningError, NotFoundError
from agentlightning.schemas import Span
from agentlightning.store import verbs, wire
from agentlightning.store.access import store_token
from agentlightning.store.base import LightningStore
from agentlightning.store.http import (
    Endpoint,
    guarded,
    no_such_route,
    read_body,
    read_fields,
    respond,
    unexpected,
    while_connected,
)
from agentlightning.store.otlp import otlp_endpoint
from agentlightning.store.records import bad_model, check_body, span_from_record
from agentlightning.store.stream import stream_endpoint
from agentlightning.store.verbs import AttemptUpdate

PREFIX = "/v1/agl"

# Method, path below PREFIX, verb, status of success. Fixed words come before parameters.
_VERBS: list[tuple[str, str, type[verbs.Verb[Any]], int]] = [
    ("POST", "/queues/rollouts/enqueue", verbs.EnqueueManyRollouts, 201),
    ("POST", "/queues/rollouts/dequeue", verbs.DequeueManyRollouts, 200),
    ("POST", "/waits/rollouts", verbs.WaitForRollouts, 200),
    ("POST", "/rollouts", verbs.StartRollout, 201),
    ("GET", "/rollouts", verbs.QueryRollouts, 200),
    ("POST", "/rollouts/search", verbs.QueryRollouts, 200),
    ("GET", "/rollouts/{rollout_id}", verbs.GetRolloutById, 200),
    ("POST", "/rollouts/{rollout_id}", verbs.UpdateRollout, 200),
    ("GET", "/rollouts/{rollout_id}/attempts", verbs.QueryAttempts, 200),
    ("POST", "/rollouts/{rollout_id}/attempts", verbs.StartAttempt, 201),
    ("POST", "/rollouts/{rollout_id}/attempts/search", verbs.QueryAttempts, 200),
    ("GET", "/rollouts/{rollout_id}/attempts/latest", verbs.GetLatestAttempt, 200),
    ("POST", "/rollouts/{rollout_id}/attempts/{attempt_id}", verbs.UpdateAttempt, 200),
    ("GET", "/resources", verbs.QueryResources, 200),
    ("GET", "/resources/latest", verbs.GetLatestResources, 200),
    ("GET", "/resources/{resources_id}", verbs.GetResourcesById, 200),
    ("GET", "/spans", verbs.QuerySpans, 200),
    ("POST", "/spans/search", verbs.QuerySpans, 200),
    ("POST", "/feedback", verbs.AddFeedback, 201),
    ("GET", "/feedback", verbs.QueryFeedback, 200),
    ("POST", "/feedback/search", verbs.QueryFeedback, 200),
    ("POST", "/preferences", verbs.AddPreference, 201),
    ("GET", "/preferences", verbs.QueryPreferences, 200),
    ("POST", "/preferences/search", verbs.QueryPreferences, 200),
    ("POST", "/lineage_sessions", verbs.CreateLineageSession, 201),
    ("GET", "/lineage_sessions", verbs.QueryLineageSessions, 200),
    ("POST", "/lineage_sessions/search", verbs.QueryLineageSessions, 200),
    ("GET", "/lineage_sessions/{session_id}", verbs.GetLineageSession, 200),
    ("GET", "/lineage_sessions/{session_id}/history", verbs.QueryLineageHistory, 200),
    ("POST", "/lineages/{lineage_id}/rollouts", verbs.AddToLineage, 201),
    ("POST", "/lineages/{lineage_id}/lock", verbs.LockLineage, 200),
    ("POST", "/lineages/{lineage_id}/unlock", verbs.UnlockLineage, 200),
    ("GET", "/workers", verbs.QueryWorkers, 200),
    ("POST", "/workers/search", verbs.QueryWorkers, 200),
    ("GET", "/workers/{worker_id}", verbs.GetWorkerById, 200),
    ("POST", "/workers/{worker_id}", verbs.UpdateWorker, 200),
    ("GET", "/events", verbs.QueryEvents, 200),
    ("POST", "/events/search", verbs.QueryEvents, 200),
]

# Answered by 404 when there is none.
_NAMED: dict[type[verbs.Verb[Any]], tuple[str, str]] = {
    verbs.GetRolloutById: ("rollout", "rollout_id"),
    verbs.GetLineageSession: ("session", "session_id"),
}
_WAITING = (verbs.DequeueManyRollouts, verbs.WaitForRollouts, verbs.QueryEvents)


def _verb_endpoint(store: LightningStore, kind: type[verbs.Verb[Any]], status: int) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        fields = await read_fields(request)
        fields.pop("verb", None)  # the path says which
        work = store.execute(wire.convert(fields, kind, strict=request.method != "GET"))
        result = await (while_connected(request, work) if kind in _WAITING else work)
        if result is None and kind in _NAMED:
            what, name = _NAMED[kind]
            raise NotFoundError(f"There is no {what} {fields[name]!r}.")
        return respond(request, _public(result), status)

    return endpoint


def _public(result: Any) -> Any:
    """Packed spans as public ones."""
    if isinstance(result, verbs.SpanPage):
        items = [span_from_record(record) for record in result.items]
        return {"items": items, "limit": result.limit, "offset": result.offset, "total": result.total}
    return result


class _Endpoints:
    """The endpoints whose body or answer is not simply a verb's."""

    def __init__(self, store: LightningStore) -> None:
        self._store = store

    async def statistics(self, request: Request) -> Response:
        return respond(request, await self._store.statistics())

    async def add_resources(self, request: Request) -> Response:
        resources = await read_body(request, dict[str, Any])
        return respond(request, await self._store.add_resources(resources), 201)

    async def update_resources(self, request: Request) -> Response:
        resources = await read_body(request, dict[str, Any])
        return respond(request, await self._store.update_resources(request.path_params["resources_id"], resources))

    async def add_span(self, request: Request) -> Response:
        span = _span(await read_body(request, dict[str, Any]))
        return respond(request, await self._store.add_span(span), 201)

    async def add_many_spans(self, request: Request) -> Response:
        """Body: `{"spans": [...]}` in the public form."""
        body = await read_body(request, _ManySpans)
        return respond(request, await self._store.add_many_spans([_span(span) for span in body.spans]), 201)

    async def query_many_spans(self, request: Request) -> Response:
        verb = await read_body(request, verbs.QueryManySpans)
        spans = await self._store.query_many_spans(verb.rollout_ids, attempt_id=verb.attempt_id, name=verb.name)
        return respond(request, spans)

    async def next_span(self, request: Request) -> Response:
        body = await read_body(request, _NextSpan)
        number = await self._store.get_next_span_sequence_id(body.rollout_id, body.attempt_id)
        return respond(request, {"sequence_id": number})

    async def update_many_attempts(self, request: Request) -> Response:
        """Body: `{"updates": [...]}`."""
        body = await read_body(request, _ManyAttempts)
        return respond(request, await self._store.update_many_attempts(body.updates))

    async def batch(self, request: Request) -> Response:
        """Body: a list of verbs (`{"verb": "update_attempt", …}`); the answer has an `Outcome` for each."""
        content_type = request.headers.get("content-type", wire.JSON)
        calls = [_verb_of(bytes(call), content_type) for call in await read_body(request, list[msgspec.Raw])]
        work = asyncio.gather(*(self._one_of_batch(call) for call in calls))
        claims = any(isinstance(call, verbs.DequeueManyRollouts) for call in calls)
        outcomes = await (while_connected(request, work) if claims else work)
        return respond(request, outcomes)

    async def _one_of_batch(self, call: verbs.Verb[Any] | AgentLightningError) -> wire.Outcome:
        if isinstance(call, AgentLightningError):
            return wire.Outcome(error=call.as_dict())
        try:
            return wire.Outcome(value=await self._store.execute(call))
        except AgentLightningError as error:
            return wire.Outcome(error=error.as_dict())
        except Exception as error:  # noqa: BLE001 - must not take the other verbs with it
            return wire.Outcome(error=unexpected(error, "A verb of a batch").as_dict())


def _verb_of(call: bytes, content_type: str) -> verbs.Verb[Any] | AgentLightningError:
    """A verb of a batch, or why it is none."""
    try:
        verb = wire.decode(call, verbs.AnyVerb, content_type)
        if isinstance(verb, verbs.AddManySpans):
            for record in verb.spans:
                check_body(record.body)
    except AgentLightningError as error:
        return error
    return verb


class _ManySpans(msgspec.Struct):
    spans: list[dict[str, Any]]


class _ManyAttempts(msgspec.Struct):
    updates: list[AttemptUpdate]


class _NextSpan(msgspec.Struct):
    rollout_id: str
    attempt_id: str


def _span(fields: dict[str, Any]) -> Span:
    try:
        return Span.model_validate(fields)
    except ValidationError as error:
        raise bad_model(error) from error


async def _health(request: Request) -> Response:
    return respond(request, {"status": "ok"})


async def _not_supported(request: Request) -> Response:
    return Response(status_code=501)


def store_routes(store: LightningStore, *, token: str | None = None) -> list[Route]:
    """Routes that serve `store` under `/v1`, for an application of one's own.

    Args:
        store: Any store.
        token: Bearer token that every request but `health` has to carry; by default `AGL_STORE_TOKEN`, if set.
    """
    token = store_token(token)
    own = _Endpoints(store)
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", f"{PREFIX}/statistics", own.statistics),
        ("POST", f"{PREFIX}/batch", own.batch),
        ("POST", f"{PREFIX}/attempts/bulk", own.update_many_attempts),
        ("POST", f"{PREFIX}/spans", own.add_span),
        ("POST", f"{PREFIX}/spans/bulk", own.add_many_spans),
        ("POST", f"{PREFIX}/spans/next", own.next_span),
        ("POST", f"{PREFIX}/spans/search_many", own.query_many_spans),
        ("POST", f"{PREFIX}/resources", own.add_resources),
        ("POST", f"{PREFIX}/resources/{{resources_id}}", own.update_resources),
        ("GET", f"{PREFIX}/events/stream", stream_endpoint(store)),
        ("POST", "/v1/traces", otlp_endpoint(store)),
        *((method, PREFIX + path, _verb_endpoint(store, kind, status)) for method, path, kind, status in _VERBS),
    ]
    routes = [Route(path, guarded(endpoint, token), methods=[method]) for method, path, endpoint in table]
    routes.append(Route(f"{PREFIX}/health", _health, methods=["GET"]))
    routes += [
        Route(f"/v1/{signal}", _not_supported, methods=["POST"])
        for signal in ("metrics", "logs", "development/profiles")
    ]
    return routes


def create_store_app(
    store: LightningStore, *, token: str | None = None, cors_allow_origins: Sequence[str] | str | None = None
) -> Starlette:
    """An application with nothing but `store_routes`.

    Args:
        store: Any store.
        token: See `store_routes`.
        cors_allow_origins: Origins that browsers may call from; `"*"` for all.
    """
    origins = [cors_allow_origins] if isinstance(cors_allow_origins, str) else list(cors_allow_origins or ())
    middleware = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]
    return Starlette(
        routes=store_routes(store, token=token),
        middleware=middleware if origins else [],
        exception_handlers={HTTPException: no_such_route},
    )
