"""Requests with a login that renews itself, answers without envelope, failures as typed errors. Knows no endpoints."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from agentlightning import __version__
from agentlightning.kit.errors import (
    AgentLightningError,
    BadInputError,
    ConfigError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnauthorizedError,
)

_RETRIES = 3
_LONGEST_WAIT_S = 30.0
_FIRST_WAIT_S = 0.2
_RENEW_BEFORE_S = 20.0
_BUSY = (429, 502, 503, 504)


class PlatformError(AgentLightningError):
    """The platform could not do what was asked, or did not answer. `code` is the platform's."""

    code = "PLATFORM_FAILED"
    status = 502


_ERRORS: dict[int, type[AgentLightningError]] = {
    400: BadInputError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    422: BadInputError,
}


class Transport:
    """One platform and one way to say who asks: an API key, or a login whose tokens are renewed in time.

    Safe to use from several threads.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None, timeout_s: float, http: httpx.BaseTransport | None = None
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{base_url!r} is no URL of a platform.", hint="For example http://localhost:8000")
        self._http = httpx.Client(
            base_url=base_url.rstrip("/"),
            timeout=timeout_s,
            transport=http,
            headers={"User-Agent": f"agentlightning/{__version__}"},
            follow_redirects=False,
        )
        self.api_key = api_key
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._access: str | None = None
        self._refresh: str | None = None
        self._good_until = 0.0

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The `data` of the answer.

        Args:
            method: Of HTTP.
            path: From the root.
            json: The body.
            content: The body, where it is a file.
            query: Parameters; those that are `None` are left out.
            headers: Besides the usual ones.
            repeatable: Whether sending it twice does no harm, so that it may be sent again when the platform is busy or
                away; by default for reading. After 429 it always is: nothing was done.
            timeout_s: Longest wait, where it is longer than that of other calls.

        Raises:
            UnauthorizedError: No login, or it has ended.
            ForbiddenError: Not allowed to this user or key.
            NotFoundError: There is no such thing, or it is somebody else's.
            ConflictError: Somebody else changed it meanwhile.
            BadInputError: The platform does not take this; `details["problems"]` names the places.
            PlatformError: Anything else: it is busy, away, or broken.
        """
        again = method in ("GET", "HEAD") if repeatable is None else repeatable
        asked = {key: value for key, value in (query or {}).items() if value is not None}
        attempt, renewed = 0, path == "/auth/login"
        while True:
            who = {} if path == "/auth/login" else self._who()
            sent: dict[str, Any] = {
                "headers": {**who, **(headers or {})},
                "params": asked,
                "json": json,
                "content": content,
            }
            if timeout_s is not None:
                sent["timeout"] = max(timeout_s, self._timeout_s)
            try:
                answer = self._http.request(method, path, **sent)
            except httpx.TransportError as error:
                if attempt == _RETRIES or not (again or isinstance(error, httpx.ConnectError)):
                    raise PlatformError(
                        f"{self._http.base_url} does not answer: {type(error).__name__} {error}".rstrip(),
                        hint="Is it running? `agl up` starts it.",
                    ) from error
                time.sleep(_wait_s(attempt, None))  # a platform that restarts needs a moment; longer each time
                attempt += 1
                continue
            if answer.status_code == 401 and not renewed and self._expired(who.get("Authorization")):
                renewed = True  # by the platform's clock the token was over; nothing was done
                continue
            if attempt == _RETRIES or not (answer.status_code == 429 or (again and answer.status_code in _BUSY)):
                return _data(answer)
            time.sleep(_wait_s(attempt, answer.headers.get("retry-after")))  # as long as the platform asks for
            attempt += 1

    def stream(self, path: str, *, query: Mapping[str, Any], timeout_s: float | None) -> Any:
        """An answer that is read piece by piece; a context manager, see `httpx.Client.stream`."""
        asked = {key: value for key, value in query.items() if value is not None}
        return self._http.stream("GET", path, params=asked, headers=self._who(), timeout=timeout_s)

    def raise_for(self, answer: httpx.Response) -> None:
        """Say what a failed answer says.

        Raises:
            AgentLightningError: Always.
        """
        _data(answer)
        raise PlatformError(f"{answer.request.url} answered {answer.status_code}.")

    def log_in(self, username: str, password: str) -> Any:
        """Take the tokens of a login; returns its user."""
        data = self.call("POST", "/auth/login", json={"username": username, "password": password})
        with self._lock:
            self._keep(data)
        return data["user"]

    def log_out(self) -> None:
        """End the login; without one nothing happens."""
        if self._access is not None:
            self.call("POST", "/auth/logout")
            self.forget()

    def forget(self) -> None:
        """Go on without a login."""
        with self._lock:
            self._access = self._refresh = None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _who(self) -> dict[str, str]:
        if self.api_key is not None:
            return {"X-API-Key": self.api_key}
        with self._lock:
            if self._access is None:
                return {}
            if time.monotonic() > self._good_until:
                self._renew()
            return {"Authorization": f"Bearer {self._access}"}

    def _expired(self, sent: str | None) -> bool:
        """After a refusal of what was sent: whether there is another token to try."""
        with self._lock:
            if sent is None or self._access is None:
                return False
            if sent == f"Bearer {self._access}":
                self._good_until = 0.0
            return True

    def _renew(self) -> None:
        """A refresh token is good once, so one thread at a time gets here."""
        token, self._access, self._refresh = self._refresh, None, None
        try:
            answer = self._http.post("/auth/refresh", json={"refresh_token": token})
        except httpx.TransportError as error:
            # Whether the platform took it is unknown; a token used twice ends the login, so it is not tried again.
            raise UnauthorizedError(
                f"The login could not be renewed: {type(error).__name__}.", hint="Log in again."
            ) from error
        self._keep(_data(answer))

    def _keep(self, data: Any) -> None:
        self._access, self._refresh = data["access_token"], data["refresh_token"]
        self._good_until = time.monotonic() + max(data["expires_in"] - _RENEW_BEFORE_S, data["expires_in"] / 2)


def part(text: object) -> str:
    """Of a path: whatever it holds, it stays one part."""
    return quote(str(text), safe="")


def _data(answer: httpx.Response) -> Any:
    try:
        body = answer.json()
        if answer.is_success:
            return body["data"]
        said = body["error"]
        code, message, hint = str(said["code"]), str(said["message"]), str(said.get("hint") or "")
        details = dict(said.get("details") or {})
    except (ValueError, KeyError, TypeError) as error:
        raise PlatformError(
            f"{answer.request.url} answered {answer.status_code}, but not as a platform does.",
            hint="Is this the address of `agl up`?",
        ) from error
    found = _ERRORS.get(answer.status_code, PlatformError)(
        message, hint=hint, details={**details, "request_id": body.get("request_id")}
    )
    found.code, found.status = code, answer.status_code
    raise found


def _wait_s(attempt: int, told: str | None) -> float:
    """As long as the platform says, else longer each time."""
    if told is not None and told.isascii() and told.isdigit():
        return min(float(told), _LONGEST_WAIT_S)
    return _FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.5)
