"""Tables of identity: users, logins, API keys, and the audit log, which is only ever added to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from agentlightning.platform.database import Base

NUMBER = BigInteger().with_variant(Integer, "sqlite")
"""Of rows; SQLite counts up by itself only on INTEGER."""
MAX_NUMBER = 2**63 - 1

_NEVER_AGAIN = {"sqlite_autoincrement": True}  # a deleted user's number is not given to the next one


class User(Base):
    """Somebody who may log in. Times are Unix seconds, here and below."""

    __tablename__ = "users"
    __table_args__ = (_NEVER_AGAIN,)

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    username: Mapped[str] = mapped_column(String(64), unique=True)
    password_hash: Mapped[str] = mapped_column(String(128))
    role: Mapped[str] = mapped_column(String(32))
    disabled: Mapped[bool] = mapped_column(Boolean, server_default=false(), default=False)
    must_change_password: Mapped[bool] = mapped_column(Boolean, server_default=false(), default=False)
    created_at: Mapped[float] = mapped_column(Float(53))
    updated_at: Mapped[float] = mapped_column(Float(53))
    last_login_at: Mapped[float | None] = mapped_column(Float(53))


class Login(Base):
    """One login, and the family of all tokens that came from it. `refresh_id` is the one refresh token still good."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("users.id", ondelete="CASCADE"), index=True)
    refresh_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float(53))
    used_at: Mapped[float] = mapped_column(Float(53))
    expires_at: Mapped[float] = mapped_column(Float(53), index=True)
    revoked_at: Mapped[float | None] = mapped_column(Float(53))
    revoked_because: Mapped[str | None] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    client: Mapped[str] = mapped_column(String(200))


class ApiKey(Base):
    """A key of a user; only its SHA-256 is kept, and enough of its beginning to recognise it."""

    __tablename__ = "api_keys"
    __table_args__ = (_NEVER_AGAIN,)

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    user_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(16))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    permissions: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[float] = mapped_column(Float(53))
    expires_at: Mapped[float | None] = mapped_column(Float(53))
    used_at: Mapped[float | None] = mapped_column(Float(53))


class Ticket(Base):
    """Opens one websocket for the login or key that asked for it: browsers send no headers with those."""

    __tablename__ = "websocket_tickets"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("users.id", ondelete="CASCADE"))
    session_id: Mapped[str | None] = mapped_column(String(64))
    key_id: Mapped[int | None] = mapped_column(NUMBER)
    expires_at: Mapped[float] = mapped_column(Float(53), index=True)


class AuditEntry(Base):
    """Who did what to what. Names are copied: they outlive what they name."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_actor", "actor", "id"),
        Index("ix_audit_log_action", "action", "id"),
        _NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    at: Mapped[float] = mapped_column(Float(53))
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
