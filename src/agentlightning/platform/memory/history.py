"""A session as LangChain knows it. Imported only where LangChain is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from agentlightning.kit.errors import NotFoundError


class Sessions(Protocol):
    """What keeps the messages: the memory service."""

    async def shortened(self, user: int, session_id: str) -> list[dict[str, Any]]:
        """Messages for a model."""
        ...

    async def keep(self, user: int, session_id: str, messages: Sequence[dict[str, Any]]) -> None:
        """Add messages."""
        ...

    async def forget_session(self, user: int, session_id: str) -> None:
        """Remove a session."""
        ...


class SessionHistory(BaseChatMessageHistory):
    """The messages that a model is to see: a summary of the older ones, then the newer ones word for word.

    It lives in the platform's event loop: `aget_messages`, `aadd_messages` and `aclear` are its calls. The synchronous
    ones cannot wait for a database there, and say so.
    """

    def __init__(self, service: Sessions, session_id: str, user: int) -> None:
        super().__init__()
        self._service = service
        self.session_id = session_id
        self.user = user

    async def aget_messages(self) -> list[BaseMessage]:
        """Oldest first."""
        return messages_from_dict(await self._service.shortened(self.user, self.session_id))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Keep them; a long session is shortened."""
        await self._service.keep(self.user, self.session_id, [message_to_dict(message) for message in messages])

    async def aclear(self) -> None:
        """Forget the session."""
        try:
            await self._service.forget_session(self.user, self.session_id)
        except NotFoundError:
            return

    @property
    def messages(self) -> list[BaseMessage]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Not here.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Use aget_messages: this history lives in an event loop.")

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Not here.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Use aadd_messages: this history lives in an event loop.")

    def clear(self) -> None:
        """Not here.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Use aclear: this history lives in an event loop.")

    def __repr__(self) -> str:
        return f"SessionHistory(user={self.user}, session_id={self.session_id!r})"
