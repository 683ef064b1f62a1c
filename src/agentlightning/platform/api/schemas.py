"""What identity's endpoints take and give. Fields that are not named here are refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from agentlightning.platform.envelope import Success
from agentlightning.schemas.plain import stripped

Username = Annotated[
    str, StringConstraints(strip_whitespace=True, to_lower=True, pattern=r"^\s*[A-Za-z0-9][A-Za-z0-9._@-]{1,63}\s*$")
]
Password = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"  # no NUL, which PostgreSQL does not keep, and nothing that moves a cursor
_NAME = r"^\s*[^\x00-\x1f\x7f]*\s*$"  # what is stripped is allowed
Line = Annotated[str, StringConstraints(max_length=255, pattern=_NO_CONTROLS)]
Token = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
RoleName = Literal["admin", "developer", "user"]
Permission = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z]{1,32}:(\*|[a-z]{1,32}))$")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class LoginIn(_In):
    """Name and password."""

    username: Annotated[Line, StringConstraints(min_length=1)]
    password: Password


class RefreshIn(_In):
    """The refresh token of the last answer; it is good once."""

    refresh_token: Token


class PasswordIn(_In):
    """The password of now, and the new one."""

    current_password: Password
    new_password: Password


class UserIn(_In):
    """A new user; without a password a one-time one is made and answered once."""

    username: Username
    role: RoleName = "user"
    password: Password | None = None


class UserChange(_In):
    """What to change; `reset_password` makes a one-time password and answers it once."""

    role: RoleName | None = None
    disabled: StrictBool | None = None
    reset_password: Literal[True] | None = None


class KeyIn(_In):
    """A new API key; `permissions` limit it further than the role does."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=_NAME), AfterValidator(stripped)]
    expires_in_s: Annotated[int, Field(ge=1, le=10 * 365 * 86_400)] | None = None
    permissions: Annotated[list[Permission], Field(min_length=1, max_length=50)] | None = None


class UserOut(BaseModel):
    """A user. Times are Unix seconds."""

    user_id: str
    username: str
    role: str
    permissions: list[str]
    disabled: bool
    must_change_password: bool
    created_at: float
    last_login_at: float | None


class NewUserOut(UserOut):
    """A user with the one-time password made for it, if one was."""

    one_time_password: str | None = None


class TokensOut(BaseModel):
    """Both tokens, and seconds that the access token is good for."""

    access_token: str
    refresh_token: str
    token_type: str = "bearer"
    expires_in: int
    refresh_expires_in: int
    user: UserOut


class LoginSuccess(Success[TokensOut]):
    """The tokens stand at the top level, too."""

    access_token: str
    refresh_token: str


class KeyOut(BaseModel):
    """An API key, without the key."""

    id: int
    name: str
    prefix: str
    permissions: list[str] | None
    created_at: float
    expires_at: float | None
    used_at: float | None


class NewKeyOut(KeyOut):
    """An API key with the key itself, this once."""

    key: str


class AuditOut(BaseModel):
    """An entry of the audit log."""

    id: int
    at: float
    actor: str
    action: str
    target: str
    request_id: str
    address: str
    details: dict[str, Any]


class Page(BaseModel):
    """Where the next page starts: `after` or `before`; `None` when this was the last."""

    next: int | None


class UsersPage(Page):
    """Users by number."""

    users: list[UserOut]


class AuditPage(Page):
    """Entries, newest first."""

    entries: list[AuditOut]
