"""A model server that misbehaves on the level of the socket, for one test at a time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CHUNKS = [
    {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, "delta": {"content": part}}]}
    for part in ("hello", " there")
]
EVENTS = [
    {"type": "message_start", "message": {"id": "msg_x", "model": "m", "content": [], "usage": {"input_tokens": 3}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " there"}},
]
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class HostileServer:
    """Each request is answered by the next act; the last one goes on for ever."""

    def __init__(self, *acts: Act) -> None:
        self._acts = list(acts)
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        """Set when the other side has closed a connection that an act still held."""
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> HostileServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            while await self._read_request(reader):
                act = self._acts.pop(0) if len(self._acts) > 1 else self._acts[0]
                await act(reader, writer)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            self._handlers.discard(task)
            writer.close()

    async def _read_request(self, reader: asyncio.StreamReader) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        self.requests.append(head + await reader.readexactly(size))
        self.asked.set()
        return True


def whole(content: bytes, status: str = "200 OK", headers: str = "content-type: application/json\r\n") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(content)}\r\n\r\n".encode() + content


def saying(*parts: bytes, pause_s: float = 0.0) -> Act:
    """Writes these bytes."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return act


def then_close(*parts: bytes) -> Act:
    """Writes these bytes and ends the connection in an orderly way."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(*parts)(reader, writer)
        writer.close()

    return act


def then_reset(*parts: bytes) -> Act:
    """Writes these bytes and tears the connection down with a reset."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(*parts)(reader, writer)
        await asyncio.sleep(0.02)  # so that what was written arrives before the reset
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return act


def then_silence(*parts: bytes) -> Act:
    """Writes these bytes, then nothing, until the other side gives up."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(*parts)(reader, writer)
        await reader.read(1)
        raise ConnectionResetError

    return act


def dripping(part: bytes, pause_s: float = 0.02, first: bytes = b"") -> Act:
    """Writes a bit now and then, for ever."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        with contextlib.suppress(TimeoutError):
            while not writer.is_closing():
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
        raise ConnectionResetError

    return act


def openai_event(event: dict[str, Any]) -> bytes:
    return chunked(b"data: " + orjson.dumps(event) + b"\n\n")


def anthropic_event(event: dict[str, Any]) -> bytes:
    return chunked(b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n")


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def begun(api: str) -> list[bytes]:
    """The head of a streamed answer and its first words."""
    if api == "anthropic":
        return [SSE_HEAD, *map(anthropic_event, EVENTS)]
    return [SSE_HEAD, *map(openai_event, CHUNKS)]
