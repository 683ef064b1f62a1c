"""Queries and changes of the tasks' tables. Each takes the session of its caller, whose transaction it is part of.

Whoever ends a task does so by one conditional update and notes the event in the same transaction: it ends once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, Select, bindparam, delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.platform.agents.models import ACTIVE, Agent
from agentlightning.platform.auth.models import MAX_NUMBER, NUMBER, User
from agentlightning.platform.columns import now
from agentlightning.platform.database import NOTIFY
from agentlightning.platform.lookups import Lookup
from agentlightning.platform.tasks.models import CANCELLED, FAILED, PENDING, RUNNING, Event, Task, TaskRow

_EVENTS_LOCK = 0x41474C33  # advisory, PostgreSQL
_WORDS = {
    PENDING: "task_queued",
    RUNNING: "task_started",
    "completed": "task_completed",
    FAILED: "task_failed",
    CANCELLED: "task_cancelled",
}


_LOOK = (
    select(*(getattr(Task, name) for name in TaskRow._fields if name != "agent"), Agent.name)
    .join(Agent, Agent.id == Task.agent_id)
    .where(Task.id == bindparam("task", type_=NUMBER))
)
LOOK_ANY = Lookup(_LOOK)
"""A `TaskRow`, whoever's."""
LOOK_OWN = Lookup(_LOOK.where(Task.owner_id == bindparam("owner", type_=NUMBER)))
"""A `TaskRow`, if it is the owner's."""


async def find(session: AsyncSession, task_id: int, owner_id: int | None) -> Task | None:
    """The task, if `owner_id` is its owner's; `None` for whoever may see all."""
    if not 0 < task_id <= MAX_NUMBER:
        return None
    query = select(Task).where(Task.id == task_id)
    return (await session.execute(_of(query, owner_id))).scalar_one_or_none()


async def by_key(session: AsyncSession, owner_id: int, key: str) -> Task | None:
    """The task that was made with this idempotency key."""
    query = select(Task).where(Task.owner_id == owner_id, Task.idempotency_key == key)
    return (await session.execute(query)).scalar_one_or_none()


async def page(
    session: AsyncSession,
    owner_id: int | None,
    before: int | None,
    limit: int,
    *,
    status: str | None = None,
    agent_id: int | None = None,
    conversation: str | None = None,
) -> list[Task]:
    """Newest first."""
    query = _of(select(Task).order_by(Task.id.desc()).limit(limit), owner_id)
    wanted = {Task.status: status, Task.agent_id: agent_id, Task.session_id: conversation}
    for column, value in wanted.items():
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(Task.id < before)
    return list((await session.execute(query)).scalars())


async def agent_names(session: AsyncSession, numbers: Iterable[int]) -> dict[int, str]:
    """Names of agents, deleted ones included."""
    rows = await session.execute(select(Agent.id, Agent.name).where(Agent.id.in_(set(numbers))))
    return {row.id: row.name for row in rows}


async def unfinished_of(session: AsyncSession, owner_id: int) -> int:
    """How many tasks of a user wait or run."""
    query = select(func.count()).where(Task.owner_id == owner_id, Task.status.in_((PENDING, RUNNING)))
    return (await session.execute(query)).scalar_one()


async def queue_length(session: AsyncSession) -> int:
    """Tasks that could be started now."""
    query = select(func.count()).where(Task.status == PENDING, Task.not_before <= now())
    return (await session.execute(query)).scalar_one()


async def load_of_agents(session: AsyncSession) -> list[tuple[int, str, str, str, int]]:
    """Unfinished tasks by agent and status: number, name, type, status, count."""
    query = (
        select(Agent.id, Agent.name, Agent.type, Task.status, func.count())
        .join(Agent, Agent.id == Task.agent_id)
        .where(Task.status.in_((PENDING, RUNNING)))
        .group_by(Agent.id, Agent.name, Agent.type, Task.status)
        .order_by(Agent.id)
    )
    return [(row[0], row[1], row[2], row[3], row[4]) for row in await session.execute(query)]


async def history_of_agent(session: AsyncSession, agent_id: int) -> list[tuple[str, int, float | None]]:
    """Status, count and mean milliseconds of an agent's tasks."""
    query = (
        select(Task.status, func.count(), func.avg(Task.execution_time_ms))
        .where(Task.agent_id == agent_id)
        .group_by(Task.status)
    )
    return [(row[0], row[1], row[2]) for row in await session.execute(query)]


async def workers(session: AsyncSession) -> dict[str, int]:
    """Who runs how many tasks."""
    query = select(Task.leased_by, func.count()).where(Task.status == RUNNING).group_by(Task.leased_by)
    found: Counter[str] = Counter()
    for lease, count in (await session.execute(query)).tuples():
        found[str(lease).partition(":")[0]] += count
    return dict(found)


