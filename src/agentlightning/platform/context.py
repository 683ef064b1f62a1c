"""What is known of the request being answered: its id, its caller's address, who the caller is. Pure data."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from agentlightning.kit.errors import UnauthorizedError


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. Role and state are the database's, never the token's.

    Attributes:
        user_id: Number of the user.
        session_id: The login it came with; `None` for an API key.
        key_id: The API key it came with; `None` for a login.
        scopes: What the API key is limited to; `None` is everything that the role may do.
    """

    user_id: int
    username: str
    role: str
    must_change_password: bool = False
    session_id: str | None = None
    key_id: int | None = None
    scopes: tuple[str, ...] | None = None


@dataclass(slots=True)
class RequestContext:
    """One request, from its first byte to its last."""

    request_id: str
    address: str
    route: str = "unmatched"
    kind: str = ""
    """Of a mounted route with limits of its own."""
    identity: Identity | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    """Added to the answer, whatever it is."""

    @property
    def who(self) -> Identity:
        """The caller.

        Raises:
            UnauthorizedError: Nobody has said who it is.
        """
        if self.identity is None:
            raise UnauthorizedError("This needs a login.", hint="POST /auth/login")
        return self.identity


_current: ContextVar[RequestContext | None] = ContextVar("agl_request", default=None)


def set_context(context: RequestContext) -> Any:
    """Make it the current one; `reset_context` takes what this returns."""
    return _current.set(context)


def reset_context(token: Any) -> None:
    """Go back to what was before."""
    _current.reset(token)


def current() -> RequestContext:
    """Of the request being answered; outside of one a context of the system itself."""
    return _current.get() or RequestContext(request_id="system", address="")
