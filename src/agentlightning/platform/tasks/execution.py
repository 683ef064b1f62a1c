"""One attempt of a task: a rollout in the store, worked on by an agent. Knows no queue."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import orjson

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError
from agentlightning.kit.ids import id_from_key
from agentlightning.platform.agents.models import Agent
from agentlightning.platform.agents.service import AgentService
from agentlightning.platform.auth.permissions import may
from agentlightning.platform.cache import Cache
from agentlightning.platform.context import Identity, RequestContext, reset_context, set_context
from agentlightning.platform.database import Database
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.tasks import repository
from agentlightning.platform.tasks.choice import Choice, ModelChooser
from agentlightning.platform.tasks.models import CANCELLED, Task
from agentlightning.platform.tasks.react import Answer, Setting, load, react
from agentlightning.platform.tasks.record import RESULT, Recorder, result_in
from agentlightning.platform.tasks.text_to_sql import SampleDatabase, sample_path
from agentlightning.schemas import Feedback
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.schemas.semconv import AGL_OPERATION, OPERATION_NAME
from agentlightning.store import LightningStore
from agentlightning.tools import start_tools
from agentlightning.tools.base import Tool, ToolContext, usable

log = logging.getLogger(__name__)

CACHE_S = 3_600.0
_BASE = "http://gateway.internal"
_MAX_OUTPUT_CHARS = 200_000

Services = Callable[[Identity], Mapping[str, Any]]


class OwnerGoneError(AgentLightningError):
    """Whose task it is may not use agents any more."""

    code = "OWNER_GONE"
    status = 403


class NoQueryError(AgentLightningError):
    """The embedded model has found no query that runs."""

    code = "NO_QUERY"
    status = 422


class Memory(Protocol):
    """What was said in a conversation."""

    async def load(self, user_id: int, session_id: str) -> list[dict[str, str]]:
        """Messages (`role`, `content`), oldest first."""
        ...

    async def append(self, user_id: int, session_id: str, messages: list[dict[str, str]]) -> None:
        """Keep more of them."""
        ...


@dataclass(kw_only=True)
class Surroundings:
    """What agents have around them; rooms add theirs."""

    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    memory: Memory | None = None
    services: Services = lambda _: {}
    """What tools need, made for the user whose task it is."""
    after: list[Callable[[Task, AgentDefinition, dict[str, Any]], Awaitable[None]]] = field(default_factory=list)
    """Called with every result, once it is kept."""
    judged: list[Callable[[Identity, Task, str, Feedback], Awaitable[None]]] = field(default_factory=list)
    """Called with what somebody says of a result, and the agent's name."""


@dataclass(frozen=True)
class _Work:
    """One attempt and what it needs."""

    task: Task
    agent: Agent
    definition: AgentDefinition
    owner: Identity
    choice: Choice
    rollout_id: str
    attempt_id: str


