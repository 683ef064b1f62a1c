"""Records into rows, one kind after the other, by the rooms' own repositories. Knows no files."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.platform.agents import repository as agents
from agentlightning.platform.agents.models import DELETED, Agent
from agentlightning.platform.agents.service import check_name, keep, read_definition
from agentlightning.platform.auth import repository as auth
from agentlightning.platform.auth.models import User
from agentlightning.platform.columns import now
from agentlightning.platform.jsonfiles.models import JsonRecord
from agentlightning.platform.jsonfiles.shapes import (
    AgentRecord,
    ConversationRecord,
    ExperimentRecord,
    KnowledgeRecord,
    Record,
    Reference,
    TaskRecord,
    UserRecord,
)
from agentlightning.platform.knowledge import repository as knowledge
from agentlightning.platform.learning.models import Experiment
from agentlightning.platform.memory import repository as memory
from agentlightning.platform.memory.service import check_session
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.tasks.models import FAILED, PENDING, Task
from agentlightning.platform.tasks.service import priority_of
from agentlightning.schemas.agent import TOOL_NAMES, AgentDefinition

BY = "migrate-json"
_MESSAGE_TYPES: Mapping[str, str] = MappingProxyType({"user": "human", "assistant": "ai"})


@dataclass(slots=True)
class Written:
    """The row that a record became.

    Attributes:
        row_id: Its number.
        is_new: Or an agent that came with the program has a new version.
        notes: What was changed or left out on the way.
    """

    row_id: int
    is_new: bool = True
    notes: list[str] = field(default_factory=list[str])


class Writer:
    """Writes records within transactions of its caller.

    Args:
        settings: For tasks that are still to be done.
        owner: Name of the user who gets what is nobody's; `None` is the first admin.
    """

    def __init__(self, settings: PlatformSettings, owner: str | None) -> None:
        self._settings = settings
        self._owner = owner
        self._ways: dict[type[Record], Callable[[AsyncSession, Any, str], Awaitable[Written]]] = {
            UserRecord: self._user,
            AgentRecord: self._agent,
            KnowledgeRecord: self._item,
            TaskRecord: self._task,
            ExperimentRecord: self._experiment,
            ConversationRecord: self._conversation,
        }

    async def write(self, session: AsyncSession, record: Record, digest: str) -> Written:
        """Make its row.

        Raises:
            AgentLightningError: It cannot be taken over; the message says why.
        """
        return await self._ways[type(record)](session, record, digest)

    async def _user(self, session: AsyncSession, record: UserRecord, _: str) -> Written:
        if await auth.user_named(session, record.username) is not None:
            raise ConflictError(f"There is a user {record.username!r}.", hint="Rename one of the two.")
        moment = time.time()
        user = User(
            username=record.username,
            password_hash=record.password_hash,
            role=record.role,
            disabled=record.disabled or not record.is_active,
            must_change_password=False,
            created_at=_seconds(record.created_at) or moment,
            updated_at=moment,
            last_login_at=_seconds(record.last_login_at),
        )
        session.add(user)
        await session.flush()
        auth.note(session, "user.create", user.username, actor=BY, role=user.role)
        return Written(user.id)

    async def _agent(self, session: AsyncSession, record: AgentRecord, _: str) -> Written:
        definition, notes = definition_of(record)
        check_name(definition)
        agent = await agents.find(session, definition.name, deleted=True, lock=True)
        if agent is not None and agent.builtin is None:
            raise ConflictError(
                f"There is an agent {definition.name!r}, with changes of its own.", hint="Rename one of the two."
            )
        is_new = agent is None
        if agent is not None:
            notes.append(f"the shipped agent {agent.name} has a new version; roll it back with to=shipped")
        agent = await keep(session, agent, definition, "migrated from JSON")
        agent.status = record.status
        agent.created_at = record.created_at or agent.created_at
        agent.last_activity = record.last_activity or agent.last_activity
        agent.performance_metrics = {**agent.performance_metrics, **record.performance_metrics}
        auth.note(session, "agent.create" if is_new else "agent.change", agent.name, actor=BY, version=agent.version)
        return Written(agent.id, is_new, notes)

    async def write_items(self, session: AsyncSession, records: Sequence[KnowledgeRecord]) -> list[Written]:
        """Make the rows of knowledge items, those of one author together."""
        made: dict[int, Written] = {}
        for by in dict.fromkeys(record.created_by or BY for record in records):
            mine = [(place, record) for place, record in enumerate(records) if (record.created_by or BY) == by]
            drafts = [
                knowledge.Draft(record.title, record.content, record.category, tuple(record.tags), record.metadata)
                for _, record in mine
            ]
            items = await knowledge.add(session, drafts, by)
            for (place, record), item in zip(mine, items, strict=True):
                item.created_at = record.created_at or item.created_at
                item.updated_at = record.updated_at or item.created_at
                made[place] = Written(item.id)
        return [made[place] for place in range(len(records))]

    async def _item(self, session: AsyncSession, record: KnowledgeRecord, _: str) -> Written:
        (written,) = await self.write_items(session, [record])
        return written

    async def _task(self, session: AsyncSession, record: TaskRecord, digest: str) -> Written:
        agent = await self._agent_called(session, record.agent)
        word, urgency = priority_of(record.priority)
        moment, is_open = now(), record.status == PENDING
        began = record.created_at or moment
        notes = ["it will be done again"] if is_open and record.started_at is not None else []
        task = Task(
            task_description=record.task_description,
            agent_id=agent.id,
            status=record.status,
            priority=word,
            urgency=urgency,
            result=record.result if isinstance(record.result, dict | None) else {"output": record.result},
            created_at=began,
            started_at=None if is_open else record.started_at,
            completed_at=None if is_open else record.completed_at or record.started_at or began,
            execution_time_ms=record.execution_time_ms,
            error_message=record.error_message or ("It had failed." if record.status == FAILED else None),
            error_code="FAILED_BEFORE_MIGRATION" if record.status == FAILED else None,
            owner_id=await self._user_called(session, record.user),
            context=record.context,
            session_id=record.session_id,
            request_digest=digest,
            use_cache=False,
            timeout_s=min(float(agent.config.get("timeout_s", 120.0)), self._settings.task_timeout_s),
            deadline_at=moment + timedelta(seconds=self._settings.task_deadline_s),
            attempts=0 if is_open else 1,
            max_attempts=self._settings.task_attempts,
            not_before=moment,
        )
        session.add(task)
        await session.flush()
        return Written(task.id, notes=notes)

    async def _experiment(self, session: AsyncSession, record: ExperimentRecord, _: str) -> Written:
        taken = await session.execute(select(Experiment.id).where(Experiment.name == record.name))
        if taken.scalar_one_or_none() is not None:
            raise ConflictError(f"There is an experiment {record.name!r}.", hint="Rename one of the two.")
        agent = None if record.agent is None else await self._agent_called(session, record.agent)
        experiment = Experiment(
            name=record.name,
            algorithm=record.algorithm,
            config=record.config,
            status=record.status,
            agent_id=None if agent is None else agent.id,
            start_time=record.start_time,
            end_time=record.end_time,
            metrics=record.metrics,
            checkpoints=record.checkpoints,
            created_at=record.created_at or now(),
            agent_version=1 if agent is None else agent.version,
            reason="migrated from JSON",
        )
        session.add(experiment)
        await session.flush()
        return Written(experiment.id)

    async def _conversation(self, session: AsyncSession, record: ConversationRecord, _: str) -> Written:
        check_session(record.session_id)
        user = await self._user_called(session, record.user)
        if await memory.conversation(session, user, record.session_id) is not None:
            raise ConflictError(f"The user has a session {record.session_id!r}.", hint="Rename one of the two.")
        messages: list[dict[str, Any]] = []
        for message in record.messages:
            kind = _MESSAGE_TYPES.get(message.role, message.role)
            messages.append({"type": kind, "data": {"content": message.content, "type": kind}})
        made = await memory.append(session, user, record.session_id, messages)
        made.created_at = record.created_at or made.created_at
        made.updated_at = record.updated_at or made.updated_at
        await session.flush()
        return Written(made.id)

    async def _agent_called(self, session: AsyncSession, name: Reference) -> Agent:
        number = await _migrated(session, "agents", name)
        found = None if number is None else await session.get(Agent, number)
        if found is None and isinstance(name, str):
            slug = slug_of(name)
            for candidate in (slug, f"{slug}_agent"):
                found = found or await agents.find(session, candidate)
        if found is None or found.status == DELETED:
            raise NotFoundError(f"Its agent {name!r} is not there.", hint="Migrate the agents together with the tasks.")
        return found

    async def _user_called(self, session: AsyncSession, name: Reference | None) -> int:
        if name is not None:
            number = await _migrated(session, "users", name)
            if number is not None:
                return number
        wanted = self._owner if name is None else str(name)
        if wanted is None:
            admins = await auth.lock_admins(session)
            if not admins:
                hint = "Make one first (agl platform create-admin), or say whose it is with --owner."
                raise NotFoundError("It is nobody's, and there is no admin who could have it.", hint=hint)
            return min(admins)
        found = await auth.user_named(session, wanted)
        if found is None:
            raise NotFoundError(f"Its user {wanted!r} is not there.", hint="Migrate the users, too, or create them.")
        return found.id


async def _migrated(session: AsyncSession, kind: str, old_id: Reference) -> int | None:
    """The row that a record with this old id became, the last one if there were several."""
    query = select(JsonRecord.row_id).where(JsonRecord.kind == kind, JsonRecord.old_id == str(old_id)[:255])
    return (await session.execute(query.order_by(JsonRecord.migrated_at.desc()).limit(1))).scalar_one_or_none()


def slug_of(name: str) -> str:
    """`Code Agent` as agents are called here: `code_agent`."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")


