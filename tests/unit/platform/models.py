"""A scripted OpenAI-compatible server in a thread of its own: the model that cannot be reached from here."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.unit.gateway.scripted import ScriptedOpenAIServer


@contextmanager
def scripted_server() -> Iterator[ScriptedOpenAIServer]:
    loop, server = asyncio.new_event_loop(), ScriptedOpenAIServer()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
