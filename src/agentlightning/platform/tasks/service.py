"""Tasks over a database: made, found, cancelled, judged. Knows no HTTP and runs nothing."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import orjson
from sqlalchemy.exc import IntegrityError

from agentlightning.kit.errors import AgentLightningError, BadInputError, ConflictError, NotFoundError
from agentlightning.platform.agents.models import ACTIVE, DELETED, Agent
from agentlightning.platform.agents.service import AgentNotFoundError, AgentService
from agentlightning.platform.auth.models import MAX_NUMBER
from agentlightning.platform.auth.repository import note, user_by_id
from agentlightning.platform.columns import now
from agentlightning.platform.context import Identity
from agentlightning.platform.database import Database
from agentlightning.platform.lookups import Lookups
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.tasks import matching, repository
from agentlightning.platform.tasks.choice import ModelChooser
from agentlightning.platform.tasks.models import CANCELLED, ENDED, FAILED, PENDING, Task, TaskRow
from agentlightning.platform.tasks.wakes import Wakes
from agentlightning.schemas import Feedback
from agentlightning.store import LightningStore

log = logging.getLogger(__name__)

PRIORITIES = {"low": 2, "medium": 5, "high": 8}
MAX_AGENTS = 1_000


class NoAgentFitsError(BadInputError):
    """Nothing in the task says who could do it."""

    code = "NO_AGENT_FITS"


class TooManyTasksError(AgentLightningError):
    """The user has as many unfinished tasks as one may have."""

    code = "TOO_MANY_TASKS"
    status = 429


class AgentPausedError(ConflictError):
    """The agent takes no tasks at the moment."""

    code = "AGENT_PAUSED"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody asks for; see `AssignIn` for the meaning."""

    task: str
    agent: str | None = None
    agent_type: str | None = None
    priority: str | int = "medium"
    context: dict[str, Any]
    session_id: str | None = None
    timeout_s: float | None = None
    idempotency_key: str | None = None
    use_cache: bool = False

    def digest(self) -> str:
        """Of all that was asked for."""
        return hashlib.sha256(orjson.dumps(self.__dict__, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True)
class Assigned:
    """A task, and why its agent has it."""

    task: Task
    agent: str
    because: str
    is_new: bool = True


def priority_of(given: str | int) -> tuple[str, int]:
    """The word and the number."""
    if isinstance(given, str):
        return given, PRIORITIES[given]
    return ("low" if given <= 3 else "medium" if given <= 7 else "high"), given


class TaskService:
    """The tasks of a platform."""

    def __init__(
        self,
        settings: PlatformSettings,
        database: Database,
        agents: AgentService,
        wakes: Wakes,
        store: LightningStore,
        chooser: ModelChooser,
    ) -> None:
        self._settings = settings
        self._database = database
        self._lookups = Lookups(database)
        self._agents = agents
        self._wakes = wakes
        self._store = store
        self._chooser = chooser
        self.judged: list[Callable[[Identity, Task, str, Feedback], Awaitable[None]]] = []
        """Called with what somebody says of a result."""
        self._profiles: dict[int, tuple[int, matching.Profile]] = {}

    async def assign(self, who: Identity, wish: Wish) -> Assigned:
        """A new task, or the one that was made with the same idempotency key.

        Raises:
            AgentNotFoundError: There is no such agent, or none of that type.
            AgentPausedError: It is paused.
            NoAgentFitsError: None was named, and none fits.
            ModelNotConfiguredError: It has no model to work on.
            ConflictError: The key was used for something else.
            TooManyTasksError: The user has too many unfinished ones.
        """
        known = await self._known(who, wish)
        if known is not None:
            return known
        agent, because = await self._agent_for(wish)
        definition = self._agents.definition_of(agent)
        await self._chooser.choose(definition)
        word, urgency = priority_of(wish.priority)
        moment = now()
        task = Task(
            task_description=wish.task,
            agent_id=agent.id,
            status=PENDING,
            priority=word,
            urgency=urgency,
            turn_s=moment.timestamp() - urgency * self._settings.task_ageing_s,
            created_at=moment,
            not_before=moment,
            owner_id=who.user_id,
            scopes=None if who.scopes is None else list(who.scopes),
            context=wish.context,
            session_id=wish.session_id,
            idempotency_key=wish.idempotency_key,
            request_digest=wish.digest(),
            use_cache=wish.use_cache,
            timeout_s=min(wish.timeout_s or definition.timeout_s, self._settings.task_timeout_s),
            deadline_at=moment + timedelta(seconds=self._settings.task_deadline_s),
            attempts=0,
            max_attempts=self._settings.task_attempts,
        )
        try:
            async with self._database.write() as session:
                await user_by_id(session, who.user_id, lock=True)  # so that tasks are counted one by one
                if await repository.unfinished_of(session, who.user_id) >= self._settings.tasks_per_user:
                    raise TooManyTasksError(
                        f"You have {self._settings.tasks_per_user} unfinished tasks.", hint="Wait, or cancel some."
                    )
                session.add(task)
                await session.flush()
                note(session, "task.assign", f"task {task.id}", agent=agent.name)
                await repository.note_task(session, task, agent.name)
        except IntegrityError:
            known = await self._known(who, wish)  # somebody used the key at the same moment
            if known is None:
                raise
            return known
        await self._wakes.tell()
        return Assigned(task, agent.name, because)

    async def find(self, who: Identity, task_id: int) -> tuple[Task, str]:
        """The task and its agent's name.

        Raises:
            NotFoundError: There is none, or it is somebody else's.
        """
        async with self._database.read() as session:
            task = await repository.find(session, task_id, _only_of(who))
            if task is None:
                raise _unknown(task_id)
            return task, (await repository.agent_names(session, [task.agent_id])).get(task.agent_id, "")

    async def look(self, who: Identity, task_id: int) -> TaskRow:
        """As `find`, for whoever only looks.

        Raises:
            NotFoundError: There is none, or it is somebody else's.
        """
        if not 0 < task_id <= MAX_NUMBER:
            raise _unknown(task_id)
        owner = _only_of(who)
        if owner is None:
            found = await self._lookups.rows(repository.LOOK_ANY, {"task": task_id})
        else:
            found = await self._lookups.rows(repository.LOOK_OWN, {"task": task_id, "owner": owner})
        if not found:
            raise _unknown(task_id)
        return TaskRow(*found[0])

    async def page(
        self, who: Identity, before: int | None, limit: int, agent: str | None = None, **filters: str | None
    ) -> list[tuple[Task, str]]:
        """Tasks, newest first, with their agents' names; an admin sees everybody's."""
        number = None if agent is None else (await self._agents.find(agent)).id
        async with self._database.read() as session:
            found = await repository.page(session, _only_of(who), before, limit, agent_id=number, **filters)
            names = await repository.agent_names(session, [task.agent_id for task in found])
        return [(task, names.get(task.agent_id, "")) for task in found]

    async def cancel(self, who: Identity, task_id: int) -> tuple[Task, str]:
        """End a task; one that runs stops soon.

        Raises:
            NotFoundError: There is none, or it is somebody else's.
            ConflictError: It has ended otherwise.
        """
        task, agent = await self.find(who, task_id)
        async with self._database.write() as session:
            ended = await repository.end(session, task.id, None, CANCELLED, cancelled_at=now())
            if ended is not None:
                note(session, "task.cancel", f"task {task.id}")
                await repository.note_task(session, ended, agent)
        await self._wakes.tell()
        if ended is not None:
            return ended, agent
        task, agent = await self.find(who, task_id)
        if task.status != CANCELLED:
            raise ConflictError(f"The task is {task.status}.", details={"status": task.status})
        return task, agent

    async def wait(self, who: Identity, task_id: int, timeout_s: float) -> tuple[Task, str]:
        """The task when it has ended, or as it is after `timeout_s`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        with self._wakes.ear() as event:
            while True:
                event.clear()
                task, agent = await self.find(who, task_id)
                left = until - loop.time()
                if task.status in ENDED or left <= 0:
                    return task, agent
                await self._wakes.wait(event, left)

    async def judge(self, who: Identity, task_id: int, **said: Any) -> Feedback:
        """Keep what the user says of a task's result, for training.

        Raises:
            NotFoundError: There is none, or it is somebody else's.
            ConflictError: Nothing of it has run yet.
        """
        task, agent = await self.find(who, task_id)
        if task.rollout_id is None:
            raise ConflictError("Nothing of this task has run yet.", details={"status": task.status})
        counted = {name: value for name, value in said.items() if name != "comment"}
        async with self._database.write() as session:  # before it is kept: the store is another database
            note(session, "task.feedback", f"task {task.id}", agent=agent, **counted)
        about = {"task_id": task.id, "agent_id": task.agent_id}
        kept = await self._store.add_feedback(
            task.rollout_id, author=who.username, score_min=0.0, score_max=1.0, metadata=about, **said
        )
        for listener in self.judged:
            try:
                await listener(who, task, agent, kept)
            except Exception:  # what was said is kept, whatever others make of it
                log.exception("What follows the feedback on task %s failed", task.id)
        return kept

    async def trace(self, who: Identity, task_id: int, limit: int, offset: int) -> Any:
        """The spans of a task, a page of them.

        Raises:
            NotFoundError: There is none, or it is somebody else's.
        """
        task, _ = await self.find(who, task_id)
        if task.rollout_id is None:
            return None
        return await self._store.query_spans(task.rollout_id, limit=limit, offset=offset)

    async def agent_changed(self, agent: Agent) -> None:
        """After a restart its tasks begin anew; with a deleted agent they end."""
        async with self._database.write() as session:
            if agent.status == DELETED:
                for number in await repository.unfinished_of_agent(session, agent.id):
                    error = {"code": "AGENT_DELETED", "message": "The agent was deleted.", "hint": "Assign it again."}
                    ended = await repository.end(session, number, None, FAILED, **repository.ended_values(error=error))
                    if ended is not None:
                        await repository.note_task(session, ended, agent.name)
            else:
                await repository.put_back_agent(session, agent.id, agent.generation)
            await repository.notify(session)
        await self._wakes.tell()

    async def _known(self, who: Identity, wish: Wish) -> Assigned | None:
        if wish.idempotency_key is None:
            return None
        async with self._database.read() as session:
            task = await repository.by_key(session, who.user_id, wish.idempotency_key)
            if task is None:
                return None
            agent = (await repository.agent_names(session, [task.agent_id])).get(task.agent_id, "")
        if task.request_digest != wish.digest():
            raise ConflictError("This idempotency key was used for another task.", details={"task_id": task.id})
        return Assigned(task, agent, "asked for before", is_new=False)

    async def _agent_for(self, wish: Wish) -> tuple[Agent, str]:
        if wish.agent is not None:
            agent = await self._agents.find(wish.agent)
            if agent.status != ACTIVE:
                raise AgentPausedError(f"{agent.name} is {agent.status}.", hint="Resume it, or name another agent.")
            return agent, "named"
        if wish.agent_type is not None:
            found = await self._agents.for_type(wish.agent_type)
            if not found:
                await self._agents.find(wish.agent_type)  # says which ones there are
                raise AgentPausedError(f"{wish.agent_type} is not active.", hint="Resume it, or name another agent.")
            agent, words = self._best(wish.task, found) or (found[0], [])
            return agent, f"type {wish.agent_type}" + (f", {', '.join(words)}" if words and len(found) > 1 else "")
        matched = self._best(wish.task, await self._agents.page(0, MAX_AGENTS, status=ACTIVE))
        if matched is None:
            names = [agent.name for agent in await self._agents.page(0, 50, status=ACTIVE)]
            raise NoAgentFitsError(
                "No agent fits this task by its words.",
                hint="Name one: agent or agent_type.",
                details={"available_agents": names},
            )
        return matched[0], f"capabilities: {', '.join(matched[1])}"

    def _best(self, text: str, agents: list[Agent]) -> tuple[Agent, list[str]] | None:
        current = {agent.id: (agent.version, agent) for agent in agents}
        for number, (version, agent) in current.items():
            if self._profiles.get(number, (0, {}))[0] != version:
                self._profiles[number] = (version, matching.profile(self._agents.definition_of(agent)))
        found = matching.best(text, [self._profiles[agent.id][1] for agent in agents])
        return None if found is None else (agents[found[0]], found[1])


def _only_of(who: Identity) -> int | None:
    return None if who.role == "admin" else who.user_id


def _unknown(task_id: int) -> NotFoundError:
    error = NotFoundError(f"There is no task {task_id}.", hint="GET /api/v2/tasks lists yours.")
    error.code = "TASK_NOT_FOUND"
    return error


__all__ = ["AgentNotFoundError", "Assigned", "TaskService", "TooManyTasksError", "Wish", "priority_of"]
