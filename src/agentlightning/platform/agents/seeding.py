"""Makes rows of the agents that come with the program, at the first start and after updates.

A row that is still what was shipped follows the program's updates; one that somebody has changed or deleted is left
alone.
"""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from agentlightning.platform.agents import repository
from agentlightning.platform.agents import shipped as files
from agentlightning.platform.agents.models import DELETED
from agentlightning.platform.agents.service import keep
from agentlightning.platform.auth.repository import note
from agentlightning.platform.database import Database


async def seed(database: Database) -> list[str]:
    """Make rows of the shipped agents that have none, update those that nobody has changed; answers their names."""
    try:
        return await _seed(database)
    except IntegrityError:  # another worker was at it at the same moment: now its rows are there
        return await _seed(database)


async def _seed(database: Database) -> list[str]:
    wanted = {name: files.digest(name) for name in files.shipped_names()}
    async with database.read() as session:
        rows = {agent.name: agent.builtin for agent in await repository.all_agents(session, deleted=True)}
    stale = [name for name, found in wanted.items() if name not in rows or rows[name] not in (None, found)]
    if not stale:
        return []
    done: list[str] = []
    async with database.write() as session:
        for name in stale:
            agent = await repository.find(session, name, deleted=True, lock=True)
            if agent is not None and (agent.builtin in (None, wanted[name]) or agent.status == DELETED):
                continue
            reason = "shipped" if agent is None else "updated with the program"
            await keep(session, agent, files.shipped(name), reason, builtin=wanted[name])
            done.append(name)
        if done:
            note(session, "agent.shipped", ", ".join(done), agents=len(done))
    return done
