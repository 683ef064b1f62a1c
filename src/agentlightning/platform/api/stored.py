"""Stored secrets over HTTP, for admins: they are set and listed, and never told."""

from __future__ import annotations

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.responses import Response

from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of
from agentlightning.platform.system.stored import MAX_CHARS, About

_NEXT_START = "Kept. It is used from the platform's next start on."


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
    """Keep a secret under the name of the environment variable that it stands for, e.g. `OPENAI_API_KEY`."""
    kept = await platform_of(request.app.state).secrets.set(name, body.value.get_secret_value())
    return answer(_told(kept), _NEXT_START)


async def delete_secret(name: str, request: Request) -> Response:
    """Keep it no longer."""
    await platform_of(request.app.state).secrets.delete(name)
    return answer(None, "Deleted. The platform's processes know it until their next start.")


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
