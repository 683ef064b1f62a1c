"""Any OpenAI-compatible server as an upstream: vLLM, Ollama, llama.cpp, LM Studio, OpenAI.

Requests go on as they are, unknown fields included, and so do the answers: what the gateway asks for beyond
the agent's request (token ids, logprobs, usage) goes into the record and is taken out of the answer. Knows
nothing of recording.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any, Literal

from agentlightning.gateway.call import Answer, Api, Capture, StreamPiece, UpstreamCall
from agentlightning.gateway.capture import RAW_LOGPROBS, StreamCapture, capture_completion
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.upstream.additions import Additions
from agentlightning.gateway.upstream.base import count_by_completion
from agentlightning.gateway.upstream.connection import json_object
from agentlightning.gateway.upstream.replies import failed_answer
from agentlightning.gateway.upstream.retry import RetryPolicy
from agentlightning.gateway.upstream.server import ServerUpstream
from agentlightning.gateway.upstream.shapes import fault_in_answer, fault_in_chunk
from agentlightning.gateway.upstream.sse import event_data

_log = logging.getLogger(__name__)
_PATHS = {"chat": "/chat/completions", "text": "/completions"}
_DONE = b"[DONE]"
_HIDES_MAX_TOKENS = (
    "://api.openai.com/"  # its newer models want max_completion_tokens; smaller servers know only max_tokens
)


class OpenAIUpstream(ServerUpstream):
    """Answers from an OpenAI-compatible server.

    Args:
        base_url: The server's base URL with `/v1`, as for the official client.
        api_key: Sent as bearer token; `None` takes the variable `api_key_env`, if set. Never logged or
            recorded.
        model: Model name to send instead of the agent's.
        capture: `vllm` asks for token ids and logprobs, `none` does not, `auto` asks the server what it is.
        has_processed_logprobs: The server reports logprobs after temperature (vLLM: `--logprobs-mode
            processed_logprobs`). Without it, calls at a temperature other than 1 are labelled not trainable.
        asks_usage: Ask for the usage of streamed answers, for the record; some old servers refuse that.
        connect_timeout_s: Longest time to connect.
        idle_timeout_s: Longest silence of the server during an answer.
        retry: When and how often to try again.
        api_key_env: Name of the environment variable with the key.
    """

    api: Api = "openai"

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        model: str | None = None,
        *,
        capture: Literal["auto", "vllm", "none"] = "auto",
        has_processed_logprobs: bool = False,
        asks_usage: bool = True,
        connect_timeout_s: float = 10.0,
        idle_timeout_s: float = 300.0,
        retry: RetryPolicy | None = None,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        super().__init__(
            base_url,
            _headers,
            api_key=api_key,
            api_key_env=api_key_env,
            model=model,
            connect_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            retry=retry,
        )
        self._reports_token_ids = {"vllm": True, "none": False}.get(capture)
        self._has_processed_logprobs = has_processed_logprobs
        self._asks_usage = asks_usage

    async def list_models(self) -> list[str]:
        """The server's models.

        Raises:
            CallError: The server is down or answers something else.
        """
        return [str(model["id"]) for model in await self._models() if model.get("id")]

    async def complete(self, call: UpstreamCall) -> Answer:
        """Answer in one piece.

        Raises:
            CallError: The server's own refusal, or 502, 503, 504 when it fails, is down or hangs.
        """
        additions = await self._additions()
        raw = await self._server.read("POST", _PATHS[call.kind], self._body(call, additions), deadline=call.deadline)
        answer = json_object(raw)
        fault = "it is no completion" if answer is None else fault_in_answer(answer)
        if answer is None or fault is not None:
            raise self._server.failed(fault or "", raw)
        capture = self._checked(call, capture_completion(call.kind, answer))
        if additions.strip(call, answer):
            return Answer(body=answer, capture=capture)
        return Answer(body=answer, capture=capture, raw=raw)

    async def stream(self, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """Answer in pieces, as the server sends them; raises what `complete` raises."""
        additions = await self._additions()
        progress = StreamCapture(call.kind)
        is_done = False
        body = self._body(call, additions)
        async with self._server.request("POST", _PATHS[call.kind], body, deadline=call.deadline) as response:
            async for event in self._server.events(response):
                if event_data(event) == _DONE:
                    is_done = True
                    break
                piece = self._piece(call, event, additions)
                for chunk in piece.events:
                    progress.feed(chunk)
                piece.finishes = progress.finished_choices >= call.n
                yield piece
        if not is_done and progress.finished_choices < call.n:
            raise failed_answer(self.base_url, "the stream ended before the answer did")
        yield StreamPiece(events=[], raw=b"", finishes=True, capture=self._checked(call, progress.capture()))

    async def count_tokens(self, call: UpstreamCall) -> int:
        """Let the server read the prompt; raises what `complete` raises."""
        return await count_by_completion(self, call)

    async def embed(self, body: dict[str, Any]) -> bytes:
        """Pass an embeddings request on; raises what `complete` raises."""
        if self._model is not None:
            body = {**body, "model": self._model}
        return await self._server.read("POST", "/embeddings", body)

    def _piece(self, call: UpstreamCall, event: bytes, additions: Additions) -> StreamPiece:
        data = event_data(event)
        if not data:  # a comment: servers send them to keep the connection alive
            return StreamPiece(events=[], raw=event)
        chunk = json_object(data)
        if chunk is None:
            raise self._server.failed("a chunk is no JSON object", data)
        if "error" in chunk and "choices" not in chunk:
            raise self._server.error(502, data)
        if (fault := fault_in_chunk(chunk)) is not None:
            raise self._server.failed(fault, data)
        return StreamPiece(events=[chunk], raw=additions.strip_chunk(call, chunk, event))

    def _checked(self, call: UpstreamCall, capture: Capture) -> Capture:
        temperature = call.body.get("temperature")
        if not self._has_processed_logprobs and temperature not in (None, 1):
            for choice in capture.choices:
                choice.not_trainable_because = choice.not_trainable_because or RAW_LOGPROBS
        return capture

    async def _additions(self) -> Additions:
        if self._reports_token_ids is None:
            try:
                models = await self._models()
            except CallError as error:  # the call itself will tell; ask again next time
                _log.debug("Cannot tell what %s is: %s", self.base_url, error)
                return Additions(token_ids=False, usage=self._asks_usage)
            self._reports_token_ids = any(model.get("owned_by") == "vllm" for model in models)
        return Additions(token_ids=self._reports_token_ids, usage=self._asks_usage)

    async def _models(self) -> list[dict[str, Any]]:
        raw = await self._server.read("GET", "/models")
        models = (json_object(raw) or {}).get("data")
        if not isinstance(models, list):
            raise self._server.failed("/models is no list of models", raw)
        return [model for model in models if isinstance(model, dict)]

    def _body(self, call: UpstreamCall, additions: Additions) -> dict[str, Any]:
        body = additions.add(call)
        if self._model is not None:
            body["model"] = self._model
        if call.api != "openai" and _HIDES_MAX_TOKENS in self.base_url and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        return body


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
