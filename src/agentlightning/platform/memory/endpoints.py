"""One's own memory over HTTP. Nobody reaches anybody else's, admins included."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.platform.context import current
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.memory.models import Conversation, Memory
from agentlightning.platform.memory.schemas import (
    Kind,
    MemoriesPage,
    MemoryChange,
    MemoryIn,
    MemoryOut,
    RecalledOut,
    RecallIn,
    SessionOut,
    SessionPage,
    SessionsPage,
)
from agentlightning.platform.memory.service import MemoryService

Limit = Annotated[int, Query(ge=1, le=200)]
Before = Annotated[int | None, Query(ge=1, le=2**62)]


async def list_sessions(request: Request, limit: Limit = 50, before: Before = None) -> Response:
    """Your sessions, newest first."""
    found = await _service(request).sessions(_me(), before, limit + 1)
    more = found[limit - 1].id if len(found) > limit else None
    return answer(SessionsPage(sessions=[_session(one) for one in found[:limit]], next=more))


async def get_session(
    session_id: str, request: Request, limit: Limit = 100, start: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0
) -> Response:
    """What was said in one of your sessions, word for word."""
    found = await _service(request).session(_me(), session_id, start, limit + 1)
    if found is None:
        raise NotFoundError("There is no such session.")
    session, entries = found
    more = start + limit if len(entries) > limit else None
    page: dict[str, Any] = {**_session(session).model_dump(), "entries": entries[:limit], "next": more}
    return answer(SessionPage(**page))


async def delete_session(session_id: str, request: Request) -> Response:
    """Forget one of your sessions."""
    await _service(request).forget_session(_me(), session_id)
    return answer(None, "Forgotten.")


async def list_memories(
    request: Request, limit: Limit = 50, before: Before = None, kind: Annotated[Kind | None, Query()] = None
) -> Response:
    """What is remembered for you, newest first."""
    found = await _service(request).memories(_me(), before, limit + 1, kind)
    more = found[limit - 1].id if len(found) > limit else None
    return answer(MemoriesPage(memories=[_memory(one) for one in found[:limit]], next=more))


async def remember(body: MemoryIn, request: Request) -> Response:
    """Remember something for you."""
    made = await _service(request).remember(
        _me(), body.text, kind=body.kind, session_id=body.session_id, metadata=body.metadata
    )
    return answer(_memory(made), "Remembered.", status=201)


async def recall(body: RecallIn, request: Request) -> Response:
    """What your memories say to a question, with the reason for each."""
    found = await _service(request).recall(_me(), body.text, body.limit, kind=body.kind)
    return answer([RecalledOut(**entry) for entry in found])


async def get_memory(memory_id: str, request: Request) -> Response:
    """One of your memories."""
    return answer(_memory(await _service(request).memory(_me(), _number(memory_id))))


async def change_memory(memory_id: str, body: MemoryChange, request: Request) -> Response:
    """Correct one of your memories."""
    if body.text is None and body.metadata is None:
        raise BadInputError("There is nothing to change.", hint="Give text or metadata.")
    changed = await _service(request).change(_me(), _number(memory_id), body.text, body.metadata)
    return answer(_memory(changed), "Changed.")


async def forget(memory_id: str, request: Request) -> Response:
    """Forget one of your memories."""
    await _service(request).forget(_me(), _number(memory_id))
    return answer(None, "Forgotten.")


def add_routes(app: FastAPI) -> None:
    """Add them."""
    base, tags = "/api/v2/memory", list[str | Enum](["memory"])
    sessions, one_session = f"{base}/sessions", f"{base}/sessions/{{session_id}}"
    memories, one = f"{base}/memories", f"{base}/memories/{{memory_id}}"
    memory, none = Success[MemoryOut], Success[None]
    app.add_api_route(sessions, list_sessions, methods=["GET"], response_model=Success[SessionsPage], tags=tags)
    app.add_api_route(one_session, get_session, methods=["GET"], response_model=Success[SessionPage], tags=tags)
    app.add_api_route(one_session, delete_session, methods=["DELETE"], response_model=none, tags=tags)
    app.add_api_route(memories, list_memories, methods=["GET"], response_model=Success[MemoriesPage], tags=tags)
    app.add_api_route(memories, remember, methods=["POST"], response_model=memory, status_code=201, tags=tags)
    app.add_api_route(
        f"{memories}/search", recall, methods=["POST"], response_model=Success[list[RecalledOut]], tags=tags
    )
    app.add_api_route(one, get_memory, methods=["GET"], response_model=memory, tags=tags)
    app.add_api_route(one, change_memory, methods=["PUT"], response_model=memory, tags=tags)
    app.add_api_route(one, forget, methods=["DELETE"], response_model=none, tags=tags)


def _service(request: Request) -> MemoryService:
    return request.app.state.platform.memory


def _me() -> int:
    return current().who.user_id


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise NotFoundError("There is no such memory.")
    return int(text)


def _session(found: Conversation) -> SessionOut:
    return SessionOut(
        session_id=found.session_id,
        messages=found.messages,
        summary=found.summary,
        summarised=found.summarised,
        truncated=found.truncated,
        created_at=found.created_at.timestamp(),
        updated_at=found.updated_at.timestamp(),
    )


def _memory(found: Memory) -> MemoryOut:
    return MemoryOut(
        id=found.id,
        text=found.text,
        kind=found.kind,
        session_id=found.session_id,
        metadata=found.about,
        created_at=found.created_at.timestamp(),
        updated_at=found.updated_at.timestamp(),
        recalled_at=None if found.recalled_at is None else found.recalled_at.timestamp(),
        recalls=found.recalls,
    )
