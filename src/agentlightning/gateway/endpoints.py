"""Routes around the calls: models, health, pause. Knows nothing of how calls are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from agentlightning.gateway.calls import CallService
from agentlightning.gateway.dialects.anthropic import AnthropicDialect
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.routing import RoutingTable

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
            self._routes.resolve(name)
        except CallError as error:
            if _is_anthropic(request):
                return Response(AnthropicDialect().encode_error(error), error.status, media_type="application/json")
            return _json(error.as_openai(), error.status)
        return _json(_anthropic_model(name) if _is_anthropic(request) else _model(name))


class ControlEndpoints:
    """Health, and the pause of calls while weights change."""

    def __init__(self, service: CallService, routes: RoutingTable) -> None:
        self._service = service
        self._routes = routes

    async def health(self, request: Request) -> Response:
        """Whether it answers, for which models, and what it has done so far."""
        stats = self._service.stats()
        status = "degraded" if stats["recording"]["to"] == "spool" else "ok"
        status = "paused" if self._service.gate.is_paused else status
        return _json({"status": status, "models": self._routes.names(), "stats": stats})

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


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")
