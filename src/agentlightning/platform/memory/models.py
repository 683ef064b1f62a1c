"""Tables of memory. Every row belongs to a user and goes with it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from agentlightning.platform.auth.models import NUMBER
from agentlightning.platform.columns import DOCUMENT, Moment
from agentlightning.platform.database import Base

_NEVER_AGAIN = {"sqlite_autoincrement": True}


class Conversation(Base):
    """One session of one user. Other users may have sessions of the same name."""

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("user_id", "session_id", name="uq_conversations_user_id"),
        Index("ix_conversations_user_id", "user_id", "id"),
        _NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    user_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("users.id", ondelete="CASCADE"))
    session_id: Mapped[str] = mapped_column(String(200))
    summary: Mapped[str] = mapped_column(Text, default="")
    """Of the first `summarised` messages."""
    summarised: Mapped[int] = mapped_column(Integer, default=0)
    truncated: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether messages were left out without a summary, because there was no model to write it."""
    messages: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)


class ConversationMessage(Base):
    """One message, as LangChain writes it; nothing is removed when it is summarised."""

    __tablename__ = "conversation_messages"

    conversation_id: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(32))
    message: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    created_at: Mapped[datetime] = mapped_column(Moment)


class Memory(Base):
    """Something to be recalled by its meaning."""

    __tablename__ = "memories"
    __table_args__ = (
        UniqueConstraint("user_id", "text_hash", name="uq_memories_user_id"),
        Index("ix_memories_user_id", "user_id", "id"),
        _NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    user_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("users.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(32), default="fact")
    session_id: Mapped[str | None] = mapped_column(String(200))
    about: Mapped[dict[str, Any]] = mapped_column("metadata", DOCUMENT, default=dict)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)
    recalled_at: Mapped[datetime | None] = mapped_column(Moment)
    recalls: Mapped[int] = mapped_column(Integer, default=0)
    text_hash: Mapped[str] = mapped_column(String(64))
    embedder: Mapped[str] = mapped_column(String(100))
    vector: Mapped[bytes] = mapped_column(LargeBinary)
