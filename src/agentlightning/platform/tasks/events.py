"""What happened, in order, for whoever follows: read once per process, handed to all, replayed from any number.

The table is the truth. A follower that is slow reads from it at its own pace, so nothing piles up for it here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import BadInputError
from agentlightning.platform.columns import now
from agentlightning.platform.database import Database
from agentlightning.platform.tasks import repository
from agentlightning.platform.tasks.models import Event
from agentlightning.platform.tasks.wakes import Wakes

KEPT = 2_000
"""Events that are kept in memory for followers; older ones are read from the table."""
PAGE = 200
MAX_BYTES = 3_500
"""So that the whole message stays below 4 KB."""
TICK_S = 5.0


@dataclass(frozen=True)
class Happened:
    """An event as followers get it."""

    seq: int
    event: str
    at: str
    owner_id: int | None
    agent_id: int | None
    agent: str
    task_id: int | None
    data: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For a message; without the owner."""
        known = {"seq": self.seq, "event": self.event, "timestamp": self.at, "agent_id": self.agent_id}
        return {**known, "agent": self.agent, "task_id": self.task_id, **self.data}


class EventHub:
    """Follows the table while somebody follows it."""

    def __init__(self, database: Database, wakes: Wakes) -> None:
        self._database = database
        self._wakes = wakes
        self._kept: deque[Happened] = deque(maxlen=KEPT)
        self._read_to = 0
        self._changed = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None
        self.followers = 0

    def start(self) -> None:
        """Begin to read."""
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Read no more; followers end."""
        if self._reading is not None:
            await cancelled(self._reading)
            self._reading = None
        async with self._changed:
            self._changed.notify_all()

    @property
    def is_running(self) -> bool:
        """Whether there is more to come."""
        return self._reading is not None

    async def publish(
        self, event: str, *, agent_id: int | None = None, agent: str = "", owner_id: int | None = None, **data: Any
    ) -> None:
        """Note something that is not about a task, e.g. `training_update`; without `owner_id` for all who read agents.

        Args:
            event: What happened.
            agent_id: With which agent.
            agent: Its name.
            owner_id: Whose it is.
            data: A few numbers and words to look it up by; at most `MAX_BYTES` as JSON.

        Raises:
            BadInputError: It is more.
        """
        if len(orjson.dumps([event, agent, data])) > MAX_BYTES:
            raise BadInputError(f"An event has at most {MAX_BYTES} bytes.", hint="Keep the rest, and tell where it is.")
        row = Event(
            event=event, created_at=now(), agent_id=agent_id, agent=agent, owner_id=owner_id, task_id=None, data=data
        )
        async with self._database.write() as session:
            await repository.add_event(session, row)
        await self._wakes.tell()

    async def oldest_and_newest(self) -> tuple[int, int]:
        """The numbers that can be replayed."""
        async with self._database.read() as session:
            return await repository.event_range(session)

    async def follow(self, seq: int, sees: Callable[[Happened], bool]) -> AsyncGenerator[Happened | None]:
        """Everything after `seq` that `sees` lets through; `None` every few seconds in which there is nothing."""
        self.followers += 1
        try:
            while self.is_running:
                batch = await self._after(seq)
                for event in batch:
                    seq = event.seq
                    if sees(event):
                        yield event
                if not batch and not await self._more(seq):
                    yield None
        finally:
            self.followers -= 1

    async def _after(self, seq: int) -> list[Happened]:
        if self._kept and self._kept[0].seq <= seq + 1:
            return [event for event in self._kept if event.seq > seq][:PAGE]
        if seq >= self._read_to > 0:
            return []
        async with self._database.read() as session:
            return [_happened(row) for row in await repository.events_after(session, seq, PAGE)]

    async def _more(self, seq: int) -> bool:
        """Whether there is something new within a tick."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._read_to > seq or not self.is_running), TICK_S
                )
            except TimeoutError:
                return False
            return True

    async def _read(self) -> None:
        with self._wakes.ear() as event:
            while True:
                event.clear()
                try:
                    more = await self._read_page()
                except (SQLAlchemyError, OSError):  # the database is away; health says so
                    more = False
                if not more:
                    await self._wakes.wait(event)

    async def _read_page(self) -> bool:
        if self._read_to == 0:
            async with self._database.read() as session:
                self._read_to = (await repository.event_range(session))[1]
        async with self._database.read() as session:
            rows = await repository.events_after(session, self._read_to, PAGE)
        if not rows:
            return False
        async with self._changed:
            self._kept.extend(_happened(row) for row in rows)
            self._read_to = rows[-1].seq
            self._changed.notify_all()
        return len(rows) == PAGE


def _happened(row: Event) -> Happened:
    at = row.created_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Happened(row.seq, row.event, at, row.owner_id, row.agent_id, row.agent, row.task_id, row.data)
