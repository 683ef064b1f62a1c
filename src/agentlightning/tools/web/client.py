"""A guarded HTTP client: for addresses that a model, or a page that it read, came up with. Knows no tools.

Each name is resolved once, by this client; every address it has must be public, and the connection is made to one of
those (TLS still verifies the name). Each hop of a redirect goes through the same. Bounded in time, size, also when
decompressed, and hops; proxies and credentials of the environment are not used.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urljoin

import httpcore
import httpx

from agentlightning.kit.errors import AgentLightningError
from agentlightning.tools.web.addresses import is_public, literal

Resolve = Callable[[str, int], Awaitable[list[str]]]
Permit = Callable[[str, httpx.URL], None]
"""Is told method and address of each hop; raises to refuse it."""

PORTS = frozenset({80, 443, 8080, 8443})
USER_AGENT = "agentlightning-tools/1"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEPT_ACROSS = frozenset({"accept", "accept-language", "user-agent"})
_OURS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive", "expect"}
    | {"accept-encoding"}
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PIECE = 64 * 1024


class WebError(AgentLightningError):
    """A server could not be reached, or its answer cannot be used."""

    code = "WEB_FAILED"
    status = 502


class WebDeniedError(WebError):
    """The address may not be used from here."""

    code = "WEB_DENIED"
    status = 403


@dataclass(frozen=True)
class Fetched:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    url: str
    """Where it came from, after redirects."""
    hops: tuple[str, ...] = ()
    truncated: bool = False
    """The body was longer than allowed and cut, because the caller asked for that."""

    @property
    def content_type(self) -> str:
        """Without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def text(self) -> str:
        """The body as text, by the charset that the answer names, else UTF-8."""
        found = re.search(r"charset=\"?([\w.:-]+)", self.headers.get("content-type", ""), re.IGNORECASE)
        try:
            return self.body.decode(found[1] if found else "utf-8", errors="replace")
        except LookupError:
            return self.body.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class GuardedClient:
    """The client.

    Args:
        trusted: `host:port` that may have private addresses, because an operator wrote them into the settings.
        ports: All other ports are refused, except of `trusted`.
        timeout_s: For everything together, redirects included.
        max_bytes: Of a body, as sent and as decompressed.
        max_redirects: Hops after the first request.
        resolve: Name and port to addresses; the system's by default.
        tls: How certificates are verified; as usual by default.
    """

    trusted: frozenset[str] = frozenset()
    ports: frozenset[int] = PORTS
    timeout_s: float = 20.0
    max_bytes: int = 5 * 2**20
    max_redirects: int = 5
    resolve: Resolve | None = None
    tls: ssl.SSLContext | None = None

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        secret_headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        permit: Permit | None = None,
        cut: bool = False,
    ) -> Fetched:
        """Send a request and read the answer, whatever its status.

        Args:
            method: `GET`, `POST`, ….
            url: Absolute, http or https, without user and password.
            headers: More of them; they do not follow a redirect to another origin, but for a few harmless ones.
            secret_headers: The same, for credentials; never part of a message.
            body: What to send; not sent on to another origin.
            permit: Refuses hops by raising.
            cut: A body that is too long is cut instead of refused.

        Raises:
            WebDeniedError: The address, or one that it redirects to, is refused.
            WebError: It could not be reached in time, or the answer is too large or broken.
        """
        target = _parsed(url)
        sent = {**_checked(headers or {}), **_checked(secret_headers or {})}
        sent.setdefault("user-agent", USER_AGENT)
        hops: list[str] = []
        try:
            async with asyncio.timeout(self.timeout_s):
                while True:
                    if permit is not None:
                        permit(method, target)
                    answer = await self._once(method, target, sent, body, cut=cut)
                    following = answer.headers.get("location") if answer.status in _REDIRECTS else None
                    if following is None:
                        return Fetched(
                            answer.status, answer.headers, answer.body, str(target), tuple(hops), answer.truncated
                        )
                    hops.append(str(target))
                    if len(hops) > self.max_redirects:
                        raise WebError(f"{_shown(url)} redirects more than {self.max_redirects} times.")
                    method, target, sent, body = _redirected(answer.status, method, target, sent, body, following)
        except TimeoutError as error:
            raise WebError(f"{_shown(target)} did not answer within {self.timeout_s:g} s.") from error

    async def _once(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], body: bytes | None, *, cut: bool
    ) -> Fetched:
        context = self.tls or _usual_tls()
        request = httpcore.Request(
            method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=[("Host", url.netloc.decode()), ("Accept-Encoding", "gzip"), ("Connection", "close")]
            + [(name, value) for name, value in headers.items()]
            + ([("Content-Length", str(len(body)))] if body is not None else []),
            content=body,
        )
        backend = _PinnedBackend(self)
        try:
            async with httpcore.AsyncConnectionPool(context, max_connections=1, network_backend=backend) as pool:
                response = await pool.handle_async_request(request)
                try:
                    return await self._read(response, url, cut=cut)
                finally:
                    await response.aclose()
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
        ) as error:
            raise WebError(f"{_shown(url)} cannot be reached: {error or type(error).__name__}.") from error

    async def _read(self, response: httpcore.Response, url: httpx.URL, *, cut: bool) -> Fetched:
        headers: dict[str, str] = {}
        for name, value in response.headers:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        decoder = _decoder(headers.get("content-encoding", ""), url)
        found = bytearray()
        arrived = 0
        stream: Any = response.stream
        truncated = False
        async for piece in stream:
            arrived += len(piece)
            for part in decoder(piece, self.max_bytes + 1 - len(found)):
                found += part
            if len(found) > self.max_bytes or arrived > self.max_bytes:
                if not cut:
                    raise WebError(f"The answer of {_shown(url)} is larger than {self.max_bytes} bytes.")
                truncated = True
                break
        return Fetched(response.status, headers, bytes(found[: self.max_bytes]), str(url), truncated=truncated)

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses to connect to, all of them checked.

        Raises:
            WebDeniedError: One of them, or the port, is refused.
            WebError: The name has none.
        """
        trusted = f"{host}:{port}" in self.trusted
        if not trusted and port not in self.ports:
            raise WebDeniedError(f"Port {port} may not be used.", hint=f"These may: {sorted(self.ports)}.")
        try:
            known = literal(host)
        except ValueError as error:
            raise WebDeniedError(f"{error}, which is refused.", hint="Write the name, or a plain address.") from error
        if known is not None:
            found = [str(known)]
        else:
            found = await (self.resolve or _system_resolve)(host, port)
        if not found:
            raise WebError(f"There is no host {host!r}.")
        if not trusted and not all(is_public(address) for address in found):
            raise WebDeniedError(
                f"{host!r} is not on the public internet.", hint="Private addresses have to be allowed in the settings."
            )
        return found


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked; there is no second look-up between check and connection."""

    def __init__(self, client: GuardedClient) -> None:
        self._client = client
        self._inner: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception | None = None
        for address in await self._client.addresses(host, port):
            ip_address(address.partition("%")[0])  # never a name
            try:
                return await self._inner.connect_tcp(address, port, timeout=10.0, socket_options=socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> Any:
        raise httpcore.ConnectError("no Unix sockets")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _system_resolve(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise WebError(f"There is no host {host!r}.") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _parsed(url: str) -> httpx.URL:
    try:
        found = httpx.URL(url)
        found = found.copy_with(fragment=None) if found.fragment else found
        host = found.raw_host.decode()
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError) as error:
        raise WebDeniedError(f"{_shown(url)!r} is no address: {error}.") from error
    if found.scheme not in ("http", "https"):
        raise WebDeniedError(f"Only http and https addresses are fetched, not {found.scheme or 'relative'} ones.")
    if found.userinfo or "@" in found.netloc.decode():
        raise WebDeniedError(
            "An address with a user name in it is refused.", hint="Write it without user and password."
        )
    if not host or "%" in host:
        raise WebDeniedError(f"{_shown(url)!r} names no host.")
    return found


def _shown(url: httpx.URL | str) -> str:
    """For messages: without user, password and query, which may hold secrets."""
    text = re.sub(r"[\x00-\x1f\x7f]", "?", str(url)).partition("?")[0].partition("#")[0]
    return re.sub(r"//[^/@]*@", "//", text)[:200]


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS or name.lower().startswith(("proxy-", "sec-")):
            raise WebDeniedError(f"The header {name[:40]!r} may not be set.")
        if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value) or not value.isascii():
            raise WebDeniedError(f"The header {name[:40]!r} has characters that a header cannot have.")
        found[name.lower()] = value
    return found