class TaskRunner:
    """Runs tasks one attempt at a time."""

    def __init__(
        self,
        settings: PlatformSettings,
        database: Database,
        agents: AgentService,
        cache: Cache,
        store: LightningStore,
        gateway: Any,
        chooser: ModelChooser,
        around: Surroundings,
        recorder: Recorder,
    ) -> None:
        self._settings = settings
        self._database = database
        self._agents = agents
        self._cache = cache
        self._store = store
        self._chooser = chooser
        self._around = around
        self._recorder = recorder
        # In process, past the door: the caller is known, and no credential exists that could leak.
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway.app), timeout=None)
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Let the tools find out, in the background, whether they work here; tasks wait for that."""
        self._starting = asyncio.create_task(start_tools(self._around.tools.values()))

    async def close(self) -> None:
        """Let go of the client and the tools."""
        if self._starting is not None:
            await cancelled(self._starting)
        await self._client.aclose()
        for tool in list(self._around.tools.values()):  # servers' tools may come meanwhile
            await tool.close()

    async def run(self, task: Task) -> dict[str, Any]:
        """The task's result.

        Raises:
            AgentLightningError: It cannot be done, or not this time.
            openai.OpenAIError: A model's call failed.
        """
        agent = await self._agents.find(task.agent_id)
        definition = self._agents.definition_of(agent)
        owner = await self._owner(task)
        choice = await self._chooser.choose(definition)
        key = cache_key(task, agent, choice)
        if task.use_cache and (cached := _kept_answer(await self._cache.get(key))) is not None:
            return {**cached, "cached": True}
        await load()
        if self._starting is not None:
            await asyncio.shield(self._starting)
        rollout_id, attempt_id, done = await self._open(task, agent)
        if done is not None:
            return done
        work = _Work(task, agent, definition, owner, choice, rollout_id, attempt_id)
        result = await self._attempt(work)
        if task.use_cache:
            await self._cache.set(key, orjson.dumps(result), CACHE_S)
        if self._around.memory is not None and task.session_id is not None:
            said = [
                {"role": "user", "content": task.task_description},
                {"role": "assistant", "content": result["output"]},
            ]
            await self._around.memory.append(owner.user_id, task.session_id, said)
        return result

    async def told(self, task: Task, result: dict[str, Any]) -> None:
        """Whoever wants to know of results."""
        for listener in self._around.after:
            try:
                await listener(task, self._agents.definition_of(await self._agents.find(task.agent_id)), result)
            except Exception:  # listeners are of other rooms: the result stands, whatever they make of it
                log.exception("What follows the result of task %s failed", task.id)

    async def cancelled(self, task: Task) -> None:
        """The rollout of a task that runs no longer, if it was cancelled."""
        async with self._database.read() as session:
            found = await repository.find(session, task.id, None)
        if found is not None and found.status != CANCELLED:
            return  # somebody else runs it
        rollout = await self._store.get_rollout_by_id(rollout_of(task))
        if rollout is not None and rollout.status in ("preparing", "running"):
            await self._store.update_rollout(rollout.rollout_id, status="cancelled")

    async def _owner(self, task: Task) -> Identity:
        async with self._database.read() as session:
            found = await repository.owner(session, task.owner_id)
        scopes = None if task.scopes is None else tuple(task.scopes)
        if found is None or not may(found[1], scopes, "agent:assign"):
            raise OwnerGoneError("Whose task this is may not assign tasks any more.")
        return Identity(task.owner_id, found[0], found[1], scopes=scopes)

    async def _open(self, task: Task, agent: Agent) -> tuple[str, str, dict[str, Any] | None]:
        """The rollout and a new attempt of it; or the result, if an attempt had one that was not noted any more."""
        rollout_id = rollout_of(task)
        known = await self._store.get_rollout_by_id(rollout_id)
        if known is not None:
            done = await self._result_of(known)
            opened = known if done is not None else await self._store.start_attempt(rollout_id)
        else:
            done = None
            opened = await self._store.start_rollout(
                input=self._recorder.input_of(task),
                metadata={"task_id": task.id, "agent": agent.name, "agent_version": agent.version},
                rollout_id=rollout_id,
            )
        async with self._database.write() as session:
            await repository.note_run(session, task.id, rollout_id, agent.version)
        return rollout_id, getattr(opened, "attempt").attempt_id, done  # noqa: B009 - of either kind

    async def _result_of(self, rollout: Any) -> dict[str, Any] | None:
        if rollout.status != "succeeded":
            return None
        spans = await self._store.query_spans(rollout.rollout_id, "latest", name=AGL_OPERATION, sort_order="desc")
        written = next((span for span in spans.items if span.attributes.get(OPERATION_NAME) == RESULT), None)
        return None if written is None else result_in(written)

    async def _attempt(self, work: _Work) -> dict[str, Any]:
        answer = Answer()
        identity = set_context(RequestContext(f"task-{work.task.id}", "", identity=work.owner))
        try:
            result = await self._work(work, answer)
        except BaseException as error:
            await self._close(work, answer, None, error)
            raise
        finally:
            reset_context(identity)
        await self._close(work, answer, result, None)
        return result

    async def _work(self, work: _Work, answer: Answer) -> dict[str, Any]:
        base = f"{_BASE}/rollout/{work.rollout_id}/attempt/{work.attempt_id}/v1"
        definition = work.definition
        setting = Setting(
            model=work.choice.model,
            base_url=base,
            client=self._client,
            temperature=definition.temperature,
            max_steps=definition.max_steps,
        )
        result: dict[str, Any] = {}
        if work.choice.style == "text_to_sql":
            result = await self._ask_sample(work, setting, answer)
        else:
            tools = usable(definition.tools, self._around.tools)
            messages = await self._messages(work)
            await react(setting, definition.system_prompt, messages, tools, self._context(work, tools), answer)
        return {
            "output": _storable(answer.output[:_MAX_OUTPUT_CHARS]),
            "steps": answer.steps,
            "tools_used": [use.tool for use in answer.uses],
            "model": work.choice.version or work.choice.model,
            "usage": answer.usage,
            **result,
        }

    async def _ask_sample(self, work: _Work, setting: Setting, answer: Answer) -> dict[str, Any]:
        database = SampleDatabase(sample_path(self._settings.home))
        prompt = await database.instructions()
        question = [{"role": "user", "content": work.task.task_description}]
        await react(
            replace(setting, temperature=0.0), prompt, question, [database], self._context(work, [database]), answer
        )
        if database.rows is None:
            raise NoQueryError("No query that answers this could be run.", hint=await database.hint())
        answer.output = database.said()
        return {"sql": database.query, "rows": database.rows, "database": "sample"}

    def _context(self, work: _Work, tools: list[Tool]) -> ToolContext:
        """What the tools may do: what the user and the key may, as far as the agent's tools ask for it."""
        owner = work.owner
        wanted = {tool.permission for tool in tools if tool.permission is not None}
        return ToolContext(
            workspace=self._workspace(work.task),
            user=str(owner.user_id),
            session=work.task.session_id or "",
            permissions=frozenset(name for name in wanted if may(owner.role, owner.scopes, name)),
            deadline_s=work.task.timeout_s,
            services=self._around.services(owner),
        )

    def _workspace(self, task: Task) -> Path:
        """A folder of the user's, and of the conversation's or the task's."""
        of = f"task_{task.id}" if task.session_id is None else hashlib.sha256(task.session_id.encode()).hexdigest()[:32]
        folder = self._settings.home / "workspaces" / f"user_{task.owner_id}" / of
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    async def _messages(self, work: _Work) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = []
        for example in work.definition.few_shot:
            messages += [{"role": "user", "content": example.input}, {"role": "assistant", "content": example.output}]
        if self._around.memory is not None and work.task.session_id is not None:
            messages += await self._around.memory.load(work.owner.user_id, work.task.session_id)
        text = work.task.task_description
        if work.task.context:
            text += f"\n\nContext:\n{orjson.dumps(work.task.context, option=orjson.OPT_INDENT_2).decode()}"
        return [*messages, {"role": "user", "content": text}]

    async def _close(
        self, work: _Work, answer: Answer, result: dict[str, Any] | None, error: BaseException | None
    ) -> None:
        """Keep what was done: the tools' spans, the result, how it ended. Not cut short when the task is."""
        keeping = asyncio.ensure_future(self._keep(work, answer, result, error))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await asyncio.wait({keeping}, timeout=10.0)
            raise

    async def _keep(
        self, work: _Work, answer: Answer, result: dict[str, Any] | None, error: BaseException | None
    ) -> None:
        place = (work.rollout_id, work.attempt_id)
        spans = self._recorder.spans(work.task, work.agent, place, answer, result, error)
        await self._store.add_many_spans(spans)
        if isinstance(error, asyncio.CancelledError):
            await self.cancelled(work.task)  # before the attempt's failure becomes the rollout's
        await self._store.update_attempt(
            work.rollout_id, work.attempt_id, status="succeeded" if error is None else "failed"
        )


def rollout_of(task: Task) -> str:
    """The id of a task's rollout: always the same, and never that of another database's task."""
    return id_from_key("ro", f"task {task.id} {task.owner_id} {task.created_at.isoformat()} {task.request_digest}")


def _storable(text: str) -> str:
    """Without what no database takes: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def cache_key(task: Task, agent: Agent, choice: Choice) -> str:
    """Where the answer to the same task is kept: by agent, its version, the model, and who asks for what."""
    asked = [
        agent.version,
        choice.model,
        choice.version,
        task.owner_id,
        task.scopes,
        task.session_id,
        task.task_description,
    ]
    digest = hashlib.sha256(orjson.dumps([*asked, task.context], option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"agent:response:{agent.id}:{digest}"


def _kept_answer(raw: bytes | None) -> dict[str, Any] | None:
    """What the cache holds, if it is an answer; whatever else stands there is nothing."""
    try:
        found = None if raw is None else orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("output"), str) else None
