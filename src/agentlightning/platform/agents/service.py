"""Agents over a database: finding them, changing them with their history kept, going back. Knows no HTTP and no models.

Agents are everybody's: whoever may read agents reads all of them, whoever may write agents changes all of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError, StorageError
from agentlightning.platform.agents import repository
from agentlightning.platform.agents.models import ACTIVE, DELETED, PAUSED, Agent, AgentVersion
from agentlightning.platform.auth.repository import note
from agentlightning.platform.cache import Cache
from agentlightning.platform.columns import now
from agentlightning.platform.context import current
from agentlightning.platform.database import Database
from agentlightning.platform.lookups import Lookups
from agentlightning.schemas.agent import AgentDefinition

MAX_SUGGESTED = 50
_MAX_TOLD = 10_000


class AgentNotFoundError(NotFoundError):
    """There is no such agent; the details list the ones there are."""

    code = "AGENT_NOT_FOUND"


class VersionConflictError(ConflictError):
    """Somebody else has changed the agent since it was read."""

    code = "VERSION_CONFLICT"


class PreconditionError(VersionConflictError):
    """The same, said by `If-Match`."""

    status = 412


class DefinitionUnreadableError(StorageError):
    """A kept definition is not one that this program understands."""

    code = "AGENT_UNREADABLE"
    status = 500


RESERVED = frozenset({"status", "assign", "design", "execute"})
"""Words that stand where a name stands in the paths of the API."""


def check_name(definition: AgentDefinition | None) -> None:
    """See that an agent can be reached by its name.

    Raises:
        BadInputError: It cannot.
    """
    if definition is not None and definition.name in RESERVED:
        raise BadInputError(f"An agent cannot be called {definition.name!r}.", hint=f"E.g. {definition.name}_agent.")


def read_definition(given: Mapping[str, Any]) -> AgentDefinition:
    """A definition of what somebody sent.

    Raises:
        BadInputError: It is none; the details say why.
    """
    try:
        return AgentDefinition.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        problems = [
            {"where": ".".join(map(str, item["loc"]))[:200], "what": str(item["msg"])[:300]} for item in found[:20]
        ]
        wrong = BadInputError("This is no valid agent.", details={"problems": problems})
        wrong.code = "VALIDATION_FAILED"
        raise wrong from None


def status_key(agent_id: int) -> str:
    """Where an agent's status is cached."""
    return f"agent:status:{agent_id}"


