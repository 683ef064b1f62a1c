"""Requests to one model server: retries, timeouts, and what goes wrong as `CallError`. Knows no API."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.upstream.replies import error_of, failed_answer, unreachable
from agentlightning.gateway.upstream.retry import RetryPolicy
from agentlightning.gateway.upstream.sse import EventTooLargeError, SseReader
from agentlightning.kit.redaction import Redaction

if TYPE_CHECKING:
    import aiohttp


_FIELDS = (b"data:", b"event:", b":", b"id:", b"retry:")
_LARGE_BYTES = 500_000
_SECRET = frozenset({"Authorization", "x-api-key"})
_SECRET_PARAMETER = re.compile(r"key|token|secret|sig|auth|pass|code", re.IGNORECASE)


class Connection:
    """Connections to one server.

    Args:
        base_url: Where paths are appended. Credentials in it (`http://user:password@host`) are sent as basic
            authentication, in place of a bearer token, and shown nowhere; so is a query, which goes behind each path.
        headers: Sent with every request; never logged.
        connect_timeout_s: Longest time to connect.
        idle_timeout_s: Longest silence of the server during an answer.
        retry: When and how often to try again.
        max_answer_bytes: Largest answer that is read; streamed ones may be longer.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        connect_timeout_s: float = 10.0,
        idle_timeout_s: float = 300.0,
        retry: RetryPolicy | None = None,
        max_answer_bytes: int = 256 << 20,
    ) -> None:
        self._max_answer_bytes = max_answer_bytes
        url, _, query = base_url.partition("?")
        self.base_url, credentials = _without_credentials(url.rstrip("/"))
        self._query = f"?{query}" if query else ""
        self._basic = _basic(credentials)
        self._redaction = Redaction([] if credentials is None else [credentials[1]])
        self._redaction.add(value for name, value in parse_qsl(query) if _SECRET_PARAMETER.search(name))
        self._headers: Mapping[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self.use_headers(headers)
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._retry = retry or RetryPolicy()

    def use_headers(self, headers: Mapping[str, str]) -> None:
        """Send these with every request from now on; requests that are under way keep theirs."""
        sent = {"Content-Type": "application/json", **headers, **self._basic}
        # Earlier keys stay hidden: an answer to an earlier request may be under way.
        self._redaction.add(value.partition(" ")[2] or value for name, value in sent.items() if name in _SECRET)
        self._headers = sent
        if self._session is not None:  # it has taken them over when it was opened
            self._session.headers.clear()
            self._session.headers.update(sent)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def read(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        deadline: float | None = None,
    ) -> bytes:
        """The whole answer; raises what `request` raises."""
        try:
            response = await self._send(method, path, body, headers, deadline)
            async with response:
                return await self._read_whole(response)
        except (TimeoutError, OSError, self._client_error()) as error:
            raise self._failure(error) from error

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        deadline: float | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The server's good answer, after retries; what goes wrong while it is read is raised as `CallError` too.

        Args:
            method: As in HTTP.
            path: Below the base URL.
            body: Sent as JSON.
            headers: Beside those of every request.
            deadline: On the event loop's clock; no further try begins later.

        Raises:
            CallError: The server's own refusal, or 502, 503, 504 when it fails, is down or hangs.
        """
        try:
            response = await self._send(method, path, body, headers, deadline)
            async with response:
                yield response
        except (TimeoutError, OSError, self._client_error()) as error:
            raise self._failure(error) from error

    @staticmethod
    def _client_error() -> type[Exception]:
        import aiohttp

        return aiohttp.ClientError

    def _failure(self, error: Exception) -> CallError:
        """What went wrong with the connection, as the client is told."""
        import aiohttp

        if isinstance(error, TimeoutError):
            return CallError(
                f"{self.base_url} did not answer: it was silent for {self._idle_timeout_s:g} s.",
                status=504,
                reason="timeout",
                is_retryable=False,
            )
        if isinstance(error, aiohttp.ClientConnectorError):
            return unreachable(self.base_url, error)
        why = self._redaction.text(str(error)) or type(error).__name__
        return failed_answer(self.base_url, f"the connection broke: {why}")

    async def _read_whole(self, response: aiohttp.ClientResponse) -> bytes:
        size = response.content_length
        if size is not None and size <= self._max_answer_bytes:
            return await response.read()
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._max_answer_bytes:
                raise failed_answer(self.base_url, f"it exceeds {self._max_answer_bytes} bytes")
        return bytes(data)

    def error(self, status: int, raw: bytes, headers: Mapping[str, str] | None = None) -> CallError:
        """The error for a bad answer; a server that repeats the key it was sent does not get it any further."""
        return error_of(self.base_url, status, self._redaction.raw(raw), headers)

    def failed(self, what: str, raw: bytes) -> CallError:
        """The error for an answer that is none; its beginning is shown, without the key."""
        return failed_answer(self.base_url, f"{what}: {self._redaction.raw(raw)[:200]!r}")

    async def events(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """The server-sent events of an answer.

        Raises:
            CallError: 502, an event never ends.
        """
        reader = SseReader()
        try:
            async for data in response.content.iter_any():
                for event in reader.feed(data):
                    yield self._checked(event)
        except EventTooLargeError as error:
            raise failed_answer(self.base_url, str(error)) from error
        if reader.rest.strip():
            yield self._checked(reader.rest.rstrip() + b"\n\n")  # some servers leave out the last blank line

    def _checked(self, event: bytes) -> bytes:
        """The event; what is none, such as a page of HTML, would be passed on as if it were."""
        if not event.lstrip(b"\r\n").startswith(_FIELDS):
            raise self.failed("it is no event stream", event)
        return event

    async def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: Mapping[str, str] | None,
        deadline: float | None,
    ) -> aiohttp.ClientResponse:
        import aiohttp

        data = None if body is None else orjson.dumps(body)
        attempt = 0
        while True:
            attempt += 1
            try:
                # A large body as a stream, so that aiohttp sends it piece by piece.
                sent = io.BytesIO(data) if data is not None and len(data) > _LARGE_BYTES else data
                # Redirects are not followed: they would carry the key elsewhere.
                response = await self._open_session().request(
                    method,
                    self.base_url + path + self._query,
                    data=sent,
                    headers=headers or None,
                    allow_redirects=False,
                )
            except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError, ConnectionResetError):
                delay_s = self._delay_s(attempt, deadline, status=None, headers={})
                if delay_s is None:
                    raise
            else:
                if response.status < 300:
                    return response
                delay_s = self._delay_s(attempt, deadline, status=response.status, headers=response.headers)
                if delay_s is None:
                    async with response:
                        raise self.error(response.status, await self._read_whole(response), response.headers)
                response.release()
            await asyncio.sleep(delay_s)

    def _delay_s(
        self, attempt: int, deadline: float | None, *, status: int | None, headers: Mapping[str, str]
    ) -> float | None:
        delay_s = self._retry.delay_s(attempt, status=status, headers=headers)
        if delay_s is None or deadline is None or asyncio.get_running_loop().time() + delay_s < deadline:
            return delay_s
        return None  # the client would be gone: better tell it now what went wrong

    def _open_session(self) -> aiohttp.ClientSession:
        # Not in the constructor: a session belongs to the running event loop.
        if self._session is None:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_s, sock_read=self._idle_timeout_s)
            # The gateway limits calls in flight itself.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=timeout,
                headers=self._headers,
                read_bufsize=1 << 18,
                cookie_jar=aiohttp.DummyCookieJar(),  # one agent's cookies are not another's
            )
        return self._session


def _without_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """A URL without user and password, and these."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, None
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), (unquote(user), unquote(password))


def _basic(credentials: tuple[str, str] | None) -> dict[str, str]:
    if credentials is None:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(':'.join(credentials).encode()).decode()}"}


def json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in the text, or `None`."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
