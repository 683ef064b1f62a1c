"""Double of Anthropic's API on a real socket: it does what the test says, else it answers with text and a tool call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agentlightning.kit.http import HttpServer
from tests.unit.gateway.scripted import reply

USAGE = {"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 5}
MESSAGE = {
    "id": "msg_up",
    "type": "message",
    "role": "assistant",
    "model": "claude-real",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "text", "text": "hello", "citations": None},
        {"type": "tool_use", "id": "toolu_1", "name": "sql", "input": {"query": "SELECT 1"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": USAGE,
    "x_unknown": {"kept": True},
}


def events() -> list[dict[str, Any]]:
    """The same message as a stream."""
    start = {**MESSAGE, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    blocks: list[dict[str, Any]] = MESSAGE["content"]  # pyright: ignore[reportAssignmentType]
    deltas = [
        [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "sig"}],
        [{"type": "text_delta", "text": "hel"}, {"type": "text_delta", "text": "lo"}],
        [{"type": "input_json_delta", "partial_json": part} for part in ('{"query":', ' "SELECT 1"}')],
    ]
    empty = [{"thinking": "", "signature": ""}, {"text": ""}, {"input": {}}]
    found: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(blocks):
        found.append({"type": "content_block_start", "index": index, "content_block": {**block, **empty[index]}})
        found += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas[index]]
        found.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": "tool_use", "stop_sequence": None}
    return [*found, {"type": "message_delta", "delta": end, "usage": {"output_tokens": 5}}, {"type": "message_stop"}]


def stream(content: list[dict[str, Any]]) -> Response:
    """A streamed response."""

    async def produce() -> AsyncIterator[bytes]:
        for event in content:
            yield b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))

    return StreamingResponse(produce(), media_type="text/event-stream")


class ScriptedAnthropicServer:
    """`script` holds what it does, one entry per request; when it is empty it answers normally."""

    def __init__(self) -> None:
        self.script: list[Callable[[dict[str, Any]], Awaitable[Response]]] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        app = Starlette(
            routes=[
                Route("/v1/messages", self._answer, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )
        self._server = HttpServer(app, shutdown_grace_s=1)

    @property
    def base_url(self) -> str:
        return self._server.url

    async def __aenter__(self) -> ScriptedAnthropicServer:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    async def _models(self, request: Request) -> Response:
        return reply({"data": [{"type": "model", "id": "claude-real"}], "has_more": False})

    async def _answer(self, request: Request) -> Response:
        body = await self._keep(request)
        if self.script:
            return await self.script.pop(0)(body)
        return stream(events()) if body.get("stream") else reply(MESSAGE)

    async def _count(self, request: Request) -> Response:
        body = await self._keep(request)
        return await self.script.pop(0)(body) if self.script else reply({"input_tokens": 42})

    async def _keep(self, request: Request) -> dict[str, Any]:
        self.bodies.append(orjson.loads(await request.body()))
        self.headers.append(dict(request.headers))
        return self.bodies[-1]
