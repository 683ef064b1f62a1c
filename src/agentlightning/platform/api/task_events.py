"""Events to followers: by websocket at /ws/agents with subscriptions, or as server-sent events.

Whoever follows sees the events of its own tasks, admins everybody's. A connection ends when the login or key that it
came with does, or when its user gets another role. A reader that does not read is cut off; it comes back with the
number of the last event it has seen, and misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.websockets import WebSocket, WebSocketDisconnect

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, BadInputError
from agentlightning.kit.http import unless_stopping
from agentlightning.platform.auth.tickets import TICKET_S
from agentlightning.platform.context import Identity
from agentlightning.platform.database import is_unavailable
from agentlightning.platform.limits import TooManyError
from agentlightning.platform.middleware import refuse
from agentlightning.platform.state import platform_of
from agentlightning.platform.tasks.events import Happened
from agentlightning.platform.tasks.room import Tasks
from agentlightning.platform.tasks.schemas import Name

PROTOCOL = "agl.events"
MAX_SUBSCRIPTIONS = 100
MAX_CONNECTIONS = 50
"""Of one user, in one process."""
_SEND_S = 10.0
_CHECK_S = 1.0
_BURST, _BURST_S = 100, 10.0

_connections: Counter[int] = Counter()


class TooManyConnectionsError(TooManyError):
    """The user follows over as many connections as one may have."""

    code = "TOO_MANY_CONNECTIONS"


class _Asked(BaseModel):
    """What a client may say."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["subscribe", "unsubscribe", "ping"]
    agent_id: Name | int | None = None
    """Number or name; without one all agents."""
    events: Annotated[list[Name], Field(max_length=50)] | None = None
    """Without any all events."""
    task_id: Annotated[int, Field(ge=1, le=2**62)] | None = None
    last_seq: Annotated[int, Field(ge=0, le=2**62)] | None = None
    """Replay what came after this event."""


@dataclass
class _Subscription:
    """What somebody wants to see, and how far it has."""

    agent_id: int | None
    events: frozenset[str]
    task_id: int | None
    seen: int

    def wants(self, event: Happened) -> bool:
        return (
            event.seq > self.seen
            and (self.agent_id is None or event.agent_id == self.agent_id)
            and (not self.events or event.event in self.events)
            and (self.task_id is None or event.task_id == self.task_id)
        )

    def is_for(self, other: _Subscription) -> bool:
        return (self.agent_id, self.task_id) == (other.agent_id, other.task_id)


async def new_ticket(tasks: Tasks, who: Identity) -> tuple[str, int]:
    """A ticket and for how many seconds it is good."""
    return await tasks.tickets.give(who), TICKET_S


async def serve_websocket(websocket: WebSocket) -> None:
    """`/ws/agents`."""
    who: Identity = websocket.scope["state"]["context"].who
    tasks = platform_of(websocket.app.state).tasks
    # A browser that asks for protocols gives up unless one of them is chosen; never the one with the ticket.
    offered = websocket.scope.get("subprotocols", [])
    if _connections[who.user_id] >= MAX_CONNECTIONS:
        hint = f"Close one: each takes {MAX_SUBSCRIPTIONS} subscriptions."
        error = TooManyConnectionsError(f"You have {MAX_CONNECTIONS} connections here.", hint=hint)
        await refuse(error, websocket.scope, websocket.receive, websocket.send)
        return
    _connections[who.user_id] += 1
    try:
        await websocket.accept(PROTOCOL if PROTOCOL in offered else None)
        await _Connection(websocket, tasks, who).run()
    finally:
        _connections[who.user_id] -= 1
        if not _connections[who.user_id]:
            del _connections[who.user_id]


def may_see(who: Identity) -> Callable[[Happened], bool]:
    """Whether an event is somebody's business."""
    return lambda event: event.owner_id is None or event.owner_id == who.user_id or who.role == "admin"


