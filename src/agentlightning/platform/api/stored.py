"""Stored secrets over HTTP, for admins: they are set and listed, and never told."""

from __future__ import annotations

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.responses import Response

from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of
from agentlightning.platform.system.stored import MAX_CHARS, About

_SOON = "within ten seconds"
_TOOLS = "tools change at the platform's next start"


class SecretIn(BaseModel):
    """The value of a secret."""

    model_config = ConfigDict(extra="forbid")

    value: SecretStr = Field(min_length=1, max_length=MAX_CHARS)


class SecretOut(BaseModel):
    """What is told of a secret: everything but the secret."""

    name: str
    updated_at: str
    updated_by: str
    key_id: str
    """Of the key that it is encrypted with."""
    is_readable: bool
    """Whether the worker that answers has that key."""


class SecretsOut(BaseModel):
    """All secrets, by name."""

    secrets: list[SecretOut]


async def list_secrets(request: Request) -> Response:
    """Names of the secrets that are kept encrypted; no values."""
    found = await platform_of(request.app.state).secrets.list()
    return answer(SecretsOut(secrets=[_told(about) for about in found]))


async def set_secret(name: str, body: SecretIn, request: Request) -> Response:
    """Keep a secret under the name of the environment variable that it stands for, e.g. `OPENAI_API_KEY`.

    The message says from when on it is used.
    """
    platform = platform_of(request.app.state)
    kept = await platform.secrets.set(name, body.value.get_secret_value())
    is_taken = await platform.live_secrets.take()
    if platform.live_secrets.is_overruled(name):
        return answer(_told(kept), f"Kept, and not used: the platform's environment sets {name}, which wins.")
    if is_taken and platform.live_secrets.serves(name):
        return answer(_told(kept), f"Kept. Calls of models use it now, those of other workers {_SOON}; {_TOOLS}.")
    return answer(_told(kept), "Kept. It is used from the platform's next start on.")


async def delete_secret(name: str, request: Request) -> Response:
    """Keep it no longer."""
    platform = platform_of(request.app.state)
    await platform.secrets.delete(name)
    if await platform.live_secrets.take() and platform.live_secrets.serves(name):
        return answer(None, f"Deleted. Calls of models are made without it, those of other workers {_SOON}; {_TOOLS}.")
    return answer(None, "Deleted. Tools that have it know it until the platform's next start.")


def add_routes(app: FastAPI) -> None:
    """Add them."""
    path = "/api/v2/system/secrets"
    one = path + "/{name}"
    app.add_api_route(path, list_secrets, methods=["GET"], response_model=Success[SecretsOut], tags=["system"])
    app.add_api_route(one, set_secret, methods=["PUT"], response_model=Success[SecretOut], tags=["system"])
    app.add_api_route(one, delete_secret, methods=["DELETE"], response_model=Success[None], tags=["system"])


def _told(about: About) -> SecretOut:
    at = about.updated_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return SecretOut(
        name=about.name,
        updated_at=at,
        updated_by=about.updated_by,
        key_id=about.key_id,
        is_readable=about.is_readable,
    )
