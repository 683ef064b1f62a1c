"""Health, metrics and the description of the API itself."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse, Response

from agentlightning.platform.api.docs import STYLE, docs_page
from agentlightning.platform.database import is_unavailable
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import Platform, platform_of

log = logging.getLogger(__name__)


class Component(BaseModel):
    """One part, and whether it is `up`, `degraded`, `down` or `off`."""

    state: str
    kind: str
    reason: str = ""
    """Why it is off."""


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
    database = Component(
        state=await _database_state(platform), kind="sqlite" if platform.database.is_sqlite else "postgresql"
    )
    cache = Component(state=await platform.cache.state(), kind=platform.cache.kind)
    status = "down" if database.state == "down" else "degraded" if cache.state == "down" else "ok"
    knowledge = Component(state="down", kind="unknown")
    if database.state == "up":
        knowledge = await _knowledge_state(platform)
        status = "degraded" if knowledge.state != "up" and status == "ok" else status
    tools = {name: tool.unavailable or "on" for name, tool in platform.around.tools.items()}
    parts = {"database": database, "cache": cache, "knowledge": knowledge, "sandbox": await _sandbox_state(platform)}
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
    app.add_api_route("/api/v2/health", health, methods=["GET"], response_model=Success[Health], tags=["system"])
    app.add_api_route("/metrics", metrics, methods=["GET"], tags=["system"], response_class=Response)
    app.add_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    app.add_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/style.css", style, methods=["GET"], include_in_schema=False)


async def _database_state(platform: Platform) -> str:
    try:
        await platform.database.ping()
    except Exception as error:  # drivers fail in their own ways; what is no outage is raised again
        if not is_unavailable(error):
            raise
        return "down"
    return "up"


async def _sandbox_state(platform: Platform) -> Component:
    """`off` is no fault: everything else works."""
    kind, reason = await platform.tools.sandbox()
    return Component(state="off" if kind == "off" else "up", kind=kind, reason=reason)


async def _knowledge_state(platform: Platform) -> Component:
    found = await platform.knowledge.status()
    kind = f"{found['text_index']}, {found['vector_index']}, {found['embedder']}"
    error = str(found["embedding_error"])
    return Component(state="degraded" if error else "up", kind=kind, reason=error)
