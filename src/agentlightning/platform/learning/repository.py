"""Queries of the table of experiments. Each takes the session of its caller."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.platform.auth.models import MAX_NUMBER
from agentlightning.platform.learning.models import CREATED, OPEN, RUNNING, Experiment


async def by_id(session: AsyncSession, number: int, *, lock: bool = False) -> Experiment | None:
    """The experiment with that number."""
    if not 0 < number <= MAX_NUMBER:
        return None
    query = select(Experiment).where(Experiment.id == number)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def by_name(session: AsyncSession, name: str) -> Experiment | None:
    """The experiment of that name."""
    return (await session.execute(select(Experiment).where(Experiment.name == name))).scalar_one_or_none()


async def page(
    session: AsyncSession, before: int | None, limit: int, *, status: str | None = None, agent_id: int | None = None
) -> Sequence[Experiment]:
    """Newest first."""
    query = select(Experiment).order_by(Experiment.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Experiment.id < before)
    if status is not None:
        query = query.where(Experiment.status == status)
    if agent_id is not None:
        query = query.where(Experiment.agent_id == agent_id)
    return (await session.execute(query)).scalars().all()


async def open_of(session: AsyncSession, agent_id: int) -> Experiment | None:
    """The agent's experiment that has not ended, if there is one."""
    query = select(Experiment).where(Experiment.agent_id == agent_id, Experiment.status.in_(OPEN)).limit(1)
    return (await session.execute(query)).scalar_one_or_none()


async def claim(session: AsyncSession, worker: str, moment: datetime, until: datetime) -> Experiment | None:
    """Take the oldest that waits, or whose worker has not been heard of."""
    lost = (Experiment.status == RUNNING) & (Experiment.lease_until < moment)
    query = (
        select(Experiment)
        .where(or_(Experiment.status == CREATED, lost))
        .order_by(Experiment.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    found = (await session.execute(query)).scalar_one_or_none()
    if found is None:
        return None
    found.status, found.worker, found.lease_until = RUNNING, worker, until
    found.start_time = found.start_time or moment
    found.attempts += 1
    return found
