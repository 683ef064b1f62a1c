"""What memory's endpoints take and give."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from agentlightning.platform.knowledge.schemas import Metadata

_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"

SessionName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_NO_CONTROLS)]
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4_000)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class MemoryIn(_In):
    """Something to remember."""

    text: Text
    kind: Kind = "fact"
    session_id: SessionName | None = None
    metadata: Metadata = {}


class MemoryChange(_In):
    """What to correct; what is left out stays."""

    text: Text | None = None
    metadata: Metadata | None = None


class RecallIn(_In):
    """A question to one's memories."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=4_000)]
    limit: Annotated[int, Field(ge=1, le=100)] = 5
    kind: Kind | None = None


class MemoryOut(BaseModel):
    """A memory. Times are Unix seconds."""

    id: int
    text: str
    kind: str
    session_id: str | None
    metadata: dict[str, Any]
    created_at: float
    updated_at: float
    recalled_at: float | None
    recalls: int


class MemoriesPage(BaseModel):
    """Newest first; `next` is the next page's `before`."""

    next: int | None
    memories: list[MemoryOut]


class Why(BaseModel):
    """Why it was recalled: how near its meaning is, and which words it shares with the question."""

    similarity: float
    words: list[str]


class RecalledOut(BaseModel):
    """A memory that was recalled."""

    id: int
    text: str
    kind: str
    session_id: str | None
    metadata: dict[str, Any]
    score: float
    why: Why


class SessionOut(BaseModel):
    """A session: the first `summarised` messages are replaced by `summary` where a model reads it, or left out."""

    session_id: str
    messages: int
    summary: str
    summarised: int
    truncated: bool
    created_at: float
    updated_at: float


class SessionsPage(BaseModel):
    """Newest first; `next` is the next page's `before`."""

    next: int | None
    sessions: list[SessionOut]


class MessageOut(BaseModel):
    """A message as it was said."""

    position: int
    type: str
    content: str
    created_at: float


class SessionPage(SessionOut):
    """A session and a part of its messages; `next` is the next page's `start`."""

    next: int | None
    entries: list[MessageOut]
