"""A double of Google's Gemini API at the network's edge: `generateContent` and its stream, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agentlightning.kit.http import HttpServer
from tests.unit.gateway.scripted import reply

Part = dict[str, Any]
HELLO: list[Part] = [{"text": "hello"}, {"text": " there"}]
CALL: Part = {"functionCall": {"name": "sql", "args": {"query": "SELECT 1"}}}


class ScriptedGemini:
    """Says "hello there", or calls the first function it is shown when the last message asks for it.

    `script` holds what it does instead, one entry per request: a function from the request to a response.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.script: list[Callable[[], Awaitable[Response]]] = []
        self.cancelled = asyncio.Event()
        path = "/v1beta/models/{model}"
        routes = [
            Route(f"{path}:generateContent", self._whole, methods=["POST"]),
            Route(f"{path}:streamGenerateContent", self._stream, methods=["POST"]),
            Route(f"{path}:batchEmbedContents", self._embed, methods=["POST"]),
        ]
        self._server = HttpServer(Starlette(routes=routes), shutdown_grace_s=1)

    @property
    def base_url(self) -> str:
        return f"{self._server.url}/v1beta"

    async def __aenter__(self) -> ScriptedGemini:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    async def _whole(self, request: Request) -> Response:
        if self.script:
            await self._read(request)
            return await self.script.pop(0)()
        return reply(_answer(_parts(await self._read(request)), "STOP"))

    async def _stream(self, request: Request) -> Response:
        assert request.query_params["alt"] == "sse"
        body = await self._read(request)
        if self.script:
            return await self.script.pop(0)()
        parts = _parts(body)
        return events([_answer([part], "STOP" if part is parts[-1] else None) for part in parts])

    async def _embed(self, request: Request) -> Response:
        body = await self._read(request)
        return reply({"embeddings": [{"values": [0.5, 0.25]} for _ in body["requests"]]})

    async def _read(self, request: Request) -> dict[str, Any]:
        body = orjson.loads(await request.body())
        self.bodies.append(body)
        self.keys.append(request.headers.get("x-goog-api-key"))
        return body

    def hang(self) -> Callable[[], Awaitable[Response]]:
        """A script entry: one piece, then silence until the client leaves."""

        async def answer() -> Response:
            async def produce() -> AsyncIterator[bytes]:
                yield _event(_answer([{"text": "hello"}], None))
                try:
                    await asyncio.sleep(60)
                finally:
                    self.cancelled.set()

            return StreamingResponse(produce(), media_type="text/event-stream")

        return answer


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> Callable[[], Awaitable[Response]]:
    """A script entry: an error as Google's APIs tell it."""

    async def answer() -> Response:
        return reply({"error": {"code": status, "message": message, "status": "ANY"}}, status, headers)

    return answer


def events(answers: list[dict[str, Any]], *, breaks: bool = False) -> Response:
    """A stream of these."""

    async def produce() -> AsyncIterator[bytes]:
        for answer in answers:
            yield _event(answer)
        if breaks:
            raise asyncio.CancelledError

    return StreamingResponse(produce(), media_type="text/event-stream")


def _event(answer: dict[str, Any]) -> bytes:
    return b"data: %b\r\n\r\n" % orjson.dumps(answer)


def _parts(body: dict[str, Any]) -> list[Part]:
    last = body["contents"][-1]["parts"][-1]
    return [CALL] if "use the tool" in last.get("text", "") else HELLO


def _answer(parts: list[Part], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash", "responseId": "g1"}
