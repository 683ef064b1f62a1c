"""Queries and changes of the agents' tables. Each takes the session of its caller, whose transaction it is part of."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.platform.agents.models import ACTIVE, DELETED, Agent, AgentCapability, AgentEvaluation, AgentVersion
from agentlightning.platform.auth.models import MAX_NUMBER, NUMBER
from agentlightning.platform.lookups import Lookup


async def find(
    session: AsyncSession, id_or_name: int | str, *, deleted: bool = False, lock: bool = False
) -> Agent | None:
    """By number or name; deleted ones only when asked for."""
    query = _named(id_or_name)
    if query is None:
        return None
    if not deleted:
        query = query.where(Agent.status != DELETED)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def page(
    session: AsyncSession,
    after: int,
    limit: int,
    *,
    type: str | None = None,
    status: str | None = None,
    capability: str | None = None,
) -> list[Agent]:
    """By number, without the deleted ones unless their status is asked for."""
    query = _filtered(select(Agent), after, limit, type, status, capability)
    return list((await session.execute(query)).scalars())


_PLAIN = (
    Agent.id,
    Agent.name,
    Agent.type,
    Agent.description,
    Agent.status,
    Agent.version,
    Agent.builtin,
    Agent.created_at,
    Agent.updated_at,
    Agent.last_activity,
)
OF_CONFIG = ("role", "capabilities", "tools", "model")


SUMMARIES = Lookup(
    select(*_PLAIN)
    .where(Agent.id > bindparam("after", type_=NUMBER), Agent.status != DELETED)
    .order_by(Agent.id)
    .limit(bindparam("limit", type_=Integer))
)
"""As `summaries` without filters, without what is in the definitions."""
SUMMARY = tuple(column.key for column in _PLAIN)


async def summaries(
    session: AsyncSession,
    after: int,
    limit: int,
    *,
    type: str | None = None,
    status: str | None = None,
    capability: str | None = None,
) -> list[dict[str, Any]]:
    """As `page`, without what is large in a definition: the database picks the rest out of it."""
    columns = (*_PLAIN, *(Agent.config[name].label(name) for name in OF_CONFIG))
    query = _filtered(select(*columns), after, limit, type, status, capability)
    return [dict(row) for row in (await session.execute(query)).mappings()]


async def ids(session: AsyncSession) -> list[int]:
    """Of all agents but the deleted ones."""
    return list((await session.execute(select(Agent.id).where(Agent.status != DELETED).order_by(Agent.id))).scalars())


async def states(session: AsyncSession, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """How these agents are."""
    columns = (Agent.id, Agent.name, Agent.type, Agent.status, Agent.version, Agent.generation, Agent.last_activity)
    query = select(*columns).where(Agent.id.in_(list(numbers)))
    return [dict(row) for row in (await session.execute(query)).mappings()]


async def able_agents(session: AsyncSession, capabilities: Iterable[str]) -> list[Agent]:
    """Active agents that have at least one of these capabilities: those with most of them first, then by number."""
    counted = (
        select(AgentCapability.agent_id, func.count().label("n"))
        .where(AgentCapability.capability.in_(list(capabilities)))
        .group_by(AgentCapability.agent_id)
        .subquery()
    )
    query = select(Agent).join(counted, counted.c.agent_id == Agent.id).where(Agent.status == ACTIVE)
    return list((await session.execute(query.order_by(counted.c.n.desc(), Agent.id))).scalars())


async def set_capabilities(session: AsyncSession, agent_id: int, capabilities: Iterable[str]) -> None:
    """Replace them."""
    await session.execute(delete(AgentCapability).where(AgentCapability.agent_id == agent_id))
    session.add_all(AgentCapability(agent_id=agent_id, capability=name) for name in capabilities)


async def all_agents(session: AsyncSession, *, deleted: bool = False) -> list[Agent]:
    """By number."""
    query = select(Agent).order_by(Agent.id)
    return list((await session.execute(query if deleted else query.where(Agent.status != DELETED))).scalars())


async def version(session: AsyncSession, agent_id: int, number: int) -> AgentVersion | None:
    """One version of an agent."""
    query = select(AgentVersion).where(AgentVersion.agent_id == agent_id, AgentVersion.version == number)
    return (await session.execute(query)).scalar_one_or_none() if 0 < number < 2**31 else None


async def versions(session: AsyncSession, agent_id: int, before: int | None, limit: int) -> list[AgentVersion]:
    """Newest first."""
    query = select(AgentVersion).where(AgentVersion.agent_id == agent_id)
    if before is not None:
        query = query.where(AgentVersion.version < before)
    return list((await session.execute(query.order_by(AgentVersion.version.desc()).limit(limit))).scalars())


async def evaluation(
    session: AsyncSession, agent_id: int, number: int, *, lock: bool = False
) -> AgentEvaluation | None:
    """One evaluation of an agent."""
    if not 0 < number <= MAX_NUMBER:
        return None
    query = select(AgentEvaluation).where(AgentEvaluation.agent_id == agent_id, AgentEvaluation.id == number)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def evaluations(session: AsyncSession, agent_id: int, before: int | None, limit: int) -> list[AgentEvaluation]:
    """Newest first."""
    query = select(AgentEvaluation).where(AgentEvaluation.agent_id == agent_id)
    if before is not None:
        query = query.where(AgentEvaluation.id < before)
    return list((await session.execute(query.order_by(AgentEvaluation.id.desc()).limit(limit))).scalars())


async def is_being_evaluated(session: AsyncSession, agent_id: int, moment: datetime) -> bool:
    """Whether some process is at it, or will go on with it."""
    at_work = (AgentEvaluation.status == "running") & ~_is_over(moment)
    query = select(AgentEvaluation.id).where(AgentEvaluation.agent_id == agent_id, at_work).limit(1)
    return (await session.execute(query)).first() is not None


async def end_overdue(session: AsyncSession, agent_id: int, moment: datetime) -> None:
    """Call one interrupted that nobody is at any more although its time is over."""
    overdue = (AgentEvaluation.agent_id == agent_id) & (AgentEvaluation.status == "running") & _is_over(moment)
    await session.execute(update(AgentEvaluation).where(overdue).values(status="interrupted", finished_at=moment))


def _is_over(moment: datetime) -> ColumnElement[bool]:
    is_left = AgentEvaluation.lease_until.is_(None) | (AgentEvaluation.lease_until <= moment)
    return (AgentEvaluation.deadline_at < moment) & is_left


async def left_evaluation(session: AsyncSession, moment: datetime, busy: list[int]) -> AgentEvaluation | None:
    """The oldest whose process has not been heard of, locked; none of the agents `busy`."""
    query = (
        select(AgentEvaluation)
        .where(AgentEvaluation.status == "running", AgentEvaluation.lease_until < moment)
        .where(AgentEvaluation.agent_id.not_in(busy))
        .order_by(AgentEvaluation.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return (await session.execute(query)).scalar_one_or_none()


def _filtered(
    query: Any, after: int, limit: int, type: str | None, status: str | None, capability: str | None
) -> Select[Any]:
    query = query.where(Agent.id > after).order_by(Agent.id).limit(limit)
    query = query.where(Agent.status == status) if status is not None else query.where(Agent.status != DELETED)
    if type is not None:
        query = query.where(Agent.type == type)
    if capability is not None:
        able = select(AgentCapability.agent_id).where(AgentCapability.capability == capability)
        query = query.where(Agent.id.in_(able))
    return query


def _named(id_or_name: int | str) -> Select[Any] | None:
    text = str(id_or_name)
    if not text.isascii() or not text.isdigit():
        return select(Agent).where(Agent.name == text) if "\0" not in text else None
    return select(Agent).where(Agent.id == int(text)) if len(text) < 20 and int(text) <= MAX_NUMBER else None
