"""Tools over HTTP: which there are, and calling one as an agent would."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentlightning.platform.auth.permissions import may
from agentlightning.platform.auth.repository import note
from agentlightning.platform.context import current
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of

_DEADLINE_S = 60.0
_LONGEST_S = 300.0

Name = Annotated[str, InPath(max_length=200, description="As in the list, e.g. `python` or `mcp:server:tool`.")]


class ToolOut(BaseModel):
    """One tool."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of its arguments."""
    permission: str | None
    available: bool
    reason: str = ""
    """Why it is not."""
    allowed: bool
    """Whether you may use it."""


class ToolsOut(BaseModel):
    """All tools."""

    tools: list[ToolOut]


class ToolCall(BaseModel):
    """A call."""

    model_config = ConfigDict(extra="forbid")

    arguments: dict[str, Any] = Field(default_factory=dict[str, Any], description="As the tool's schema has them.")
    session_id: str | None = Field(default=None, min_length=1, max_length=200, description="Whose workspace it uses.")
    timeout_s: float = Field(default=_DEADLINE_S, gt=0, le=_LONGEST_S)


class ToolAnswer(BaseModel):
    """What came out; a tool that ran and failed says `is_error`."""

    tool: str
    text: str
    data: Any = None
    is_error: bool


async def list_tools(request: Request) -> Response:
    """All tools, whether they work here and whether you may use them."""
    who = current().who
    tools = [
        ToolOut(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters(),
            permission=tool.permission,
            available=not tool.unavailable,
            reason=tool.unavailable,
            allowed=tool.permission is None or may(who.role, who.scopes, tool.permission),
        )
        for tool in platform_of(request.app.state).tools.all.values()
    ]
    return answer(ToolsOut(tools=tools))


async def run_tool(name: Name, body: ToolCall, request: Request) -> Response:
    """Call a tool. You need what the tool asks for; 503 if it is off, 422 if the arguments do not fit."""
    tools = platform_of(request.app.state).tools
    tool = tools.find(name)
    context = tools.context(current().who, tool, body.session_id, body.timeout_s)
    tool.check(context)
    tool.parse(body.arguments)
    async with platform_of(request.app.state).database.write() as session:
        note(session, "tool.run", tool.name)  # without the arguments: they may hold anything
    result = await tool.run(body.arguments, context)
    return answer(ToolAnswer(tool=tool.name, text=result.text, data=result.data, is_error=result.is_error))


def add_routes(app: FastAPI) -> None:
    """Add them."""
    path = "/api/v2/tools"
    app.add_api_route(path, list_tools, methods=["GET"], response_model=Success[ToolsOut], tags=["tools"])
    run = path + "/{name}/run"
    app.add_api_route(run, run_tool, methods=["POST"], response_model=Success[ToolAnswer], tags=["tools"])
