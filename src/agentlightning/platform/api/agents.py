"""Agents over HTTP. They are everybody's to read; changing them needs `agent:write`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from starlette.responses import Response

from agentlightning.kit.errors import BadInputError
from agentlightning.platform.agents.models import Agent
from agentlightning.platform.agents.schemas import (
    AgentChange,
    AgentIn,
    AgentOut,
    AgentsPage,
    FullVersionOut,
    MetricsOut,
    Name,
    RollbackIn,
    StatusOverview,
    VersionOut,
    VersionsPage,
    agent_out,
    summary_of,
    version_fields,
)
from agentlightning.platform.agents.service import PreconditionError
from agentlightning.platform.agents.shipped import digest, shipped
from agentlightning.platform.envelope import HttpError, Success, answer
from agentlightning.platform.state import platform_of

Limit = Annotated[int, Query(ge=1, le=500)]
After = Annotated[int, Query(ge=0, le=2**62)]
Before = Annotated[int | None, Query(ge=1, le=2**31 - 1)]
Filter = Annotated[Name | None, Query(max_length=100)]
IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=100)]

PATH = "/api/v2/agents"
ONE = PATH + "/{agent_id}"


async def list_agents(
    request: Request,
    limit: Limit = 100,
    after: After = 0,
    type: Filter = None,
    status: Filter = None,
    capability: Filter = None,
) -> Response:
    """Agents by number, without the deleted ones unless `status=deleted`; `next` is the next page's `after`."""
    wanted = None if type is None else type.removesuffix("_agent")
    found = await platform_of(request.app.state).agents.summaries(
        after, limit + 1, type=wanted, status=status, capability=capability
    )
    more = found[limit - 1]["id"] if len(found) > limit else None
    return answer({"agents": [summary_of(row) for row in found[:limit]], "next": more})


async def agents_status(request: Request) -> Response:
    """How all agents are: state, restarts, last activity, tasks under way."""
    return answer(await platform_of(request.app.state).agent_states.overview())


async def get_agent(agent_id: str, request: Request) -> Response:
    """One agent, by number or name, with its definition. The header `ETag` is its version."""
    return _one(await platform_of(request.app.state).agents.find(agent_id))


async def create_agent(body: AgentIn, request: Request) -> Response:
    """A new agent."""
    made = await platform_of(request.app.state).agents.create(body.definition)
    return _one(made, "Created.", status=201)


async def change_agent(agent_id: str, body: AgentChange, request: Request, if_match: IfMatch = None) -> Response:
    """Give an agent another definition, change fields of it, pause it or make it active.

    A definition is changed from a version (`version` or `If-Match`); if there is a newer one, nothing is changed and
    the answer (409, or 412 for the header) holds it.
    """
    if body.definition is not None and body.changes is not None:
        raise BadInputError("Give the whole definition, or changes to it.")
    expected, precondition = _expected(body.version, if_match)
    if expected is None and (body.definition is not None or body.changes is not None):
        raise HttpError(
            428,
            "A definition is changed from a version.",
            code="VERSION_REQUIRED",
            hint="Send the version that you have read, as version or as If-Match.",
        )
    changed = await platform_of(request.app.state).agents.change(
        agent_id,
        body.definition,
        changes=body.changes,
        status=body.status,
        expected=expected,
        precondition=precondition,
    )
    return _one(changed, "Changed.")


async def delete_agent(agent_id: str, request: Request, if_match: IfMatch = None) -> Response:
    """Take an agent out of use. Its versions stay; a rollback brings it back."""
    expected, _ = _expected(None, if_match)
    await platform_of(request.app.state).agents.delete(agent_id, expected=expected)
    return answer(None, "Deleted.")


async def restart_agent(agent_id: str, request: Request) -> Response:
    """End what an agent is doing and let it begin anew; a paused one is active again."""
    return _one(await platform_of(request.app.state).agents.restart(agent_id), "Restarted.")


async def list_versions(agent_id: str, request: Request, limit: Limit = 50, before: Before = None) -> Response:
    """An agent's versions, newest first, also of a deleted one; `next` is the next page's `before`."""
    agent, found = await platform_of(request.app.state).agents.versions(agent_id, before, limit + 1)
    more = found[limit - 1].version if len(found) > limit else None
    entries = [VersionOut(**version_fields(agent, version)) for version in found[:limit]]
    return answer(VersionsPage(versions=entries, next=more))


async def get_version(agent_id: str, version: str, request: Request) -> Response:
    """One version of an agent with its definition."""
    agent, found = await platform_of(request.app.state).agents.version(agent_id, _number(version))
    return answer(FullVersionOut(**version_fields(agent, found), definition=found.config))


async def roll_back(agent_id: str, body: RollbackIn, request: Request, if_match: IfMatch = None) -> Response:
    """Make an earlier version, or what came with the program, the next version. A deleted agent is active again."""
    if (body.to is None) is not body.shipped:
        raise BadInputError("Say where to: a version (to), or shipped.")
    agents = platform_of(request.app.state).agents
    expected, precondition = _expected(body.version, if_match)
    if body.to is not None:
        changed = await agents.roll_back(agent_id, body.to, expected=expected, precondition=precondition)
    else:
        agent, _ = await agents.versions(agent_id, None, 1)
        changed = await agents.restore(
            shipped(agent.name), digest(agent.name), expected=expected, precondition=precondition
        )
    return _one(changed, "Rolled back.")


async def get_metrics(agent_id: str, request: Request) -> Response:
    """How well an agent does: its tasks, its evaluations, and whether it should learn."""
    return answer(await platform_of(request.app.state).agent_metrics.of(agent_id))


def add_routes(app: FastAPI) -> None:
    """Add them."""

    def add(path: str, endpoint: Any, method: str, model: Any, **more: Any) -> None:
        app.add_api_route(path, endpoint, methods=[method], response_model=Success[model], tags=["agents"], **more)

    add(PATH, list_agents, "GET", AgentsPage)
    add("/agents", list_agents, "GET", AgentsPage, operation_id="list_agents_unversioned")
    add(PATH, create_agent, "POST", AgentOut, status_code=201)
    add(PATH + "/status", agents_status, "GET", StatusOverview)  # before the route that takes any name
    add(ONE, get_agent, "GET", AgentOut)
    add(ONE, change_agent, "PUT", AgentOut)
    add(ONE, delete_agent, "DELETE", None)
    add(ONE + "/restart", restart_agent, "POST", AgentOut)
    add(ONE + "/versions", list_versions, "GET", VersionsPage)
    add(ONE + "/versions/{version}", get_version, "GET", FullVersionOut)
    add(ONE + "/rollback", roll_back, "POST", AgentOut)
    add(ONE + "/metrics", get_metrics, "GET", MetricsOut)


def _one(agent: Agent, message: str = "", *, status: int = 200) -> Response:
    found = answer(agent_out(agent), message, status=status)
    found.headers["ETag"] = f'"{agent.version}"'
    return found


def _expected(version: int | None, if_match: str | None) -> tuple[int | None, bool]:
    """The version that the caller has read, and whether the header says so.

    Raises:
        PreconditionError: The header holds no version.
        BadInputError: Header and body differ.
    """
    if if_match is None or if_match.strip() == "*":
        return version, False
    found = re.fullmatch(r'\s*"?([0-9]{1,9})"?\s*', if_match)
    if found is None:
        raise PreconditionError("If-Match holds no version of an agent.", hint='E.g. If-Match: "3", the ETag of GET.')
    number = int(found.group(1))
    if version is not None and version != number:
        raise BadInputError("version and If-Match differ.")
    return number, True


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() and len(version) < 10 else 0
