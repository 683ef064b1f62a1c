"""Servers in a thread of their own: a scripted model, which cannot be reached from here, and others."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar

from agentlightning.kit.http import HttpServer
from tests.unit.gateway.scripted import ScriptedOpenAIServer

T = TypeVar("T")


@contextmanager
def scripted_server() -> Iterator[ScriptedOpenAIServer]:
    """OpenAI's API, as a script says."""
    with _in_a_thread(ScriptedOpenAIServer()) as server:
        yield server


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The URL of an ASGI app."""

    @asynccontextmanager
    async def running() -> AsyncIterator[str]:
        async with HttpServer(app, shutdown_grace_s=1) as server:
            yield server.url

    with _in_a_thread(running()) as url:
        yield url


@contextmanager
def _in_a_thread(wanted: AbstractAsyncContextManager[T]) -> Iterator[T]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found = asyncio.run_coroutine_threadsafe(wanted.__aenter__(), loop).result(100)
    try:
        yield found
    finally:
        asyncio.run_coroutine_threadsafe(wanted.__aexit__(None, None, None), loop).result(100)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(100)
        loop.close()
