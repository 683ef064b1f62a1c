"""The system's state, numbers and configuration over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentlightning.platform.api.system import Component, health_of
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of
from agentlightning.platform.system import facts
from agentlightning.platform.system.config import RuntimeConfig


class ModelState(BaseModel):
    """A model that is loaded here, or could be."""

    name: str
    state: str
    version: str | None


class SystemStatus(BaseModel):
    """Everything about the worker that answers, and the parts it works with."""

    status: str
    components: dict[str, Component]
    process: facts.Process
    resources: facts.Resources
    models: list[ModelState]
    targets: list[str]
    """Names that models are called by, those of other servers included."""


class SystemStats(BaseModel):
    """How much there is."""

    platform: dict[str, facts.Counts]
    store: dict[str, Any]
    gateway: dict[str, Any]
    """What this worker's gateway has counted."""


class ConfigOut(BaseModel):
    """The configuration: what was set, and what is in force with the environment's values."""

    version: int
    config: RuntimeConfig
    in_force: dict[str, Any]


class ConfigIn(BaseModel):
    """The whole new configuration, and the version that it replaces."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=0, le=2**31)
    config: RuntimeConfig


async def status(request: Request) -> Response:
    """State of every part, of this worker and of its models."""
    platform = platform_of(request.app.state)
    found = await health_of(platform)
    used = await asyncio.to_thread(facts.resources, str(platform.settings.home))
    served = [] if platform.models is None else platform.models.service.models
    return answer(
        SystemStatus(
            status=found.status,
            components=found.components,
            process=facts.process(),
            resources=used,
            models=[ModelState(name=m.spec.name, state=m.state, version=m.version) for m in served],
            targets=[] if platform.models is None else sorted(platform.models.routes.names()),
        )
    )


async def stats(request: Request) -> Response:
    """How much there is: users, agents, tasks, knowledge, rollouts, calls."""
    platform = platform_of(request.app.state)
    return answer(
        SystemStats(
            platform=await facts.counts(platform.database),
            store=await facts.store_counts(platform.store),
            gateway=dict(platform.gateway.stats()),
        )
    )


async def get_config(request: Request) -> Response:
    """What is set, and what is in force."""
    return answer(_config(request))


async def put_config(body: ConfigIn, request: Request) -> Response:
    """Change it while the platform runs; every worker has it within seconds."""
    await platform_of(request.app.state).config.change(body.config, body.version)
    return answer(_config(request), "Changed.")


def _config(request: Request) -> ConfigOut:
    service = platform_of(request.app.state).config
    return ConfigOut(version=service.version, config=service.config, in_force=service.in_force)


def add_routes(app: FastAPI) -> None:
    """Add them."""
    base = "/api/v2/system"
    app.add_api_route(f"{base}/status", status, methods=["GET"], response_model=Success[SystemStatus], tags=["system"])
    app.add_api_route(f"{base}/stats", stats, methods=["GET"], response_model=Success[SystemStats], tags=["system"])
    path, made = f"{base}/config", Success[ConfigOut]
    app.add_api_route(path, get_config, methods=["GET"], response_model=made, tags=["system"])
    app.add_api_route(path, put_config, methods=["PUT"], response_model=made, tags=["system"])
