"""Tasks over HTTP. Whose task it is not, for that one there is none."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import WebSocketRoute

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.platform.api.task_events import event_stream, new_ticket, serve_websocket
from agentlightning.platform.context import current
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of
from agentlightning.platform.tasks import repository
from agentlightning.platform.tasks.models import COMPLETED, PENDING, RUNNING
from agentlightning.platform.tasks.room import Tasks
from agentlightning.platform.tasks.schemas import (
    AgentLoad,
    AssignedOut,
    AssignIn,
    AssignSuccess,
    ExecuteIn,
    FeedbackIn,
    FeedbackOut,
    Name,
    PoolOut,
    ResultOut,
    Status,
    TaskOut,
    TasksPage,
    TicketOut,
    TraceOut,
    error_out,
    task_out,
    task_view,
)
from agentlightning.platform.tasks.service import Assigned, Wish

Limit = Annotated[int, Query(ge=1, le=500)]
Number = Annotated[int, Query(ge=0, le=2**62)]
KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)]


async def assign(body: AssignIn, request: Request, key: KeyHeader = None) -> Response:
    """Give a task to an agent. It is kept and done when there is room; follow it by its number or at /ws/agents."""
    return _assigned(await tasks_of(request).service.assign(current().who, _wish(body, key)))


async def execute(body: ExecuteIn, request: Request, key: KeyHeader = None) -> Response:
    """Give a task to an agent and wait for its result, for at most `wait_s`; after that it goes on (202)."""
    service = tasks_of(request).service
    made = await service.assign(current().who, _wish(body, key))
    task, agent = await service.wait(current().who, made.task.id, body.wait_s)
    found = task_out(task, agent, AssignedOut, assigned_because=made.because)
    status = 202 if task.status in (PENDING, RUNNING) else 200
    return answer(found, f"The task is {task.status}.", status=status, task_id=task.id)


async def list_tasks(
    request: Request,
    limit: Limit = 50,
    before: Number | None = None,
    status: Status | None = None,
    agent: Annotated[Name | None, Query()] = None,
    session_id: Annotated[Name | None, Query()] = None,
) -> Response:
    """Your tasks, newest first; an admin's list has everybody's."""
    found = await tasks_of(request).service.page(
        current().who, before, limit + 1, agent, status=status, conversation=session_id
    )
    more = found[limit - 1][0].id if len(found) > limit else None
    return answer(TasksPage(tasks=[task_out(task, name) for task, name in found[:limit]], next=more))


async def get_task(task_id: str, request: Request) -> Response:
    """One task."""
    found = await tasks_of(request).service.look(current().who, _number(task_id))
    return answer(task_view(found, found.agent))


async def cancel_task(task_id: str, request: Request) -> Response:
    """End a task. What runs stops within moments."""
    found = await tasks_of(request).service.cancel(current().who, _number(task_id))
    return answer(task_out(*found), "Cancelled.")


async def get_result(task_id: str, request: Request, wait_s: Annotated[float, Query(ge=0, le=60)] = 0.0) -> Response:
    """What came out, waiting for it if asked to; 202 while it is not there."""
    task, _ = await tasks_of(request).service.wait(current().who, _number(task_id), wait_s)
    found = ResultOut(
        task_id=task.id,
        status=task.status,  # pyright: ignore[reportArgumentType] - one of the five
        result=task.result if task.status == COMPLETED else None,
        error=error_out(task),
    )
    return answer(found, status=202 if task.status in (PENDING, RUNNING) else 200)


async def get_trace(task_id: str, request: Request, limit: Limit = 100, offset: Number = 0) -> Response:
    """What was done: calls of the model and of tools, in order."""
    number = _number(task_id)
    service = tasks_of(request).service
    task, _ = await service.find(current().who, number)
    page = await service.trace(current().who, number, limit, offset)
    spans = [] if page is None else [span.model_dump(mode="json") for span in page.items]
    found = TraceOut(task_id=task.id, rollout_id=task.rollout_id, spans=spans, total=0 if page is None else page.total)
    return answer(found)


async def give_feedback(task_id: str, body: FeedbackIn, request: Request) -> Response:
    """Say what you think of a task's result; agents learn from it."""
    said = body.model_dump(exclude_none=True)
    if not said:
        raise BadInputError("Nothing is said.", hint="Give a score, a thumb or a comment.")
    number = _number(task_id)
    kept = await tasks_of(request).service.judge(current().who, number, **said)
    found = FeedbackOut(
        feedback_id=kept.feedback_id, task_id=number, score=kept.score, thumb=kept.thumb, comment=kept.comment
    )
    return answer(found, "Thank you.", status=201)


