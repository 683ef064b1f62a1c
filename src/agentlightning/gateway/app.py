"""The gateway's routes as an ASGI app: reads requests, sends answers, notices clients that leave.

Knows nothing of how calls are answered. Every call route exists bare, below
`/rollout/{rollout_id}/attempt/{attempt_id}`, and in the 1.0 form below `/proxy/rollout/…/mode/{mode}/openai`
(or `/anthropic`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route

from agentlightning.gateway.call import CallScope
from agentlightning.gateway.calls import CallService, Reply
from agentlightning.gateway.dialects.anthropic import AnthropicDialect
from agentlightning.gateway.dialects.base import Dialect
from agentlightning.gateway.dialects.openai import OpenAIDialect
from agentlightning.gateway.dialects.responses import ResponsesDialect
from agentlightning.gateway.endpoints import ControlEndpoints, ModelEndpoints, UnknownPath
from agentlightning.gateway.errors import CallError, ClientGoneError
from agentlightning.gateway.routing import RoutingTable

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_ROLLOUT = "/rollout/{rollout_id}/attempt/{attempt_id}"
_PROXY = f"/proxy{_ROLLOUT}/mode/{{mode}}"
_PREFIXES = (_ROLLOUT, "", f"{_PROXY}/openai", f"{_PROXY}/anthropic")
_JSON = (b"content-type", b"application/json")
_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def build_app(
    service: CallService,
    routes: RoutingTable,
    *,
    extra_routes: Sequence[BaseRoute] = (),
    max_body_bytes: int = 64 << 20,
) -> Starlette:
    """The ASGI app of a gateway; `extra_routes` come after its own."""
    calls = {
        "/chat/completions": CallEndpoint(service, OpenAIDialect("chat"), max_body_bytes),
        "/messages": CallEndpoint(service, AnthropicDialect(), max_body_bytes),
        "/responses": CallEndpoint(service, ResponsesDialect(), max_body_bytes),
        "/completions": CallEndpoint(service, OpenAIDialect("text"), max_body_bytes),
        "/messages/count_tokens": CountEndpoint(service, AnthropicDialect(needs_max_tokens=False), max_body_bytes),
        "/embeddings": EmbeddingsEndpoint(service, OpenAIDialect("text"), max_body_bytes),
    }
    models = ModelEndpoints(routes)
    control = ControlEndpoints(service, routes)
    own: list[BaseRoute] = []
    for prefix in _PREFIXES:
        # Without /v1 too: some clients are given the base URL without it.
        for base in (f"{prefix}/v1", prefix):
            own += [Route(f"{base}{path}", endpoint, methods=["POST"]) for path, endpoint in calls.items()]
            own += [
                Route(f"{base}/models", models.list, methods=["GET"]),
                Route(f"{base}/models/{{model:path}}", models.get, methods=["GET"]),
            ]
        if prefix:
            own.append(Route(f"{prefix}/{{rest:path}}", UnknownPath()))
    own += [
        Route("/health", control.health, methods=["GET"]),
        Route("/proxy/pause", control.pause, methods=["POST"]),
        Route("/proxy/resume", control.resume, methods=["POST"]),
        Route("/proxy/state", control.state, methods=["GET"]),
    ]
    return Starlette(routes=[*own, *extra_routes])


class CallEndpoint:
    """One call route, as a bare ASGI app: the hot path."""

    def __init__(self, service: CallService, dialect: Dialect, max_body_bytes: int) -> None:
        self._service = service
        self._dialect = dialect
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = _ResponseWriter(send)
        try:
            raw = await _read_body(receive, self._max_body_bytes)
            async with _cancelled_on_disconnect(receive):
                reply = await self._reply(raw, scope, response)
        except ClientGoneError:
            return
        except CallError as error:
            await self._send_error(response, error)
            return
        if reply.is_streamed:
            await response.stream(reply.data, is_last=True)
        else:
            await response.send_whole(200, reply.data, [])

    async def _reply(self, raw: bytes, scope: Scope, response: _ResponseWriter) -> Reply:
        call_scope = _call_scope(scope["path_params"])
        return await self._service.handle(self._dialect, raw, call_scope, response.stream, self._headers(scope))

    def _headers(self, scope: Scope) -> dict[str, str] | None:
        wanted = self._dialect.headers
        if not wanted:
            return None
        return {name.decode(): value.decode() for name, value in scope["headers"] if name in wanted}

    async def _send_error(self, response: _ResponseWriter, error: CallError) -> None:
        if response.has_started:
            await response.stream(self._dialect.encode_stream_error(error), is_last=True)
        else:
            await response.send_whole(error.status, self._dialect.encode_error(error), error.headers())


class CountEndpoint(CallEndpoint):
    """Anthropic's count of a prompt's tokens."""

    async def _reply(self, raw: bytes, scope: Scope, response: _ResponseWriter) -> Reply:
        count = await self._service.count_tokens(self._dialect, raw, self._headers(scope))
        return Reply(orjson.dumps({"input_tokens": count}), is_streamed=False)


class EmbeddingsEndpoint(CallEndpoint):
    """OpenAI's embeddings, answered by an upstream as they are."""

    async def _reply(self, raw: bytes, scope: Scope, response: _ResponseWriter) -> Reply:
        return Reply(await self._service.embed(raw), is_streamed=False)


class _ResponseWriter:
    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False

    async def stream(self, data: bytes, *, is_last: bool = False) -> None:
        if not self.has_started:
            self.has_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _SSE})
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def send_whole(self, status: int, data: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_started = True
        headers = [_JSON, (b"content-length", str(len(data)).encode()), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": data})


async def _read_body(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()  # read on and forget: a client that is still sending would miss the answer
        if not message.get("more_body", False):
            break
    if size > limit:
        raise CallError(
            f"The request has {size} bytes; at most {limit} are accepted.",
            status=413,
            reason="request_too_large",
        )
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@asynccontextmanager
async def _cancelled_on_disconnect(receive: Receive) -> AsyncGenerator[None]:
    """Cancel the block when the client leaves.

    Raises:
        ClientGoneError: It left.
    """
    owner = asyncio.current_task()
    assert owner is not None
    cancelling = owner.cancelling()
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        owner.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # As asyncio.timeout does it: only our own cancellation is turned into an error.
        if is_gone and owner.uncancel() <= cancelling:
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()


def _call_scope(path: dict[str, Any]) -> CallScope | None:
    rollout_id = path.get("rollout_id")
    return CallScope(rollout_id, path["attempt_id"], path.get("mode")) if rollout_id else None
