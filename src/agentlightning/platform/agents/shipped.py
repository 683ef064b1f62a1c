"""The agents that come with the program: read from `definitions/`, made into rows at the first start.

A row that is still what was shipped follows the program's updates; one that somebody has changed or deleted is left
alone.
"""

from __future__ import annotations

import functools
import hashlib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from agentlightning.kit.errors import ConfigError, NotFoundError
from agentlightning.platform.agents import repository
from agentlightning.platform.agents.models import DELETED
from agentlightning.platform.agents.service import keep
from agentlightning.platform.auth.repository import note
from agentlightning.platform.database import Database
from agentlightning.schemas.agent import AgentDefinition

FOLDER = Path(__file__).parent / "definitions"


@functools.cache
def shipped_names() -> tuple[str, ...]:
    """Of all agents that come with the program."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def digest(name: str) -> str:
    """Of a shipped definition's file; another content has another one."""
    return hashlib.sha256(_path(name).read_bytes()).hexdigest()


def shipped(name: str) -> AgentDefinition:
    """The definition of that name as it comes with the program.

    Raises:
        NotFoundError: There is none.
        ConfigError: The file holds no definition.
    """
    return read_definition(_path(name))


def read_definition(path: Path) -> AgentDefinition:
    """From a TOML file, whose name is the agent's.

    Raises:
        ConfigError: It holds no definition; the message says what is wrong with it.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return AgentDefinition.model_validate({"name": path.stem, **data})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}.") from error
    except ValidationError as error:
        raise ConfigError(f"{path.name} is no agent: {problems_of(error)}") from error


def problems_of(error: ValidationError) -> str:
    """What is wrong with a definition, in a line; without the values."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'as a whole'}: {item['msg']}" for item in found[:10])


async def seed(database: Database) -> list[str]:
    """Make rows of the shipped agents that have none, update those that nobody has changed; answers their names."""
    try:
        return await _seed(database)
    except IntegrityError:  # another worker was at it at the same moment: now its rows are there
        return await _seed(database)


async def _seed(database: Database) -> list[str]:
    wanted = {name: digest(name) for name in shipped_names()}
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
            await keep(session, agent, shipped(name), reason, builtin=wanted[name])
            done.append(name)
        if done:
            note(session, "agent.shipped", ", ".join(done), agents=len(done))
    return done


def _path(name: str) -> Path:
    if name not in shipped_names():
        raise NotFoundError(
            f"No agent {name!r} comes with the program.", hint=f"There are {', '.join(shipped_names())}."
        )
    return FOLDER / f"{name}.toml"
