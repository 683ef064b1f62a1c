"""One's own API keys over HTTP."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from agentlightning.kit.errors import NotFoundError
from agentlightning.platform.api.schemas import KeyIn, KeyOut, NewKeyOut
from agentlightning.platform.auth.models import ApiKey
from agentlightning.platform.context import current
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of


async def list_keys(request: Request) -> Response:
    """Your API keys, by their beginnings."""
    found = await platform_of(request.app.state).keys.of(current().who)
    return answer([_out(key) for key in found])


async def create_key(body: KeyIn, request: Request) -> Response:
    """A new API key; the key itself is in this answer only."""
    keys = platform_of(request.app.state).keys
    made, key = await keys.create(current().who, body.name, body.expires_in_s, body.permissions)
    return answer(NewKeyOut(**_out(made).model_dump(), key=key), "Keep the key: it is not shown again.", status=201)


async def delete_key(key_id: str, request: Request) -> Response:
    """Remove one of your API keys."""
    if not key_id.isascii() or not key_id.isdigit() or len(key_id) > 19:
        raise NotFoundError("There is no such API key.")
    await platform_of(request.app.state).keys.remove(current().who, int(key_id))
    return answer(None, "Deleted.")


def add_routes(app: FastAPI) -> None:
    """Add them."""
    path = "/api/v2/api-keys"
    made = Success[NewKeyOut]
    app.add_api_route(path, list_keys, methods=["GET"], response_model=Success[list[KeyOut]], tags=["api keys"])
    app.add_api_route(path, create_key, methods=["POST"], response_model=made, status_code=201, tags=["api keys"])
    app.add_api_route(
        path + "/{key_id}", delete_key, methods=["DELETE"], response_model=Success[None], tags=["api keys"]
    )


def _out(key: ApiKey) -> KeyOut:
    return KeyOut(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        permissions=key.permissions,
        created_at=key.created_at,
        expires_at=key.expires_at,
        used_at=key.used_at,
    )
