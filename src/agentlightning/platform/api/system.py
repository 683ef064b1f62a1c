"""Health, metrics and the description of the API itself."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse, Response

from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.api.docs import STYLE, docs_page
from agentlightning.platform.auth.permissions import HEALTH
from agentlightning.platform.database import is_unavailable
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.outage import Outage
from agentlightning.platform.state import Platform, platform_of

log = logging.getLogger(__name__)

_PATIENCE_S = 3.0


class Component(BaseModel):
    """One part, and whether it is `up`, `degraded`, `down` or `off`."""

    state: str
    kind: str
    reason: str = ""
    """Why it is off, or away."""
    since: str | None = None
    """When the worker that answers noticed that it is away."""


class Health(BaseModel):
    """`ok`; `degraded`: slower or less shared, but right; `down`: most calls fail."""

    status: str
    components: dict[str, Component]
    tools: dict[str, str]
    """Of agents: `on`, or why not."""


async def health(request: Request) -> Response:
    """State of every part; 503 when the database is away."""
    found = await health_of(platform_of(request.app.state))
    return answer(found, status=503 if found.status == "down" else 200)


async def health_of(platform: Platform) -> Health:
    """State of every part."""
    kind = "sqlite" if platform.database.is_sqlite else "postgresql"
    database = _component(kind, await _is_database_up(platform), platform.database.outage)
    cache = _component(platform.cache.kind, await platform.cache.state() == "up", platform.cache.outage)
    store = await _store_state(platform)
    knowledge = Component(state="down", kind="unknown", reason="the database is away", since=database.since)
    if database.state == "up":
        knowledge = await _knowledge_state(platform)
    is_whole = all(part.state == "up" for part in (cache, store, knowledge))
    status = "down" if database.state == "down" else "ok" if is_whole else "degraded"
    tools = {name: tool.unavailable or "on" for name, tool in platform.around.tools.items()}
    sandbox = await _sandbox_state(platform)
    parts = {"database": database, "cache": cache, "store": store, "knowledge": knowledge, "sandbox": sandbox}
    return Health(status=status, components=parts, tools=tools)


async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(platform_of(request.app.state).metrics.text(), media_type="text/plain; version=0.0.4")


async def openapi(request: Request) -> Response:
    """The description of this API."""
    app: FastAPI = request.app
    return JSONResponse(app.openapi())


async def docs(request: Request) -> Response:
    """The same as a page."""
    app: FastAPI = request.app
    return HTMLResponse(docs_page(app.openapi()))


async def style(_: Request) -> Response:
    """Its looks."""
    return Response(STYLE, media_type="text/css", headers={"Cache-Control": "max-age=3600"})


def add_routes(app: FastAPI) -> None:
    """Add them."""
    model = Success[Health]
    down: dict[int | str, dict[str, Any]] = {503: {"model": model, "description": "Down; the parts say what"}}
    for path in sorted(HEALTH):
        app.add_api_route(path, health, methods=["GET"], response_model=model, responses=down, tags=["system"])
    numbers: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "In Prometheus' format"}
    }
    app.add_api_route("/metrics", metrics, methods=["GET"], response_class=Response, responses=numbers, tags=["system"])
    app.add_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    app.add_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/style.css", style, methods=["GET"], include_in_schema=False)


def _component(kind: str, is_up: bool, outage: Outage) -> Component:
    if is_up:
        return Component(state="up", kind=kind)
    at = datetime.fromtimestamp(outage.since or time.time(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Component(state="down", kind=kind, reason=outage.reason or "it does not answer", since=at)


async def _is_database_up(platform: Platform) -> bool:
    problem = await platform.database_probe.problem(_PATIENCE_S)
    if problem is None:
        return True
    if not isinstance(problem, TimeoutError) and not is_unavailable(problem):
        raise problem
    platform.database.outage.begin(type(problem).__name__)
    return False


async def _store_state(platform: Platform) -> Component:
    problem = await platform.store_probe.problem(_PATIENCE_S)
    if problem is not None and not isinstance(problem, (TimeoutError, AgentLightningError)):
        raise problem
    outage = platform.store_outage
    if problem is None:
        outage.end()
    else:
        outage.begin(problem.code if isinstance(problem, AgentLightningError) else type(problem).__name__)
    return _component("store", problem is None, outage)


async def _sandbox_state(platform: Platform) -> Component:
    """`off` is no fault: everything else works."""
    kind, reason = await platform.tools.sandbox()
    return Component(state="off" if kind == "off" else "up", kind=kind, reason=reason)


async def _knowledge_state(platform: Platform) -> Component:
    found = await platform.knowledge.status()
    kind = f"{found['text_index']}, {found['vector_index']}, {found['embedder']}"
    error = str(found["embedding_error"])
    return Component(state="degraded" if error else "up", kind=kind, reason=error)
