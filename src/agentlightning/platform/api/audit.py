"""The audit log over HTTP, for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from agentlightning.platform.api.schemas import AuditOut, AuditPage, Line
from agentlightning.platform.auth import repository
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of

_Name = Annotated[Line | None, Query(max_length=64)]


async def list_audit(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    actor: _Name = None,
    action: _Name = None,
) -> Response:
    """What was changed, newest first; `next` is the next page's `before`."""
    async with platform_of(request.app.state).database.read() as session:
        found = await repository.list_audit(session, before, limit + 1, actor, action)
    more = found[limit - 1].id if len(found) > limit else None
    entries = [
        AuditOut(
            id=entry.id,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            target=entry.target,
            request_id=entry.request_id,
            address=entry.address,
            details=entry.details,
        )
        for entry in found[:limit]
    ]
    return answer(AuditPage(entries=entries, next=more))


def add_routes(app: FastAPI) -> None:
    """Add them."""
    app.add_api_route("/api/v2/audit", list_audit, methods=["GET"], response_model=Success[AuditPage], tags=["audit"])
