"""Doubles at the edges of the gateway: an engine and an OpenAI-compatible server that do what the test says."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agentlightning.kit.http import HttpServer
from agentlightning.schemas import (
    EngineInfo,
    GeneratedChoice,
    GenerateDelta,
    GenerateRequest,
    GenerateResult,
)

TOOL_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "sql", "arguments": '{"query": "SELECT 1"}'},
}


def token_ids(text: str) -> list[int]:
    """A fake tokenisation: one token per word, by hash."""
    return [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=2).digest(), "big") for word in text.split()]


class ScriptedEngine:
    """Answers with an echo of the last message, or with a tool call when it says "use the tool".

    `delay_s` slows every answer, `error` is raised instead of answering, `gate` holds answers until set.
    """

    def __init__(self) -> None:
        self.info = EngineInfo(
            model="scripted-1",
            model_version="v7",
            parameters=1,
            vocab_size=65536,
            max_context=4096,
            device="cpu",
            dtype="float32",
            has_chat_template=True,
        )
        self.requests: list[GenerateRequest] = []
        self.results: dict[str, GenerateResult] = {}
        self.cancelled: list[str] = []
        self.delay_s = 0.0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        self.requests.append(request)
        try:
            await self.gate.wait()
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled.append(request.request_id)
            raise
        if self.error is not None:
            raise self.error
        result = self._result(request)
        self.results[request.request_id] = result
        return result

    async def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        self.requests.append(request)
        finished = False
        try:
            if self.error is not None:
                raise self.error
            result = self._result(request)
            for choice in result.choices:
                for word in choice.text.split(" ") if choice.text else []:
                    await self.gate.wait()
                    await asyncio.sleep(self.delay_s)
                    text = word if choice.text.startswith(word) else f" {word}"
                    yield GenerateDelta(request_id=request.request_id, index=choice.index, text=text)
                if choice.tool_calls:
                    yield GenerateDelta(request_id=request.request_id, index=choice.index, tool_calls=choice.tool_calls)
            self.results[request.request_id] = result
            finished = True
            yield GenerateDelta(request_id=request.request_id, result=result)
        finally:
            if not finished:
                self.cancelled.append(request.request_id)

    def _result(self, request: GenerateRequest) -> GenerateResult:
        last = str(request.messages[-1]["content"] if request.messages else request.prompt or request.prompt_token_ids)
        prompt = request.prompt_token_ids or token_ids(json.dumps(request.messages) + (request.prompt or ""))
        choices = [self._choice(index, last, request) for index in range(request.params.n)]
        return GenerateResult(
            request_id=request.request_id,
            prompt_token_ids=prompt,
            choices=choices,
            model=self.info.model,
            model_version=self.info.model_version,
        )

    def _choice(self, index: int, last: str, request: GenerateRequest) -> GeneratedChoice:
        if last.startswith("use the tool"):
            ids = token_ids("<call> sql SELECT 1 </call>")
            return GeneratedChoice(
                index=index,
                token_ids=ids,
                logprobs=[-0.5] * len(ids),
                text="",
                tool_calls=[TOOL_CALL],
                finish_reason="tool_calls",
            )
        text = f"echo {index} {request.params.seed} {last}"
        ids = token_ids(text)
        logprobs = [-0.001 * (i + 1) - index for i in range(len(ids))]
        return GeneratedChoice(index=index, token_ids=ids, logprobs=logprobs, text=text)


Answering = Callable[[Request, dict[str, Any]], Awaitable[Response]]


class ScriptedOpenAIServer:
    """An OpenAI-compatible server on a real socket; `script` holds what it does, one entry per request.

    An entry is a function from the request and its body to a response. When the script is empty it answers normally.
    Where several tests share the server, each begins with a model of its own: a call that one test has given up and
    that arrives during the next neither takes a line of its script nor is found among its requests.
    """

    def __init__(self, owned_by: str = "someone") -> None:
        self.owned_by = owned_by
        self.script: list[Answering] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.disconnected = asyncio.Event()
        self._tests = 0
        self._model: str | None = None
        app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._answer, methods=["POST"]),
                Route("/v1/completions", self._answer, methods=["POST"]),
                Route("/v1/embeddings", self._answer, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )
        self._server = HttpServer(app, shutdown_grace_s=1)

    @property
    def base_url(self) -> str:
        return f"{self._server.url}/v1"

    async def __aenter__(self) -> ScriptedOpenAIServer:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    def begin(self) -> str:
        """Forget everything of the test before; answers the name of the model for this one."""
        self._tests += 1
        self._model = f"m{self._tests}"
        self.script, self.bodies, self.headers = [], [], []
        return self._model

    async def _models(self, request: Request) -> Response:
        return reply({"object": "list", "data": [{"id": "real-model", "object": "model", "owned_by": self.owned_by}]})

    async def _answer(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        late = self._model is not None and body.get("model") != self._model
        if not late:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
        if self.script and not late:
            return await self.script.pop(0)(request, body)
        if body.get("stream"):
            return sse([*chunks(body), "[DONE]"])
        return reply(completion(body))


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type="application/json")


def always(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answering:
    """A script entry that answers with this JSON."""

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return reply(content, status, headers)

    return answer


def sse(events: list[Any], *, delay_s: float = 0.0, breaks: bool = False) -> Response:
    """A streamed response; `breaks` drops the connection after the last event."""

    async def produce() -> AsyncIterator[bytes]:
        for event in events:
            yield b"data: " + (event.encode() if isinstance(event, str) else orjson.dumps(event)) + b"\n\n"
            await asyncio.sleep(delay_s)
        if breaks:
            raise asyncio.CancelledError

    return StreamingResponse(produce(), media_type="text/event-stream")


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """What a vLLM answers to a chat completion."""
    message = {"role": "assistant", "content": "hello there"}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    answer: dict[str, Any] = {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1,
        "model": "real-model",
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "x_unknown": {"kept": True},
    }
    if "messages" not in body:
        choice.pop("message")
        choice["text"] = "hello there"
        answer["object"] = "text_completion"
    if body.get("logprobs") is not None and body.get("logprobs") is not False:
        choice["logprobs"] = {
            "content": [
                {"token": "hello", "logprob": -0.25, "bytes": None, "top_logprobs": []},
                {"token": " there", "logprob": -0.5, "bytes": None, "top_logprobs": []},
            ]
        }
        if "messages" not in body:
            choice["logprobs"] = {"tokens": ["hello", " there"], "token_logprobs": [-0.25, -0.5]}
    if body.get("return_token_ids"):
        choice["token_ids"] = [11, 12]
        (answer if "messages" in body else choice)["prompt_token_ids"] = [1, 2, 3]
    return answer


def chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What a vLLM streams for a chat completion."""

    def chunk(delta: dict[str, Any], finish: str | None = None, token: int | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if token is not None and body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": "x", "logprob": -token / 100, "bytes": None}]}
        if token is not None and body.get("return_token_ids"):
            choice["token_ids"] = [token]
        return {"id": "chatcmpl-s", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    events = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "hello"}, token=11),
        chunk({"content": " there"}, token=12),
        chunk({}, finish="stop"),
    ]
    if body.get("return_token_ids"):
        events[0]["prompt_token_ids"] = [1, 2, 3]
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        events.append({"id": "chatcmpl-s", "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return events
