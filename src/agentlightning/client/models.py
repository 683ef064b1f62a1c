"""What the API answers, as typed data. Fields that a newer platform adds are kept as extras."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="allow")


class User(Answer):
    """A user. Times are Unix seconds."""

    user_id: str
    username: str
    role: str
    permissions: list[str]
    disabled: bool
    must_change_password: bool
    created_at: float
    last_login_at: float | None = None


class NewUser(User):
    """A user with the one-time password made for it, if one was."""

    one_time_password: str | None = None


class ApiKey(Answer):
    """An API key, without the key."""

    id: int
    name: str
    prefix: str
    permissions: list[str] | None = None
    created_at: float
    expires_at: float | None = None
    used_at: float | None = None


class NewApiKey(ApiKey):
    """An API key with the key itself, which is shown once."""

    key: str


class AuditEntry(Answer):
    """Who did what, when."""

    id: int
    at: float
    actor: str
    action: str
    target: str
    request_id: str
    address: str
    details: dict[str, Any]