async def next_start(session: AsyncSession) -> datetime | None:
    """When the next task that waits for its time may be started."""
    query = select(func.min(Task.not_before)).where(Task.status == PENDING, Task.not_before > now())
    return (await session.execute(query)).scalar_one()


async def claim(session: AsyncSession, lease: str, lease_s: float, per_agent: int) -> Task | None:
    """Take the task whose turn it is, of an agent that is not busy; others claiming at the same time take others.

    `lease` is a name of this one claim: `WORKER:NUMBER`.
    """
    moment = now()
    busy = select(Task.agent_id).where(Task.status == RUNNING).group_by(Task.agent_id).having(func.count() >= per_agent)
    able = select(Agent.id).where(Agent.status == ACTIVE, Agent.id.not_in(busy))
    picked = (
        select(Task.id)
        .where(Task.status == PENDING, Task.not_before <= moment, Task.deadline_at > moment, Task.agent_id.in_(able))
        .order_by(Task.turn_s, Task.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    change = (
        update(Task)
        .where(Task.id.in_(select(picked.c.id)), Task.status == PENDING)
        .values(
            status=RUNNING,
            leased_by=lease,
            lease_until=moment + timedelta(seconds=lease_s),
            attempts=Task.attempts + 1,
            agent_generation=select(Agent.generation).where(Agent.id == Task.agent_id).scalar_subquery(),
            started_at=func.coalesce(Task.started_at, moment, type_=Task.started_at.type),
        )
        .returning(Task)
        .execution_options(synchronize_session=False)
    )
    return (await session.execute(change)).scalar_one_or_none()


async def renew(session: AsyncSession, leases: Iterable[str], lease_s: float) -> set[str]:
    """Prolong leases; answers which ones still hold.

    Not whatever is in the worker's name: a claim whose commit was not confirmed is nobody's work, and has to run out.
    """
    change = (
        update(Task)
        .where(Task.leased_by.in_(list(leases)), Task.status == RUNNING)
        .values(lease_until=now() + timedelta(seconds=lease_s))
        .returning(Task.leased_by)
        .execution_options(synchronize_session=False)
    )
    return {str(lease) for lease in (await session.execute(change)).scalars()}


async def held(session: AsyncSession, leases: Iterable[str]) -> set[str]:
    """Those of the leases that hold."""
    query = select(Task.leased_by).where(Task.leased_by.in_(list(leases)), Task.status == RUNNING)
    return {str(lease) for lease in (await session.execute(query)).scalars()}


async def owner(session: AsyncSession, user_id: int) -> tuple[str, str] | None:
    """Name and role of a user; `None` when it is gone or disabled."""
    query = select(User.username, User.role).where(User.id == user_id, User.disabled.is_(False))
    row = (await session.execute(query)).one_or_none()
    return None if row is None else (row[0], row[1])


async def note_run(session: AsyncSession, task_id: int, rollout_id: str, agent_version: int) -> None:
    """Where the task's record is, and which definition runs it."""
    change = update(Task).where(Task.id == task_id).values(rollout_id=rollout_id, agent_version=agent_version)
    await session.execute(change)


async def end(session: AsyncSession, task_id: int, lease: str | None, status: str, **values: Any) -> Task | None:
    """End a task that runs under `lease`, or that anybody may end (`None`); answers `None` if that is over."""
    where = [Task.id == task_id, Task.status.in_((PENDING, RUNNING) if lease is None else (RUNNING,))]
    if lease is not None:
        where.append(Task.leased_by == lease)
    moment = now()
    change = (
        update(Task)
        .where(*where)
        .values(status=status, completed_at=moment, leased_by=None, lease_until=None, **values)
        .returning(Task)
        .execution_options(synchronize_session=False)
    )
    return (await session.execute(change)).scalar_one_or_none()


async def put_back(session: AsyncSession, task_id: int, lease: str | None, *, delay_s: float, **values: Any) -> bool:
    """Let the task be started again later; whether the lease still held."""
    change = (
        update(Task)
        .where(Task.id == task_id, Task.status == RUNNING, Task.leased_by == lease)
        .values(
            status=PENDING,
            leased_by=None,
            lease_until=None,
            not_before=now() + timedelta(seconds=delay_s),
            **values,
        )
    )
    return _count(await session.execute(change)) == 1


async def hand_back(session: AsyncSession, worker: str) -> None:
    """Let others run what a worker has; the attempts do not count."""
    change = (
        update(Task)
        .where(_of_worker(worker), Task.status == RUNNING)
        .values(status=PENDING, leased_by=None, lease_until=None, attempts=Task.attempts - 1, not_before=now())
    )
    await session.execute(change)


async def put_back_agent(session: AsyncSession, agent_id: int, generation: int) -> int:
    """Start tasks anew that an agent began before it was restarted; how many."""
    change = (
        update(Task)
        .where(Task.agent_id == agent_id, Task.status == RUNNING, Task.agent_generation < generation)
        .values(status=PENDING, leased_by=None, lease_until=None, attempts=Task.attempts - 1, not_before=now())
    )
    return _count(await session.execute(change))


async def unfinished_of_agent(session: AsyncSession, agent_id: int) -> list[int]:
    """Tasks of an agent that wait or run."""
    query = select(Task.id).where(Task.agent_id == agent_id, Task.status.in_((PENDING, RUNNING)))
    return list((await session.execute(query)).scalars())


async def lost(session: AsyncSession) -> list[Task]:
    """Running tasks whose lease is over, held until the transaction ends."""
    query = select(Task).where(Task.status == RUNNING, Task.lease_until < now()).limit(100)
    return list((await session.execute(query.with_for_update(skip_locked=True))).scalars())


async def troubled(session: AsyncSession) -> bool:
    """Whether there is something to tidy."""
    moment = now()
    lost_ones = (Task.status == RUNNING) & (Task.lease_until < moment)
    query = select(Task.id).where(Task.status.in_((PENDING, RUNNING)), lost_ones | (Task.deadline_at < moment)).limit(1)
    return (await session.execute(query)).first() is not None


async def active_types(session: AsyncSession) -> dict[str, int]:
    """How many agents of each type are active."""
    query = select(Agent.type, func.count()).where(Agent.status == ACTIVE).group_by(Agent.type)
    return {row[0]: row[1] for row in await session.execute(query)}


async def overdue(session: AsyncSession) -> list[int]:
    """Unfinished tasks past their deadline."""
    query = select(Task.id).where(Task.status.in_((PENDING, RUNNING)), Task.deadline_at < now()).limit(100)
    return list((await session.execute(query)).scalars())


async def add_event(session: AsyncSession, event: Event) -> None:
    """Note what happened. Last in a transaction: its number is that of the order of commits."""
    if await notify(session):  # SQLite has one writer at a time anyway
        await session.execute(text("SELECT pg_advisory_xact_lock(:n, hashtext(current_schema()))"), {"n": _EVENTS_LOCK})
    session.add(event)
    await session.flush()


async def notify(session: AsyncSession) -> bool:
    """Have the database wake the other processes when this is committed; whether it can."""
    if session.get_bind().dialect.name != "postgresql":
        return False
    await session.execute(NOTIFY)
    return True


async def note_task(session: AsyncSession, task: Task, agent: str, event: str = "", **data: Any) -> None:
    """Note that the task has its status now, or something else of it."""
    await add_event(
        session,
        Event(
            event=event or _WORDS[task.status],
            created_at=now(),
            owner_id=task.owner_id,
            agent_id=task.agent_id,
            agent=agent,
            task_id=task.id,
            data={"status": task.status, **data},
        ),
    )


async def events_after(session: AsyncSession, seq: int, limit: int) -> list[Event]:
    """Events with larger numbers, in their order."""
    query = select(Event).where(Event.seq > seq).order_by(Event.seq).limit(limit)
    return list((await session.execute(query)).scalars())


async def event_range(session: AsyncSession) -> tuple[int, int]:
    """The smallest and the largest number there is; 0 and 0 without events."""
    row = (await session.execute(select(func.min(Event.seq), func.max(Event.seq)))).one()
    return row[0] or 0, row[1] or 0


async def forget_events(session: AsyncSession, before: datetime, keep: int) -> None:
    """Remove old events, but none of the newest `keep`."""
    newest = (await session.execute(select(func.max(Event.seq)))).scalar_one() or 0
    await session.execute(delete(Event).where(Event.created_at < before, Event.seq <= newest - keep))


def _of_worker(worker: str) -> Any:
    return Task.leased_by.startswith(f"{worker}:", autoescape=True)


def _of(query: Select[Any], owner_id: int | None) -> Select[Any]:
    return query if owner_id is None else query.where(Task.owner_id == owner_id)


def _count(done: object) -> int:
    return cast("CursorResult[Any]", done).rowcount


def ended_values(
    *, error: dict[str, str] | None = None, result: dict[str, Any] | None = None, elapsed_s: float | None = None
) -> dict[str, Any]:
    """What is kept of how a task ended."""
    values: dict[str, Any] = {}
    if error is not None:
        values |= {"error_code": error["code"][:64], "error_message": error["message"], "error_hint": error["hint"]}
    if result is not None:
        values |= {"result": result, "error_code": None, "error_message": None, "error_hint": None}
    if elapsed_s is not None:
        values["execution_time_ms"] = round(1000 * elapsed_s)
    return values