async def get_pool(request: Request) -> Response:
    """The workers and the queue."""
    room = tasks_of(request)
    async with room.database.read() as session:
        queued = await repository.queue_length(session)
        loads = await repository.load_of_agents(session)
        workers = await repository.workers(session)
    agents: dict[int, AgentLoad] = {}
    for number, name, kind, status, count in loads:
        load = agents.setdefault(number, AgentLoad(agent_id=number, agent=name, type=kind, pending=0, running=0))
        setattr(load, status, count)
    settings = room.settings
    found = PoolOut(
        queued=queued,
        running=sum(workers.values()),
        processes=workers,
        agents=list(agents.values()),
        worker=room.pool.name,
        size=room.pool.size,
        min_size=min(settings.task_workers_min, settings.task_workers_max),
        max_size=settings.task_workers_max,
        max_per_agent=settings.tasks_per_agent,
    )
    return answer(found)


async def make_ticket(request: Request) -> Response:
    """A ticket with which a browser opens one websocket."""
    ticket, expires_in = await new_ticket(tasks_of(request), current().who)
    return answer(TicketOut(ticket=ticket, expires_in=expires_in), status=201)


async def stream_events(
    request: Request,
    last_seq: Number | None = None,
    agent: Annotated[Name | None, Query()] = None,
    events: Annotated[str | None, Query(max_length=1_000)] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)] = None,
) -> Response:
    """Server-sent events of your tasks and of agents, from `last_seq` on; what is new without it."""
    if last_seq is None and last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        last_seq = min(int(last_event_id), 2**62)
    wanted = frozenset(filter(None, (events or "").split(",")))
    stream = await event_stream(tasks_of(request), current().who, last_seq, agent, wanted, request.scope)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def add_routes(app: FastAPI) -> None:
    """Add them."""
    one = "/api/v2/tasks/{task_id}"

    def add(method: str, path: str, endpoint: Any, model: Any, status: int = 200, *others: int) -> None:
        also: dict[int | str, dict[str, Any]] = {other: {"model": model} for other in others}
        app.add_api_route(
            path, endpoint, methods=[method], response_model=model, status_code=status, responses=also, tags=["tasks"]
        )

    add("POST", "/api/v2/agents/assign", assign, AssignSuccess, 201, 200)
    for path in ("/api/v2/agents/execute", "/agents/execute"):
        add("POST", path, execute, AssignSuccess, 200, 202)
    add("GET", "/api/v2/tasks", list_tasks, Success[TasksPage])
    for path in (one, "/api/v1/tasks/{task_id}"):
        add("GET", path, get_task, Success[TaskOut])
    add("POST", f"{one}/cancel", cancel_task, Success[TaskOut])
    add("GET", f"{one}/result", get_result, Success[ResultOut], 200, 202)
    add("GET", f"{one}/trace", get_trace, Success[TraceOut])
    add("POST", f"{one}/feedback", give_feedback, Success[FeedbackOut], 201)
    add("GET", "/api/v2/pool", get_pool, Success[PoolOut])
    add("POST", "/api/v2/ws-ticket", make_ticket, Success[TicketOut], 201)
    stream: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events"}
    }
    app.add_api_route(
        "/api/v2/events", stream_events, methods=["GET"], response_class=Response, responses=stream, tags=["tasks"]
    )
    app.router.routes.append(WebSocketRoute("/ws/agents", serve_websocket))


def tasks_of(request: Request) -> Tasks:
    """The tasks of the platform."""
    return platform_of(request.app.state).tasks


def _wish(body: AssignIn, key: str | None) -> Wish:
    if key is not None and body.idempotency_key not in (None, key):
        raise BadInputError("Header and body name different idempotency keys.")
    return Wish(
        task=body.task,
        agent=None if body.agent is None else str(body.agent),
        agent_type=body.agent_type,
        priority=body.priority,
        context=body.context,
        session_id=body.session_id,
        timeout_s=body.timeout_s,
        idempotency_key=key or body.idempotency_key,
        use_cache=body.cache,
    )


def _assigned(made: Assigned) -> Response:
    found = task_out(made.task, made.agent, AssignedOut, assigned_because=made.because)
    words = f"Assigned to {made.agent}." if made.is_new else "This was asked for before."
    return answer(found, words, status=201 if made.is_new else 200, task_id=made.task.id)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        error = NotFoundError("There is no such task.", hint="GET /api/v2/tasks lists yours.")
        error.code = "TASK_NOT_FOUND"
        raise error
    return int(text)
