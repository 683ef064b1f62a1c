"""The management API as routes: reads requests, runs operations, answers in the envelope; health, metrics, description.

Some paths are the gateway's too (`/models`, `/health`). These routes come first and let a request pass that lacks the
operator's token, so that an ordinary client finds what it expects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Match, Route

from agentlightning.gateway import KeyRing
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.meter import status_of
from agentlightning.kit.envelope import failure, success
from agentlightning.kit.errors import AgentLightningError, BadInputError, ForbiddenError
from agentlightning.modelservice.description import as_html, as_openapi
from agentlightning.modelservice.metrics import exposition
from agentlightning.modelservice.operations import OPERATIONS, Ask, Operation
from agentlightning.modelservice.service import ModelService
from agentlightning.store.access import check_token

if TYPE_CHECKING:
    from starlette.types import Scope

_BODY_MAX_BYTES = 1 << 20
_TRUE = ("1", "true", "yes", "")
_SHARED_WITH_CLIENTS = ("/models", "/health")

GatewayFacts = Callable[[], Mapping[str, Any]]


def service_routes(
    service: ModelService, *, gateway: GatewayFacts, token: str | None = None, keys: KeyRing | None = None
) -> list[BaseRoute]:
    """The routes; put them before the gateway's.

    Args:
        service: The models.
        gateway: What the gateway tells of itself: `stats` and `targets`.
        token: Asked for as a bearer token on everything but `/docs` and `/openapi.json`; `None` asks for none.
        keys: The gateway's. Without a token, whoever has one of them is told what else only the operator is.
    """

    def is_known(scope: Scope) -> bool:
        return _is_operator(scope, token, keys)

    routes: list[BaseRoute] = [_route(service, operation, token, is_known) for operation in OPERATIONS]
    description = orjson.dumps(as_openapi(OPERATIONS))
    page = as_html(OPERATIONS)

    async def health(request: Request) -> Response:
        return _json(health_of(service, gateway()))

    async def metrics(request: Request) -> Response:
        refusal = _refusal(request.headers.get("authorization"), token)
        if refusal is not None:
            return _error(refusal)
        return Response(await exposition(service, gateway()["stats"]), media_type="text/plain; version=0.0.4")

    async def openapi(request: Request) -> Response:
        return Response(description, media_type="application/json")

    async def docs(request: Request) -> Response:
        return HTMLResponse(page)

    return [
        *routes,
        _Passing("/health", health, methods=["GET"], is_known=is_known),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
    ]


def health_of(service: ModelService, gateway: Mapping[str, Any]) -> dict[str, Any]:
    """As the gateway is, and `degraded` also when a model that should be there is not."""
    models = service.models
    status = status_of(gateway["stats"])
    if status == "ok" and any(model.state == "failed" for model in models):
        status = "degraded"
    states = [
        {"id": m.spec.name, "state": m.state, "version": m.version, "in_flight": m.in_flight, "error": m.error or None}
        for m in models
    ]
    names = [name for m in models for name in (m.spec.name, *m.spec.aliases)]
    return {**gateway, "status": status, "models": names, "served": states}


class _Passing(Route):
    """A route that is not there for strangers."""

    def __init__(self, *arguments: Any, is_known: Callable[[Scope], bool], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_known = is_known

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """No match for strangers, nor for Anthropic's client, whose list has another shape."""
        if scope["type"] != "http":
            return Match.NONE, {}
        is_anthropics = any(name == b"anthropic-version" for name, _ in scope["headers"])
        if is_anthropics or not self._is_known(scope):
            return Match.NONE, {}
        return super().matches(scope)


def _is_operator(scope: Scope, token: str | None, keys: KeyRing | None) -> bool:
    """Whether a request brings the token; where there is none, a key of the gateway's; where there is neither, yes."""
    if token is not None or keys is None:
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        return _refusal(given, token) is None
    try:
        keys.name_of(scope["headers"])
    except CallError:
        return False
    return True


def _route(service: ModelService, operation: Operation, token: str | None, is_known: Callable[[Scope], bool]) -> Route:
    async def answer(request: Request) -> Response:
        try:
            _check_origin(request)
            refusal = _refusal(request.headers.get("authorization"), token)
            if refusal is not None:
                raise refusal
            result = await operation.handle(service, await _read(operation, request))
        except AgentLightningError as error:
            return _error(error)
        body = success(result.data, result.message)
        if operation.path == "/models" and operation.method == "GET":
            body["object"] = "list"  # with `data`, the shape that OpenAI's client reads
        return _json(body, result.status)

    if operation.method == "GET" and operation.path.startswith(_SHARED_WITH_CLIENTS):
        return _Passing(operation.path, answer, methods=[operation.method], is_known=is_known)
    return Route(operation.path, answer, methods=[operation.method])


async def _read(operation: Operation, request: Request) -> Ask:
    flags = frozenset(name for name, _ in operation.flags if request.query_params.get(name, "no").lower() in _TRUE)
    name, version = request.path_params.get("name", ""), request.path_params.get("version", "")
    if operation.body is None:
        return Ask(name, version, flags=flags)
    raw = await request.body()
    if len(raw) > _BODY_MAX_BYTES:
        raise BadInputError("The request is too large.")
    try:
        values = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"The request is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise BadInputError("The request has to be a JSON object.")
    return Ask(name, version, operation.body(**values), flags)


def _check_origin(request: Request) -> None:
    """Refuse what a page of another site makes a browser send here.

    Raises:
        ForbiddenError: The request's `Origin` is not this service.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ForbiddenError(f"Requests from pages of {origin} are refused.", hint="Call the service directly.")


def _refusal(header: str | None, token: str | None) -> AgentLightningError | None:
    if token is None:
        return None
    try:
        check_token(header, token)
    except AgentLightningError as error:
        return error
    return None


def _error(error: AgentLightningError) -> Response:
    return _json(failure(error), error.status)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content, default=str), status_code=status, media_type="application/json")
