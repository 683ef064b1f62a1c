"""How bound model calls travel: over aiohttp, whatever client library made them.

httpcore scans all of a pool's connections at every request and response, which at 256 calls in flight costs several
milliseconds of CPU each; aiohttp's pool does not. Knows nothing of rollouts.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    import aiohttp

_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = weakref.WeakKeyDictionary()


async def send(request: httpx.Request) -> httpx.Response:
    """Send a request over the running loop's own connections.

    Raises:
        httpx.TransportError: As httpx's own transport would: `ConnectError`, `ReadTimeout`, …
    """
    import aiohttp
    from yarl import URL

    timeout = request.extensions.get("timeout", {})
    with _httpx_errors(request):
        response = await _session().request(
            request.method,
            URL(str(request.url), encoded=True),
            headers=request.headers.multi_items(),
            data=await request.aread() or None,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=timeout.get("pool"),
                sock_connect=timeout.get("connect"),
                sock_read=timeout.get("read"),
            ),
        )
    return httpx.Response(
        response.status,
        headers=response.raw_headers,
        stream=_Body(response, request),
        request=request,
        extensions={"http_version": b"HTTP/1.1", "reason_phrase": (response.reason or "").encode("latin-1")},
    )


async def close() -> None:
    """Close the running loop's connections; the next call opens new ones."""
    session = _sessions.pop(asyncio.get_running_loop(), None)
    if session is not None:
        await session.close()


def _session() -> aiohttp.ClientSession:
    loop = asyncio.get_running_loop()
    session = _sessions.get(loop)
    if session is None:
        import aiohttp

        # No limit: how many calls are in flight is the runner's business. Decoding the body is left to httpx.
        session = _sessions[loop] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
    return session


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_errors(self._request):
            async for chunk in self._response.content.iter_any():
                yield chunk

    async def aclose(self) -> None:
        # Back to the pool when it was read to its end, closed when not: the server then sees that nobody listens.
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


@contextmanager
def _httpx_errors(request: httpx.Request) -> Generator[None]:
    import aiohttp

    kinds: tuple[tuple[type[BaseException], type[httpx.TransportError]], ...] = (
        (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
        (aiohttp.SocketTimeoutError, httpx.ReadTimeout),
        (TimeoutError, httpx.ReadTimeout),
        (aiohttp.ClientConnectorError, httpx.ConnectError),
        (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
        (aiohttp.ClientPayloadError, httpx.ReadError),
        (aiohttp.ClientConnectionError, httpx.ReadError),
        (aiohttp.ClientError, httpx.TransportError),
    )
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as error:
        kind = next(target for source, target in kinds if isinstance(error, source))
        raise kind(str(error) or type(error).__name__, request=request) from error
