"""Bound calls travel over aiohttp; to the client library it looks like httpx."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import httpx
import pytest

from agentlightning.agent import instrument
from agentlightning.agent.scope import GatewayAddress, RolloutScope, enter_scope


@pytest.fixture(autouse=True)
async def installed():
    instrument.uninstall()
    instrument.install()
    yield
    await instrument.close_connections()
    instrument.uninstall()


async def ask(port: int, **options) -> httpx.Response:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    scope = RolloutScope("r", "a", gateways=frozenset({GatewayAddress.parse(f"http://127.0.0.1:{port}/v1")}))
    async with httpx.AsyncClient(**options) as client:
        with enter_scope(scope):
            return await client.post(url, json={"a": "é"})


@asynccontextmanager
async def serve(*answers: bytes | None):
    """A server that gives these bytes, one after the other, and then hangs up; `None` keeps silent."""
    left, seen, handlers, over = list(answers), [], [], asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        seen.append(head + await reader.readexactly(length))
        data = left.pop(0)
        if data is None:
            await over.wait()
        writer.write(data or b"")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen
        over.set()
        await asyncio.gather(*handlers, return_exceptions=True)


OK = b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


async def test_request_and_answer_arrive_as_they_were():
    async with serve(OK) as (port, seen):
        response = await ask(port, headers={"x-own": "1"})
    assert (response.status_code, response.reason_phrase, response.text) == (200, "Fine", "{}")
    assert response.headers.get_list("x-a") == ["1", "2"]
    assert response.http_version == "HTTP/1.1"
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /rollout/r/attempt/a/v1/chat/completions HTTP/1.1\r\n")
    assert head.lower().count(b"content-length") == 1
    assert b"x-own: 1" in head.lower()
    assert body == '{"a":"é"}'.encode()


async def test_redirects_are_the_clients_business():
    moved = b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with serve(moved) as (port, seen):
        assert (await ask(port)).status_code == 307
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("answer", "options", "error"),
    [
        (None, {"timeout": 0.2}, httpx.ReadTimeout),
        (b"", {}, httpx.RemoteProtocolError),
        (OK[:-1], {}, httpx.ReadError),
        (b"no http\r\n\r\n", {}, httpx.TransportError),
    ],
)
async def test_failures_are_httpx_errors(answer, options, error):
    async with serve(answer) as (port, _):
        with pytest.raises(error) as caught:
            await ask(port, **options)
    assert caught.value.request.url.path.startswith("/rollout/r/")


async def test_nobody_listening_is_a_connect_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(httpx.ConnectError):
        await ask(port)


async def test_answer_left_unread_closes_the_connection():
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 10
    async with serve(endless) as (port, _), httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/v1/x"
        scope = RolloutScope("r", "a", gateways=frozenset({GatewayAddress.parse(f"http://127.0.0.1:{port}/v1")}))
        with enter_scope(scope):
            async with client.stream("POST", url, json={}) as response:
                assert await anext(response.aiter_raw()) == b"x" * 10
    await instrument.close_connections()
    await instrument.close_connections()
