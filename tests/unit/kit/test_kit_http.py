from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from agentlightning.kit.errors import ConfigError, PortInUseError
from agentlightning.kit.http import HttpServer, bind_socket, free_port, unless_stopping


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("hi")(scope, receive, send)


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(url)


async def test_serves_on_a_free_port_and_stops() -> None:
    handler = signal.getsignal(signal.SIGINT)
    async with HttpServer(hello) as server:
        assert server.is_running
        assert server.port > 0
        assert (await get(server.url)).text == "hi"
        assert signal.getsignal(signal.SIGINT) is handler
        await server.start()  # harmless
    assert not server.is_running
    with pytest.raises(httpx.ConnectError):
        await get(server.url)
    await server.stop()  # harmless


async def test_can_be_started_again_on_the_same_port() -> None:
    server = HttpServer(hello)
    await server.start()
    port = server.port
    await server.stop()
    await server.start()
    assert server.port == port
    assert (await get(server.url)).text == "hi"
    await server.stop()


async def test_two_servers_share_a_loop() -> None:
    async with HttpServer(hello) as one, HttpServer(hello) as two:
        assert one.port != two.port
        assert [(await get(server.url)).text for server in (one, two)] == ["hi", "hi"]


async def test_a_taken_port_is_an_error_with_a_hint() -> None:
    async with HttpServer(hello) as server:
        with pytest.raises(PortInUseError, match=f"Port {server.port} .*free one"):
            await HttpServer(hello, port=server.port).start()


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("192.0.2.1", 0), ("127.0.0.1", 70000)])
def test_an_address_that_cannot_be_used_is_an_error(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="Cannot listen on"):
        bind_socket(host, port)


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("::1", "http://[::1]:80"), ("h", "http://h:80")],
)
def test_the_url_can_be_given_to_a_client(host: str, url: str) -> None:
    assert HttpServer(hello, host=host, port=80).url == url


def test_a_free_port_can_be_bound() -> None:
    port = free_port()
    bind_socket("127.0.0.1", port).close()


async def test_stop_waits_for_requests_then_cancels_them() -> None:
    cancelled: list[str] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        path = Request(scope).url.path
        try:
            await asyncio.sleep(0.3 if path == "/quick" else 30)
        except asyncio.CancelledError:
            cancelled.append(path)
            raise
        await PlainTextResponse("done")(scope, receive, send)

    server = HttpServer(slow, shutdown_grace_s=1)
    await server.start()
    quick = asyncio.ensure_future(get(f"{server.url}/quick"))
    endless = asyncio.ensure_future(get(f"{server.url}/endless"))
    await asyncio.sleep(0.1)
    await server.stop()
    assert (await quick).text == "done"
    assert (await endless).status_code == 500
    assert cancelled == ["/endless"]


async def test_cancelling_a_start_leaves_nothing_behind() -> None:
    server = HttpServer(hello)
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not server.is_running
    bind_socket("127.0.0.1", server.port).close()


async def test_answers_without_an_end_do_not_hold_up_a_stop() -> None:
    """With a grace time that no test would wait for."""
    cleaned = asyncio.Event()

    async def endless() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return "never"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await unless_stopping(scope, asyncio.sleep(0, "an item")) == "an item"
        said = await unless_stopping(scope, endless())
        await PlainTextResponse(f"stopping {said}")(scope, receive, send)

    server = HttpServer(app, shutdown_grace_s=3600)
    async with asyncio.timeout(120):
        for _ in range(2):  # a server may be started again
            cleaned.clear()
            await server.start()
            asked = asyncio.ensure_future(get(server.url))
            while not server.is_running or not server._server.server_state.tasks:  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.01)
            await server.stop()
            assert (await asked).text == "stopping None"
            assert cleaned.is_set()
    with pytest.raises(ValueError, match="mine"):
        await unless_stopping({}, failing())


async def failing() -> None:
    raise ValueError("mine")