class _Connection:
    def __init__(self, websocket: WebSocket, tasks: Tasks, who: Identity) -> None:
        self._websocket = websocket
        self._tasks = tasks
        self._who = who
        self._subscriptions: list[_Subscription] = []
        self._sending = asyncio.Lock()
        self._changed = asyncio.Event()
        self._times: deque[float] = deque(maxlen=_BURST)
        self._close = (1000, "")

    async def run(self) -> None:
        """Until one side has had enough."""
        parts = [asyncio.create_task(part()) for part in (self._listen, self._tell, self._watch)]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        except (WebSocketDisconnect, OSError):
            return
        except SQLAlchemyError as error:
            if not is_unavailable(error):
                raise
            self._close = (1013, "DATABASE_UNAVAILABLE")  # try again later
        finally:
            await cancelled(*parts)
        with contextlib.suppress(RuntimeError, OSError, TimeoutError):  # it may be closed from there meanwhile
            await asyncio.wait_for(self._websocket.close(*self._close), _SEND_S)

    async def _listen(self) -> None:
        while True:
            raw = await self._websocket.receive()
            if raw["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(raw.get("code", 1000))
            if not self._is_calm():
                self._close = (4429, "TOO_MANY_MESSAGES")
                return
            try:
                await self._do(_Asked.model_validate(_parsed(raw)))
            except ValidationError as error:
                faults = "; ".join(f"{'.'.join(map(str, at['loc']))}: {at['msg']}" for at in error.errors()[:5])
                await self._send(_error(BadInputError(f"This is no message: {faults}", hint=_HINT)))
            except AgentLightningError as error:
                await self._send(_error(error))

    def _is_calm(self) -> bool:
        moment = time.monotonic()
        self._times.append(moment)
        return len(self._times) < _BURST or moment - self._times[0] > _BURST_S

    async def _do(self, asked: _Asked) -> None:
        if asked.action == "ping":
            await self._send({"type": "pong"})
            return
        agent = None if asked.agent_id is None else (await self._tasks.agents.find(asked.agent_id)).id
        oldest, newest = await self._tasks.events.oldest_and_newest()
        seen = newest if asked.last_seq is None else asked.last_seq
        wanted = _Subscription(agent, frozenset(asked.events or ()), asked.task_id, seen)
        self._subscriptions = [each for each in self._subscriptions if not each.is_for(wanted)]
        told: dict[str, Any] = {"agent_id": asked.agent_id, "events": asked.events or [], "task_id": asked.task_id}
        if asked.action == "subscribe":
            if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
                raise TooManyError(f"{MAX_SUBSCRIPTIONS} subscriptions are the most.")
            told |= {"last_seq": seen, "complete": seen + 1 >= oldest}
            await self._send({"type": "subscribed", **told})
            self._subscriptions.append(wanted)
        else:
            await self._send({"type": "unsubscribed", **told})
        self._changed.set()

    async def _tell(self) -> None:
        """Events to the subscriptions, each from where it is; from the beginning of the newest one when they change."""
        sees = may_see(self._who)
        while True:
            self._changed.clear()
            if not self._subscriptions:
                await self._changed.wait()
                continue
            start = min(each.seen for each in self._subscriptions)
            async with contextlib.aclosing(
                self._tasks.events.follow(start, lambda event: sees(event) and self._wanted(event))
            ) as following:
                async for event in following:
                    if event is not None:
                        await self._deliver(event)
                    if self._changed.is_set():
                        break
                else:
                    self._close = (1012, "RESTARTING")
                    return

    def _wanted(self, event: Happened) -> bool:
        return any(each.wants(event) for each in self._subscriptions)

    async def _deliver(self, event: Happened) -> None:
        for each in self._subscriptions:
            if each.wants(event):
                each.seen = event.seq
        await self._send({"type": "event", **event.as_dict()})

    async def _watch(self) -> None:
        standing = self._tasks.tickets.standing(self._who)
        while True:
            await asyncio.sleep(_CHECK_S)
            if not await standing.holds():
                break
        self._close = (4401, "LOGIN_ENDED")

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._sending:
            try:
                await asyncio.wait_for(self._websocket.send_text(orjson.dumps(message).decode()), _SEND_S)
            except TimeoutError as error:
                raise WebSocketDisconnect(4408, "READER_TOO_SLOW") from error


async def event_stream(
    tasks: Tasks,
    who: Identity,
    last_seq: int | None,
    agent: str | None,
    events: frozenset[str],
    scope: Mapping[str, Any],
) -> AsyncGenerator[bytes]:
    """Server-sent events; the number of each is its id, so that browsers go on where they were.

    They end when the server that `scope` is of begins to stop.

    Raises:
        AgentNotFoundError: There is no such agent.
    """
    number = None if agent is None else (await tasks.agents.find(agent)).id
    oldest, newest = await tasks.events.oldest_and_newest()
    wanted = _Subscription(number, events, None, newest if last_seq is None else last_seq)
    sees = may_see(who)

    async def stream() -> AsyncGenerator[bytes]:
        gap = "" if wanted.seen + 1 >= oldest else f", those before {oldest} are gone"
        yield f"retry: 2000\n: from {wanted.seen}{gap}\n\n".encode()
        checked = time.monotonic()
        standing = tasks.tickets.standing(who)
        following = tasks.events.follow(wanted.seen, lambda event: sees(event) and wanted.wants(event))
        async with contextlib.aclosing(following):
            async for event in following:
                if time.monotonic() - checked > _CHECK_S:
                    if not await standing.holds():
                        return
                    checked = time.monotonic()
                yield b": still here\n\n" if event is None else _as_sse(event)

    async def guarded() -> AsyncGenerator[bytes]:
        try:
            async with contextlib.aclosing(stream()) as pieces:
                while (piece := await unless_stopping(scope, anext(pieces, None))) is not None:
                    yield piece
            yield b": over; come back with the last id\n\n"
        except SQLAlchemyError as error:
            if not is_unavailable(error):
                raise
            yield b": the database does not answer; come back with the last id\n\n"

    return guarded()


_HINT = '{"action": "subscribe", "agent_id": "data_agent", "events": ["task_completed"]}'


def _parsed(raw: Any) -> Any:
    text = raw.get("text")
    if text is None:
        raise BadInputError("Messages are JSON in text frames.", hint=_HINT)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInputError("This is no JSON.", hint=_HINT) from error


def _error(error: AgentLightningError) -> dict[str, Any]:
    return {"type": "error", "error": error.as_dict()}


def _as_sse(event: Happened) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.event.encode(), orjson.dumps(event.as_dict()))