class AgentService:
    """The agents of a platform.

    Attributes:
        on_change: Awaited with the agent after every change and restart, once it is kept.
    """

    def __init__(self, database: Database, cache: Cache) -> None:
        self._database = database
        self._lookups = Lookups(database)
        self._told: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()
        self._cache = cache
        self.on_change: list[Callable[[Agent], Awaitable[None]]] = []

    async def find(self, id_or_name: int | str) -> Agent:
        """By number or name.

        Raises:
            AgentNotFoundError: There is none, or it is deleted.
        """
        async with self._database.read() as session:
            return await _existing(session, id_or_name)

    def definition_of(self, agent: Agent | AgentVersion) -> AgentDefinition:
        """What it is.

        Raises:
            DefinitionUnreadableError: What is kept is no definition.
        """
        try:
            return AgentDefinition.model_validate(agent.config)
        except ValidationError as error:
            raise DefinitionUnreadableError(
                f"The definition of agent {agent.config.get('name')!r} cannot be read.",
                hint="Roll it back, or replace it.",
            ) from error

    async def for_capability(self, *capabilities: str) -> list[Agent]:
        """Active agents that have at least one of them, those with most of them first."""
        async with self._database.read() as session:
            return await repository.able_agents(session, capabilities) if capabilities else []

    async def for_type(self, type: str) -> list[Agent]:
        """Active agents of that type. An agent's name counts as a type of its own: `data_agent`, and `data`."""
        async with self._database.read() as session:
            named = await repository.find(session, type)
            if named is not None:
                return [named] if named.status == ACTIVE else []
            return await repository.page(session, 0, 1_000, type=type.removesuffix("_agent"), status=ACTIVE)

    async def page(
        self,
        after: int = 0,
        limit: int = 100,
        *,
        type: str | None = None,
        status: str | None = None,
        capability: str | None = None,
    ) -> list[Agent]:
        """Agents by number."""
        async with self._database.read() as session:
            return await repository.page(session, after, limit, type=type, status=status, capability=capability)

    async def summaries(
        self,
        after: int,
        limit: int,
        *,
        type: str | None = None,
        status: str | None = None,
        capability: str | None = None,
    ) -> list[dict[str, Any]]:
        """As `page`, for lists: without prompts and evaluation sets."""
        if type is status is capability is None:
            rows = await self._lookups.rows(repository.SUMMARIES, {"after": after, "limit": limit})
            found = [dict(zip(repository.SUMMARY, row, strict=True)) for row in rows]
            # A version of an agent is never changed, so what its definition says is read once.
            kept = [self._told.get((row["id"], row["version"])) for row in found]
            if None not in kept:
                return [{**row, **more} for row, more in zip(found, kept, strict=True) if more is not None]
        async with self._database.read() as session:
            found = await repository.summaries(session, after, limit, type=type, status=status, capability=capability)
        for row in found:
            self._told[row["id"], row["version"]] = {name: row[name] for name in repository.OF_CONFIG}
            if len(self._told) > _MAX_TOLD:
                self._told.popitem(last=False)
        return found

    async def ids(self) -> list[int]:
        """Numbers of all agents."""
        async with self._database.read() as session:
            return await repository.ids(session)

    async def states(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """State, version, generation and last activity of these agents."""
        async with self._database.read() as session:
            return await repository.states(session, numbers)

    async def create(self, definition: AgentDefinition, *, reason: str = "created") -> Agent:
        """A new agent. A deleted one of that name comes back with the new definition, its history before it.

        Raises:
            ConflictError: The name is taken.
            BadInputError: The name is one that agents cannot have.
        """
        check_name(definition)
        try:
            async with self._database.write() as session:
                agent = await repository.find(session, definition.name, deleted=True, lock=True)
                if agent is not None and agent.status != DELETED:
                    raise ConflictError(f"There is an agent {definition.name!r}.", hint="PUT changes it.")
                agent = await keep(session, agent, definition, reason)
                note(session, "agent.create", agent.name, version=agent.version)
        except IntegrityError as error:
            raise ConflictError(f"There is an agent {definition.name!r}.", hint="PUT changes it.") from error
        await self._changed(agent)
        return agent

    async def change(
        self,
        id_or_name: int | str,
        definition: AgentDefinition | None = None,
        *,
        changes: Mapping[str, Any] | None = None,
        status: str | None = None,
        expected: int | None = None,
        precondition: bool = False,
        reason: str = "changed",
        anew: bool = False,
    ) -> Agent:
        """Give it another definition, which is its next version, or pause or resume it, which is none.

        Args:
            id_or_name: Which agent.
            definition: What it is from now on; it may have another name.
            changes: Instead of it: fields to replace in the definition that it has.
            status: `active` or `paused`.
            expected: The version that the change was made from.
            precondition: `expected` came as `If-Match`.
            reason: What the history says of it.
            anew: It is a version of its own even where the definition stays: what it runs on has changed.

        Raises:
            AgentNotFoundError: There is no such agent.
            VersionConflictError: It has another version by now; the details say which, and what it is.
            ConflictError: The new name is taken.
            BadInputError: There is nothing to change, or the changes make no valid definition.
        """
        if definition is None and changes is None and status is None:
            raise BadInputError("There is nothing to change.", hint="Give a definition, changes or a status.")
        if status not in (None, ACTIVE, PAUSED):
            raise BadInputError(f"There is no status {status!r}.", hint=f"Give {ACTIVE} or {PAUSED}; DELETE deletes.")
        try:
            async with self._database.write() as session:
                agent = await _existing(session, id_or_name, lock=True)
                _check_version(agent, expected, precondition=precondition)
                if changes is not None:
                    definition = read_definition({**agent.config, **changes})
                check_name(definition)
                details: dict[str, Any] = {}
                if definition is not None and (anew or definition.model_dump(mode="json") != agent.config):
                    details = {"before": agent.version, "version": agent.version + 1, "reason": reason}
                    await keep(session, agent, definition, reason)
                if status is not None and status != agent.status:
                    details["status"] = agent.status = status
                    agent.updated_at = now()
                note(session, "agent.change", agent.name, **details)
        except IntegrityError as error:
            raise ConflictError("There is an agent of that name, perhaps a deleted one.") from error
        await self._changed(agent)
        return agent

    async def delete(self, id_or_name: int | str, *, expected: int | None = None) -> Agent:
        """Take it out of use. Its history stays, and `roll_back` brings it back.

        Raises:
            AgentNotFoundError: There is no such agent.
            VersionConflictError: It has another version by now.
        """
        async with self._database.write() as session:
            agent = await _existing(session, id_or_name, lock=True)
            _check_version(agent, expected, precondition=True)
            agent.status, agent.updated_at = DELETED, now()
            agent.generation += 1
            note(session, "agent.delete", agent.name, version=agent.version)
        await self._changed(agent)
        return agent

    async def roll_back(
        self, id_or_name: int | str, to: int, *, expected: int | None = None, precondition: bool = False
    ) -> Agent:
        """Make the definition of an earlier version the next one. A deleted agent is active again.

        Raises:
            AgentNotFoundError: There is no such agent.
            NotFoundError: It has no such version.
            VersionConflictError: It has another version by now.
        """
        async with self._database.write() as session:
            agent = await _existing(session, id_or_name, deleted=True, lock=True)
            _check_version(agent, expected, precondition=precondition)
            definition = self.definition_of(await _version(session, agent, to))
            before = agent.version
            await keep(session, agent, definition, f"rolled back to version {to}")
            note(session, "agent.rollback", agent.name, to=to, before=before, version=agent.version)
        await self._changed(agent)
        return agent

    async def restore(
        self, definition: AgentDefinition, digest: str, *, expected: int | None = None, precondition: bool = False
    ) -> Agent:
        """Make a shipped definition the next one of the agent of its name, which follows the program's updates again.

        Raises:
            AgentNotFoundError: There is no such agent.
            VersionConflictError: It has another version by now.
        """
        async with self._database.write() as session:
            agent = await _existing(session, definition.name, deleted=True, lock=True)
            _check_version(agent, expected, precondition=precondition)
            before = agent.version
            await keep(session, agent, definition, "restored as shipped", builtin=digest)
            note(session, "agent.rollback", agent.name, to="shipped", before=before, version=agent.version)
        await self._changed(agent)
        return agent

    async def restart(self, id_or_name: int | str) -> Agent:
        """End what it is doing and begin anew: its generation counts up, and a paused one is active again.

        Raises:
            AgentNotFoundError: There is no such agent.
        """
        async with self._database.write() as session:
            agent = await _existing(session, id_or_name, lock=True)
            agent.generation += 1
            agent.status, agent.restarted_at = ACTIVE, now()
            note(session, "agent.restart", agent.name, generation=agent.generation)
        await self._changed(agent)
        return agent

    async def versions(self, id_or_name: int | str, before: int | None, limit: int) -> tuple[Agent, list[AgentVersion]]:
        """The agent, deleted or not, and its versions, newest first.

        Raises:
            AgentNotFoundError: There is no such agent.
        """
        async with self._database.read() as session:
            agent = await _existing(session, id_or_name, deleted=True)
            return agent, await repository.versions(session, agent.id, before, limit)

    async def version(self, id_or_name: int | str, number: int) -> tuple[Agent, AgentVersion]:
        """The agent, deleted or not, and one of its versions.

        Raises:
            AgentNotFoundError: There is no such agent.
            NotFoundError: It has no such version.
        """
        async with self._database.read() as session:
            agent = await _existing(session, id_or_name, deleted=True)
            return agent, await _version(session, agent, number)

    async def note_activity(self, agent_id: int, metrics: dict[str, Any] | None = None) -> None:
        """The agent has just done something; `metrics` are added to those it has."""
        async with self._database.write() as session:
            agent = await repository.find(session, agent_id, deleted=True, lock=True)
            if agent is not None:
                agent.last_activity = now()
                agent.performance_metrics = {**agent.performance_metrics, **(metrics or {})}
        await self._cache.delete(status_key(agent_id))

    async def _changed(self, agent: Agent) -> None:
        await self._cache.delete(status_key(agent.id))
        for listener in self.on_change:
            await listener(agent)


async def _existing(
    session: AsyncSession, id_or_name: int | str, *, deleted: bool = False, lock: bool = False
) -> Agent:
    agent = await repository.find(session, id_or_name, deleted=deleted, lock=lock)
    if agent is None:
        names = [each.name for each in await repository.page(session, 0, MAX_SUGGESTED)]
        raise AgentNotFoundError(
            f"There is no agent {str(id_or_name)[:64]!r}.",
            hint="GET /api/v2/agents lists them.",
            details={"agent_id": str(id_or_name)[:64], "available_agents": names},
        )
    return agent


async def _version(session: AsyncSession, agent: Agent, number: int) -> AgentVersion:
    found = await repository.version(session, agent.id, number)
    if found is None:
        raise NotFoundError(f"{agent.name} has no version {number}.", hint=f"The newest is {agent.version}.")
    return found


def _check_version(agent: Agent, expected: int | None, *, precondition: bool) -> None:
    if expected is None or expected == agent.version:
        return
    kind = PreconditionError if precondition else VersionConflictError
    raise kind(
        f"{agent.name} has version {agent.version} by now, not {expected}.",
        hint="Look at the current one, and send the change again with its version.",
        details={"version": agent.version, "current": agent.config},
    )


async def keep(
    session: AsyncSession, agent: Agent | None, definition: AgentDefinition, reason: str, *, builtin: str | None = None
) -> Agent:
    """Make the definition the agent's next version, of a new agent the first."""
    moment, config = now(), definition.model_dump(mode="json")
    identity = current().identity
    who = identity.username if identity is not None else "system"
    if agent is None:
        agent = Agent(created_at=moment, created_by=who, version=0, generation=1, performance_metrics={})
        session.add(agent)
    agent.name, agent.type, agent.description = definition.name, definition.type, definition.description
    agent.config, agent.version, agent.updated_at, agent.builtin = config, agent.version + 1, moment, builtin
    if agent.status in (None, DELETED):
        agent.status = ACTIVE
    await session.flush()
    session.add(
        AgentVersion(
            agent_id=agent.id,
            version=agent.version,
            config=config,
            created_at=moment,
            created_by=who,
            reason=reason[:200],
        )
    )
    await repository.set_capabilities(session, agent.id, definition.capabilities)
    await session.flush()
    return agent
