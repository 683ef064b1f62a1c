"""Routes around the calls: models, health, pause. Knows nothing of how calls are answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response

from agentlightning.gateway.calls import CallService
from agentlightning.gateway.dialects.anthropic import AnthropicDialect
from agentlightning.gateway.dialects.openai import OpenAIDialect
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.keys import KeyRing
from agentlightning.gateway.meter import status_of
from agentlightning.gateway.routing import RoutingTable

Handler = Callable[[Request], Awaitable[Response]]

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class ModelEndpoints:
    """`/v1/models`, in the shape of the client that asks: Anthropic's sends its API's version."""

    def __init__(self, routes: RoutingTable) -> None:
        self._routes = routes

    async def list(self, request: Request) -> Response:
        """All models."""
        names = await self._routes.list_models()
        if _is_anthropic(request):
            page = {"has_more": False, "first_id": names[0] if names else None, "last_id": names[-1] if names else None}
            return _json({"data": [_anthropic_model(name) for name in names], **page})
        return _json({"object": "list", "data": [_model(name) for name in names]})

    async def get(self, request: Request) -> Response:
        """One model, if there is a route for it."""
        name = request.path_params["model"]
        try:
            self._routes.find(name)
        except CallError as error:
            return _error(request, error)
        return _json(_anthropic_model(name) if _is_anthropic(request) else _model(name))


class ControlEndpoints:
    """Health, and the pause of calls while weights change."""

    def __init__(self, service: CallService, routes: RoutingTable, keys: KeyRing | None = None) -> None:
        self._service = service
        self._routes = routes
        self._keys = keys

    async def health(self, request: Request) -> Response:
        """Whether it answers, for which models, and what it has done so far; without a key only whether."""
        stats = self._service.stats()
        status = status_of(stats)
        if _refusal(self._keys, request) is not None:
            return _json({"status": status})
        targets = [msgspec.structs.asdict(state) for state in self._routes.states()]
        told = {"status": status, "models": self._routes.names(), "stats": stats, "targets": targets}
        spending = self._service.spending()
        return _json(told if spending is None else {**told, "spending": spending})

    async def pause(self, request: Request) -> Response:
        """Hold new calls."""
        self._service.gate.pause()
        return await self.state(request)

    async def resume(self, request: Request) -> Response:
        """Let held calls go on."""
        self._service.gate.resume()
        return await self.state(request)

    async def state(self, request: Request) -> Response:
        """Whether calls are held, and how many there are."""
        stats = self._service.stats()
        return _json({key: stats[key] for key in ("paused", "in_flight", "waiting")})


class UnknownPath:
    """Answers for what lies below a rollout but is no route, in the clients' error shape."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """404, whatever the method."""
        error = CallError(
            f"There is no route {scope['method']} {scope['path']} here.", status=404, reason="unknown_path"
        )
        await _json(error.as_openai(), error.status)(scope, receive, send)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "agentlightning"}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def for_key_holders(endpoint: Handler, keys: KeyRing | None) -> Handler:
    """The endpoint behind the gateway's keys, if it has any."""
    if keys is None:
        return endpoint

    async def guarded(request: Request) -> Response:
        refusal = _refusal(keys, request)
        return await endpoint(request) if refusal is None else _error(request, refusal)

    return guarded


def _refusal(keys: KeyRing | None, request: Request) -> CallError | None:
    """Why a request without a good key is refused."""
    try:
        if keys is not None:
            keys.name_of(request.headers.raw)
    except CallError as refusal:
        return refusal
    return None


def _error(request: Request, error: CallError) -> Response:
    dialect = AnthropicDialect() if _is_anthropic(request) else OpenAIDialect("chat")
    return Response(dialect.encode_error(error), error.status, media_type="application/json")


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")