def definition_of(record: AgentRecord) -> tuple[AgentDefinition, list[str]]:
    """What the agent is here, and what was changed or left out for that.

    Raises:
        BadInputError: It makes no valid agent.
    """
    notes: list[str] = []
    name, kind = slug_of(record.name), slug_of(record.type).removesuffix("_agent") or "general"
    if name != record.name:
        notes.append(f"its name is {name} now")
    top = {
        "system_prompt": record.system_prompt,
        "capabilities": record.capabilities,
        "tools": record.tools,
        "role": record.role,
        "model": record.model,
    }
    given = {**record.config, **{key: value for key, value in top.items() if value is not None}}
    if "prompt" in given and "system_prompt" not in given:
        given["system_prompt"] = given.pop("prompt")
    unknown = sorted(set(given) - set(AgentDefinition.model_fields))
    notes += [f"config.{key} is left out" for key in unknown]
    wanted: dict[str, Any] = {key: value for key, value in given.items() if key not in unknown}
    wanted |= {"name": name, "type": kind}
    wanted["description"] = wanted.get("description") or record.description or name.replace("_", " ")
    wanted.setdefault("role", str(wanted["description"]).partition(".")[0].strip()[:200] or kind)
    if not wanted.get("system_prompt"):
        if not record.description:
            raise BadInputError("It has neither a system_prompt nor a description.")
        wanted["system_prompt"] = f"You are {name.replace('_', ' ')}. {record.description}"
        notes.append("its prompt was made of its description")
    wanted["capabilities"] = _slugs(wanted.get("capabilities")) or [kind]
    wanted["tools"] = _known_tools(wanted.get("tools"), notes)
    return read_definition(wanted), notes


def _slugs(given: Any) -> list[str]:
    names = given if isinstance(given, list) else []
    return list(dict.fromkeys(filter(None, (slug_of(str(name))[:64] for name in names))))


def _known_tools(given: Any, notes: list[str]) -> list[str]:
    names = [str(name) for name in given] if isinstance(given, list) else []
    known = [name for name in dict.fromkeys(names) if name in TOOL_NAMES or name.startswith("mcp:")]
    notes += [f"the tool {name!r} is left out: there is none of that name" for name in names if name not in known]
    return known


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