def _redirected(
    status: int, method: str, url: httpx.URL, headers: dict[str, str], body: bytes | None, location: str
) -> tuple[str, httpx.URL, dict[str, str], bytes | None]:
    target = _parsed(urljoin(str(url), location))
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        method, body = "GET", None
        headers = {name: value for name, value in headers.items() if not name.startswith("content-")}
    if _origin(target) != _origin(url):
        if body is not None:
            raise WebDeniedError(f"{_shown(url)} redirects what was sent to {_shown(target)}, which is refused.")
        headers = {name: value for name, value in headers.items() if name in _KEPT_ACROSS}
    return method, target, headers, body


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}[url.scheme]


def _decoder(encoding: str, url: httpx.URL) -> Callable[[bytes, int], Iterable[bytes]]:
    """Decodes piece by piece, never to more than the bytes asked for."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return lambda piece, _: (piece,)
    if name not in ("gzip", "x-gzip", "deflate"):
        raise WebError(f"{_shown(url)} answers in the encoding {name[:20]!r}, which was not asked for.")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32 if name != "deflate" else zlib.MAX_WBITS)

    def inflate(piece: bytes, room: int) -> Iterable[bytes]:
        while piece and room > 0:
            try:
                part = inflater.decompress(piece, min(room, _PIECE))
            except zlib.error as error:
                raise WebError(f"The answer of {_shown(url)} is damaged: {error}.") from error
            room -= len(part)
            piece = inflater.unconsumed_tail
            yield part

    return inflate


@cache
def _usual_tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
