"""Shapes of the records that JSON files may hold, one for each kind. Pure data; other fields are noted, not refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from agentlightning.platform.api.schemas import RoleName, Username
from agentlightning.platform.knowledge.schemas import Content, Metadata, Name, Tags, Title

_MAX_INTEGER = 2**31 - 1
_MOST_ROUNDS = 15  # a hash of more would take minutes at each login
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")

TASK_STATUSES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("pending", "queued", "created", "running", "in_progress", "assigned"), "pending"),
        **dict.fromkeys(("completed", "done", "success", "succeeded", "finished"), "completed"),
        **dict.fromkeys(("failed", "error", "timeout"), "failed"),
        **dict.fromkeys(("cancelled", "canceled"), "cancelled"),
    }
)
"""Of tasks. What was running is done again."""
EXPERIMENT_STATUSES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("created", "running", "paused", "stopped", "cancelled", "canceled"), "stopped"),
        **dict.fromkeys(("completed", "done", "success", "succeeded", "finished"), "completed"),
        **dict.fromkeys(("failed", "error", "timeout"), "failed"),
    }
)
"""Of experiments. What was running cannot be continued here."""
AGENT_STATUSES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("active", "idle", "busy", "ready", "running", "online"), "active"),
        **dict.fromkeys(("paused", "inactive", "disabled", "stopped", "offline", "error"), "paused"),
        **dict.fromkeys(("deleted", "archived"), "deleted"),
    }
)


def _known(words: Mapping[str, str]) -> Any:
    def translate(value: object) -> object:
        if isinstance(value, str) and value.strip().lower() in words:
            return words[value.strip().lower()]
        raise ValueError(f"must be one of: {', '.join(words)}")

    return BeforeValidator(translate, json_schema_input_type=Literal[tuple(words)])


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _bcrypt(value: str) -> str:
    found = _BCRYPT.fullmatch(value)
    if found is None:
        raise ValueError("is no bcrypt hash; leave the user out and make it anew: POST /api/v2/users")
    if not 4 <= int(found[1]) <= _MOST_ROUNDS:
        raise ValueError(f"has more rounds than {_MOST_ROUNDS}, or fewer than 4")
    return value


def _named(*names: str) -> AliasChoices:
    return AliasChoices(*names)


_MOMENT = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}]}
When = Annotated[datetime, AfterValidator(_in_utc), WithJsonSchema(_MOMENT)]
"""ISO 8601 or Unix seconds; without a zone it is UTC."""
Reference = Annotated[str | int, Field(union_mode="left_to_right")]
"""A name or an old id."""
Hash = Annotated[str, AfterValidator(_bcrypt)]


class Record(BaseModel):
    """Of any kind."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)
    naming: ClassVar[str] = "id"
    """The field that a key of a JSON object stands for: `{"code_agent": {...}}`."""

    id: Reference | None = None

    @classmethod
    def known_fields(cls) -> set[str]:
        """Every name that a field may have."""
        found: set[str] = set()
        for name, field in cls.model_fields.items():
            alias = field.validation_alias
            found |= {str(choice) for choice in alias.choices} if isinstance(alias, AliasChoices) else {name}
        return found


class UserRecord(Record):
    """Somebody who may log in. Only bcrypt hashes are taken over."""

    naming = "username"

    username: Username = Field(validation_alias=_named("username", "name"))
    password_hash: Hash = Field(validation_alias=_named("password_hash", "hashed_password"))
    role: RoleName = "user"
    disabled: bool = False
    is_active: bool = Field(default=True, validation_alias=_named("is_active", "active"))
    created_at: When | None = None
    last_login_at: When | None = Field(default=None, validation_alias=_named("last_login_at", "last_login"))

    @model_validator(mode="before")
    @classmethod
    def _hashed(cls, given: Any) -> Any:
        if isinstance(given, dict) and not {"password_hash", "hashed_password"} & set(given):
            if "password" in given:
                raise ValueError("holds a password in plain text; put its bcrypt hash into password_hash instead")
            raise ValueError("has no password_hash (bcrypt)")
        return given


class AgentRecord(Record):
    """An agent. `config` may be a whole definition, or some of its fields."""

    naming = "name"

    name: Annotated[str, Field(min_length=1, max_length=255)]
    type: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        default="general", validation_alias=_named("type", "agent_type")
    )
    description: str | None = None
    config: dict[str, Any] = Field(default_factory=dict[str, Any])
    status: Annotated[Literal["active", "paused", "deleted"], _known(AGENT_STATUSES)] = "active"
    created_at: When | None = None
    updated_at: When | None = None
    performance_metrics: dict[str, Any] = Field(default_factory=dict[str, Any])
    last_activity: When | None = None
    # What stands in `config` as well.
    system_prompt: str | None = Field(default=None, validation_alias=_named("system_prompt", "prompt"))
    capabilities: list[str] | None = None
    tools: list[str] | None = None
    role: str | None = None
    model: str | None = None


