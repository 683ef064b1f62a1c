"""Evaluating agents and designing new ones, over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from agentlightning.kit.errors import ConflictError
from agentlightning.platform.agents.schemas import (
    DesignIn,
    DesignOut,
    EvaluateIn,
    EvaluationOut,
    EvaluationsPage,
    agent_out,
    evaluation_out,
)
from agentlightning.platform.agents.service import AgentNotFoundError, check_name
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import Platform, platform_of

Limit = Annotated[int, Query(ge=1, le=500)]
Before = Annotated[int | None, Query(ge=1, le=2**62)]

PATH = "/api/v2/agents"
_EVALUATIONS = PATH + "/{agent_id}/evaluations"


async def evaluate_agent(agent_id: str, body: EvaluateIn, request: Request) -> Response:
    """Run an agent's evaluation set, case by case as rollouts. The answer (202) is the evaluation that has begun."""
    platform = platform_of(request.app.state)
    row = await platform.evaluations.start(agent_id, body.split, body.limit)
    agent = await platform.agents.find(agent_id)
    return answer(evaluation_out(agent, row), "Running; look at the evaluation.", status=202)


async def list_evaluations(agent_id: str, request: Request, limit: Limit = 20, before: Before = None) -> Response:
    """An agent's evaluations, newest first, without single results; `next` is the next page's `before`."""
    agent, found = await platform_of(request.app.state).evaluations.page(agent_id, before, limit + 1)
    more = found[limit - 1].id if len(found) > limit else None
    entries = [evaluation_out(agent, each, results=False) for each in found[:limit]]
    return answer(EvaluationsPage(evaluations=entries, next=more))


async def get_evaluation(agent_id: str, evaluation_id: str, request: Request) -> Response:
    """One evaluation with the verdict on each case."""
    plain = evaluation_id.isascii() and evaluation_id.isdigit() and len(evaluation_id) < 19
    number = int(evaluation_id) if plain else 0
    return answer(evaluation_out(*await platform_of(request.app.state).evaluations.find(agent_id, number)))


async def design_agent(body: DesignIn, request: Request) -> Response:
    """Draft an agent from a description, validate it, try it out once without tools; keep it only if `save` is set."""
    platform = platform_of(request.app.state)
    if body.save and body.name is not None and await _exists(platform, body.name):
        raise ConflictError(f"There is an agent {body.name!r}.", hint="Choose another name.")
    made = await platform.designer.design(body.description, name=body.name, try_input=body.try_input)
    check_name(made.definition)
    agent = await platform.agents.create(made.definition, reason="designed") if body.save else None
    found = DesignOut(
        definition=made.definition.model_dump(mode="json"),
        drafts=made.drafts,
        repaired=made.repaired,
        dry_run=made.trial,
        saved=agent is not None,
        agent=None if agent is None else agent_out(agent),
    )
    return answer(found, "Saved." if agent is not None else "Not saved.", status=200 if agent is None else 201)


def add_routes(app: FastAPI) -> None:
    """Add them."""

    def add(path: str, endpoint: Any, method: str, model: Any, **more: Any) -> None:
        app.add_api_route(path, endpoint, methods=[method], response_model=Success[model], tags=["agents"], **more)

    saved = {201: {"model": Success[DesignOut], "description": "Saved"}}
    add(PATH + "/design", design_agent, "POST", DesignOut, responses=saved)
    add(PATH + "/{agent_id}/evaluate", evaluate_agent, "POST", EvaluationOut, status_code=202)
    add(_EVALUATIONS, list_evaluations, "GET", EvaluationsPage)
    add(_EVALUATIONS + "/{evaluation_id}", get_evaluation, "GET", EvaluationOut)


async def _exists(platform: Platform, name: str) -> bool:
    try:
        await platform.agents.find(name)
    except AgentNotFoundError:
        return False
    return True
