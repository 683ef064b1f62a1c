"""`Platform`: the platform's API as typed calls, by resource."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from agentlightning.client.agents import Agents
from agentlightning.client.extras import Memory, Tools
from agentlightning.client.knowledge import Knowledge
from agentlightning.client.models import ApiKey, AuditEntry, NewApiKey, NewUser, User
from agentlightning.client.resources import Experiments, Resource, Tasks, given
from agentlightning.client.system import System
from agentlightning.client.transport import Transport, part
from agentlightning.kit.errors import ConfigError


class Platform:
    """A platform, and who you are there.

        with Platform("http://localhost:8000", username="ada", password="…") as platform:
            print(platform.tasks.run("How many countries are there?", agent="sql_agent").output)

    Args:
        base_url: Where it is.
        username: Log in as this user; the login renews itself and ends with `close`.
        password: Of that user.
        api_key: Instead of a login. Nothing has to be closed then.
        timeout_s: Longest wait for an answer.
        http: For tests: another way to send requests.

    Raises:
        ConfigError: The URL is none, or both a login and a key are given.
        UnauthorizedError: The login is refused.
        PlatformError: The platform does not answer.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        username: str | None = None,
        password: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        http: httpx.BaseTransport | None = None,
    ) -> None:
        if (username is None) != (password is None) or (username is not None and api_key is not None):
            raise ConfigError("Give username and password, or api_key.")
        self._transport = Transport(base_url, api_key=api_key, timeout_s=timeout_s, http=http)
        self.agents = Agents(self._transport)
        self.tasks = Tasks(self._transport)
        self.knowledge = Knowledge(self._transport)
        self.experiments = Experiments(self._transport)
        self.memory = Memory(self._transport)
        self.tools = Tools(self._transport)
        self.system = System(self._transport)
        self.users = Users(self._transport)
        self.api_keys = ApiKeys(self._transport)
        if username is not None and password is not None:
            try:
                self.login(username, password)
            except BaseException:
                self._transport.close()
                raise

    def login(self, username: str, password: str) -> User:
        """Log in; `must_change_password` says that nothing else works before `change_password`."""
        return User.model_validate(self._transport.log_in(username, password))

    def profile(self) -> User:
        """Who you are and what you may do."""
        return User.model_validate(self._transport.call("GET", "/auth/profile"))

    def change_password(self, current: str, new: str) -> None:
        """Set a new password. All logins end, this one too: log in again."""
        self._transport.call("PUT", "/auth/password", json={"current_password": current, "new_password": new})
        self._transport.forget()

    def health(self) -> dict[str, Any]:
        """State of the platform's parts; needs no login."""
        return self._transport.call("GET", "/api/v2/health")

    def audit(self) -> Iterator[AuditEntry]:
        """The audit log, newest first, read while it is iterated over."""
        return self.users.pages("/api/v2/audit", "entries", AuditEntry, "before")

    def close(self) -> None:
        """End the login, if there is one, and close the connections."""
        try:
            self._transport.log_out()
        finally:
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Users(Resource):
    """Users, for admins."""

    def __iter__(self) -> Iterator[User]:
        return self.pages("/api/v2/users", "users", User, "after")

    def get(self, user_id: str) -> User:
        """One user."""
        return User.model_validate(self._transport.call("GET", f"/api/v2/users/{part(user_id)}"))

    def create(self, username: str, *, role: str = "user", password: str | None = None) -> NewUser:
        """A new user; without a password the answer holds a one-time one."""
        body = given(username=username, role=role, password=password)
        return NewUser.model_validate(self._transport.call("POST", "/api/v2/users", json=body))

    def update(
        self, user_id: str, *, role: str | None = None, disabled: bool | None = None, reset_password: bool = False
    ) -> NewUser:
        """Change role or state, or make a one-time password. The user's logins end."""
        body = given(role=role, disabled=disabled, reset_password=reset_password or None)
        return NewUser.model_validate(
            self._transport.call("PATCH", f"/api/v2/users/{part(user_id)}", json=body, repeatable=not reset_password)
        )

    def delete(self, user_id: str) -> None:
        """Remove a user with its logins and keys."""
        self._transport.call("DELETE", f"/api/v2/users/{part(user_id)}")


class ApiKeys(Resource):
    """Your own API keys; they need a login."""

    def __iter__(self) -> Iterator[ApiKey]:
        found = self._transport.call("GET", "/api/v2/api-keys")
        return iter([ApiKey.model_validate(item) for item in (found["keys"] if isinstance(found, dict) else found)])

    def create(self, name: str, *, expires_in_s: int | None = None, permissions: list[str] | None = None) -> NewApiKey:
        """A new key; it is shown in this answer only."""
        body = given(name=name, expires_in_s=expires_in_s, permissions=permissions)
        return NewApiKey.model_validate(self._transport.call("POST", "/api/v2/api-keys", json=body))

    def delete(self, key_id: int) -> None:
        """Remove a key; it is refused from now on."""
        self._transport.call("DELETE", f"/api/v2/api-keys/{key_id}")
