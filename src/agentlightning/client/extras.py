"""Memories, conversations and tools, as typed calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentlightning.client.models import Conversation, KeptMemory, ToolInfo, ToolResult
from agentlightning.client.resources import Resource, given
from agentlightning.client.transport import part

_MEMORIES = "/api/v2/memory/memories"
_SESSIONS = "/api/v2/memory/sessions"


class Memory(Resource):
    """What is remembered of you, by meaning, and your conversations."""

    def __iter__(self) -> Iterator[KeptMemory]:
        return self.pages(_MEMORIES, "memories", KeptMemory, "before")

    def remember(self, text: str, *, kind: str | None = None, session_id: str | None = None) -> KeptMemory:
        """Keep a text; the same text is kept once."""
        body = given(text=text, kind=kind, session_id=session_id)
        return KeptMemory.model_validate(self._transport.call("POST", _MEMORIES, json=body, repeatable=True))

    def recall(self, text: str, *, limit: int | None = None, kind: str | None = None) -> list[KeptMemory]:
        """Those nearest in meaning, best first, each with `score` (0 to 1) and `why`."""
        body = given(text=text, limit=limit, kind=kind)
        found = self._transport.call("POST", f"{_MEMORIES}/search", json=body, repeatable=True)
        return [KeptMemory.model_validate(item) for item in found]

    def get(self, memory_id: int) -> KeptMemory:
        """One of yours."""
        return KeptMemory.model_validate(self._transport.call("GET", f"{_MEMORIES}/{memory_id}"))

    def update(
        self, memory_id: int, *, text: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> KeptMemory:
        """Change one."""
        body = given(text=text, metadata=None if metadata is None else dict(metadata))
        answer = self._transport.call("PUT", f"{_MEMORIES}/{memory_id}", json=body, repeatable=True)
        return KeptMemory.model_validate(answer)

    def forget(self, memory_id: int) -> None:
        """Remove one."""
        self._transport.call("DELETE", f"{_MEMORIES}/{memory_id}")

    def conversations(self) -> Iterator[Conversation]:
        """Your sessions, newest first, without what was said."""
        return self.pages(_SESSIONS, "sessions", Conversation, "before")

    def conversation(self, session_id: str) -> Conversation:
        """One session; `entries` is what was said, its first page."""
        return Conversation.model_validate(self._transport.call("GET", f"{_SESSIONS}/{part(session_id)}"))

    def forget_conversation(self, session_id: str) -> None:
        """Remove a session."""
        self._transport.call("DELETE", f"{_SESSIONS}/{part(session_id)}")


class Tools(Resource):
    """What agents can do besides talking."""

    def __iter__(self) -> Iterator[ToolInfo]:
        return iter([ToolInfo.model_validate(item) for item in self._transport.call("GET", "/api/v2/tools")["tools"]])

    def run(self, name: str, arguments: Mapping[str, Any], *, session_id: str | None = None) -> ToolResult:
        """Call one; a tool that ran and failed says `is_error`.

        Raises:
            NotFoundError: There is none of that name.
            PlatformError: It is off (`TOOL_UNAVAILABLE`), or the arguments do not fit (`TOOL_FAILED`).
        """
        body = given(arguments=dict(arguments), session_id=session_id)
        return ToolResult.model_validate(self._transport.call("POST", f"/api/v2/tools/{part(name)}/run", json=body))
