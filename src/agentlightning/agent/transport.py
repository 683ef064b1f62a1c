"""How bound model calls travel: over aiohttp, whatever client library made them.

httpcore scans all of a pool's connections at every request and response, which at 256 calls in flight costs several
milliseconds of CPU each; aiohttp's pool does not. Knows nothing of rollouts.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx
    from httpx_aiohttp import AiohttpTransport

_transports: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AiohttpTransport] = weakref.WeakKeyDictionary()


async def send(request: httpx.Request) -> httpx.Response:
    """Send a request over the running loop's own connections; errors are httpx's."""
    loop = asyncio.get_running_loop()
    transport = _transports.get(loop)
    if transport is None:
        transport = _transports[loop] = _open()
    return await transport.handle_async_request(request)


def _open() -> AiohttpTransport:
    import aiohttp
    from httpx_aiohttp import AiohttpTransport

    # No limit: how many calls are in flight is the runner's business. A body's encoding is left to httpx.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    session = aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
    return AiohttpTransport(client=session)


async def close() -> None:
    """Close the running loop's connections; the next call opens new ones."""
    transport = _transports.pop(asyncio.get_running_loop(), None)
    if transport is not None:
        await transport.aclose()