class KnowledgeRecord(Record):
    """A knowledge item."""

    naming = "title"

    title: Title
    content: Content
    category: Name | None = None
    tags: Tags = []
    metadata: Metadata = {}
    created_at: When | None = None
    updated_at: When | None = None
    created_by: Annotated[str, Field(max_length=255)] | None = None


class TaskRecord(Record):
    """A task. `agent_id` is the agent's old id or its name; without a user it becomes an admin's."""

    task_description: Annotated[str, Field(min_length=1, max_length=100_000)] = Field(
        validation_alias=_named("task_description", "task", "description", "input")
    )
    agent: Reference = Field(validation_alias=_named("agent", "agent_id", "agent_name"))
    user: Reference | None = Field(default=None, validation_alias=_named("user", "user_id", "username", "owner"))
    status: Annotated[Literal["pending", "completed", "failed", "cancelled"], _known(TASK_STATUSES)] = "pending"
    priority: Literal["low", "medium", "high"] | Annotated[int, Field(ge=1, le=10)] = "medium"
    result: Any = None
    context: dict[str, Any] = Field(default_factory=dict[str, Any])
    session_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    created_at: When | None = None
    started_at: When | None = None
    completed_at: When | None = None
    execution_time_ms: Annotated[int, Field(ge=0, le=_MAX_INTEGER)] | None = None
    error_message: str | None = Field(default=None, validation_alias=_named("error_message", "error"))


class ExperimentRecord(Record):
    """An experiment; unfinished ones are kept as stopped."""

    naming = "name"

    name: Annotated[str, Field(min_length=1, max_length=255)]
    algorithm: Annotated[str, Field(min_length=1, max_length=50)]
    config: dict[str, Any] = Field(default_factory=dict[str, Any])
    status: Annotated[Literal["stopped", "completed", "failed"], _known(EXPERIMENT_STATUSES)] = "stopped"
    agent: Reference | None = Field(default=None, validation_alias=_named("agent", "agent_id", "agent_name"))
    start_time: When | None = None
    end_time: When | None = None
    metrics: dict[str, Any] = Field(default_factory=dict[str, Any])
    checkpoints: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    created_at: When | None = None


class MessageRecord(BaseModel):
    """What somebody said."""

    role: Literal["user", "human", "assistant", "ai", "system"] = Field(validation_alias=_named("role", "type"))
    content: str


class ConversationRecord(Record):
    """A session: who said what, oldest first."""

    naming = "session_id"

    session_id: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        validation_alias=_named("session_id", "conversation_id")
    )
    user: Reference | None = Field(default=None, validation_alias=_named("user", "user_id", "username", "owner"))
    messages: Annotated[list[MessageRecord], Field(min_length=1)] = Field(
        validation_alias=_named("messages", "history")
    )
    created_at: When | None = None
    updated_at: When | None = None


KINDS: Mapping[str, type[Record]] = MappingProxyType(
    {
        "users": UserRecord,
        "agents": AgentRecord,
        "knowledge": KnowledgeRecord,
        "tasks": TaskRecord,
        "experiments": ExperimentRecord,
        "conversations": ConversationRecord,
    }
)
"""In the order in which they are migrated: what is referred to comes first."""

OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in KINDS},
        "accounts": "users",
        "agent_configs": "agents",
        "knowledge_base": "knowledge",
        "knowledge_items": "knowledge",
        "task_history": "tasks",
        "rl_experiments": "experiments",
        "sessions": "conversations",
        "chat_history": "conversations",
    }
)
"""What files, and keys of a file that holds several kinds, may be called."""


def schema() -> dict[str, Any]:
    """JSON Schema of a file that holds several kinds; `$defs` has each record."""

    class Export(BaseModel):
        """JSON files for `agl migrate-json`: lists of records, by kind."""

        users: list[UserRecord] = []
        agents: list[AgentRecord] = []
        knowledge: list[KnowledgeRecord] = []
        tasks: list[TaskRecord] = []
        experiments: list[ExperimentRecord] = []
        conversations: list[ConversationRecord] = []

    found = Export.model_json_schema(mode="validation")
    for shape in KINDS.values():
        properties = found["$defs"][shape.__name__]["properties"]
        for field in shape.model_fields.values():
            if isinstance(field.validation_alias, AliasChoices):
                first, *others = map(str, field.validation_alias.choices)
                properties[first]["description"] = f"May be called {', '.join(others)}, too."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
