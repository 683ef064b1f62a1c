"""Anthropic's own API as an upstream, by direct pass-through: requests and answers go on byte for byte, except for
what the sampling policy sets. Answers Anthropic calls only. Knows nothing of recording.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from agentlightning.gateway.call import Answer, Api, Capture, StreamPiece, UpstreamCall
from agentlightning.gateway.capture import StreamCapture, capture_completion
from agentlightning.gateway.errors import invalid
from agentlightning.gateway.upstream.anthropic_events import EventReader, to_completion
from agentlightning.gateway.upstream.base import not_offered
from agentlightning.gateway.upstream.connection import json_object
from agentlightning.gateway.upstream.replies import failed_answer
from agentlightning.gateway.upstream.retry import RetryPolicy
from agentlightning.gateway.upstream.server import ServerUpstream
from agentlightning.gateway.upstream.sse import event_data

NOT_REPORTED = "Anthropic's API reports neither token ids nor logprobs"
_STREAM_ERRORS = {"overloaded_error": 529, "rate_limit_error": 429, "invalid_request_error": 400}
_VERSION = "2023-06-01"
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "stop": "stop_sequences",
}


class AnthropicUpstream(ServerUpstream):
    """Answers from Anthropic's API, or a server that has the same.

    Args:
        base_url: The server's base URL without `/v1`, as for the official client.
        api_key: Sent as `x-api-key`; `None` takes the variable `api_key_env`, if set. Never logged or recorded.
        model: Model name to send instead of the agent's.
        connect_timeout_s: Longest time to connect.
        idle_timeout_s: Longest silence of the server during an answer.
        retry: When and how often to try again.
        api_key_env: Name of the environment variable with the key.
    """

    api: Api = "anthropic"

    def __init__(
        self,
        base_url: str = "https://api.anthropic.com",
        api_key: str | None = None,
        model: str | None = None,
        *,
        connect_timeout_s: float = 10.0,
        idle_timeout_s: float = 300.0,
        retry: RetryPolicy | None = None,
        api_key_env: str = "ANTHROPIC_API_KEY",
    ) -> None:
        url, mark, query = base_url.partition("?")
        super().__init__(
            url.rstrip("/").removesuffix("/v1") + mark + query,
            _headers,
            api_key=api_key,
            api_key_env=api_key_env,
            model=model,
            connect_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            retry=retry,
        )

    async def list_models(self) -> list[str]:
        """The server's models (the first thousand).

        Raises:
            CallError: The server is down or answers something else.
        """
        raw = await self._server.read("GET", "/v1/models?limit=1000")
        models = (json_object(raw) or {}).get("data")
        if not isinstance(models, list):
            raise self._server.failed("/v1/models is no list of models", raw)
        return [str(model["id"]) for model in models if isinstance(model, dict) and model.get("id")]

    async def complete(self, call: UpstreamCall) -> Answer:
        """Answer in one piece.

        Raises:
            CallError: 400 for calls in another dialect; the server's own refusal, or 502, 503, 504 when it fails, is
                down or hangs.
        """
        raw = await self._server.read("POST", "/v1/messages", self._body(call), call.headers, deadline=call.deadline)
        message = json_object(raw)
        if message is None or not isinstance(message.get("content"), list):
            raise self._server.failed("it is no message", raw)
        body = to_completion(message)
        return Answer(body=body, capture=_labelled(capture_completion("chat", body)), raw=raw, raw_api=self.api)

    async def stream(self, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """Answer in pieces, as the server sends them; raises what `complete` raises."""
        reader, progress = EventReader(), StreamCapture("chat")
        body = self._body(call)
        async with self._server.request("POST", "/v1/messages", body, call.headers, deadline=call.deadline) as response:
            async for event in self._server.events(response):
                chunks = reader.chunks(self._read(event))
                for chunk in chunks:
                    progress.feed(chunk)
                yield StreamPiece(events=chunks, raw=event, raw_api=self.api, finishes=reader.is_finished)
        if not reader.is_finished:
            raise failed_answer(self.base_url, "the stream ended before the answer did")
        capture = _labelled(progress.capture())
        yield StreamPiece(events=[], raw=b"", raw_api=self.api, finishes=True, capture=capture)

    async def count_tokens(self, call: UpstreamCall) -> int:
        """The server's own count; raises what `complete` raises."""
        body = {name: value for name, value in self._body(call).items() if name not in ("max_tokens", "stream")}
        raw = await self._server.read("POST", "/v1/messages/count_tokens", body, call.headers)
        count = (json_object(raw) or {}).get("input_tokens")
        if not isinstance(count, int):
            raise self._server.failed("it is no count of tokens", raw)
        return count

    async def embed(self, body: dict[str, Any]) -> bytes:
        """Refuse.

        Raises:
            CallError: 501, always.
        """
        raise not_offered(
            "Anthropic's API makes no embeddings. Route an embedding model's name to an OpenAIUpstream.",
            "embeddings_not_supported",
        )

    def _body(self, call: UpstreamCall) -> dict[str, Any]:
        if call.native is None or call.api != self.api:
            raise invalid(
                f"The model '{call.model}' is reached by Anthropic's API only: use /v1/messages, for instance with the "
                "official anthropic client.",
                "model",
                "unsupported_dialect",
            )
        body = dict(call.native)
        for name, native in _SAMPLING.items():
            value = call.body.get(name)
            if value is not None:
                body[native] = [value] if name == "stop" and isinstance(value, str) else value
        if self._model is not None:
            body["model"] = self._model
        return body

    def _read(self, event: bytes) -> dict[str, Any]:
        data = event_data(event)
        if not data:  # a comment
            return {}
        value = json_object(data)
        if value is None:
            raise self._server.failed("an event is no JSON object", data)
        if value.get("type") == "error":
            kind = str((value.get("error") or {}).get("type"))
            raise self._server.error(_STREAM_ERRORS.get(kind, 502), data)
        return value


def _labelled(capture: Capture) -> Capture:
    for choice in capture.choices:
        choice.not_trainable_because = NOT_REPORTED
    return capture


def _headers(key: str | None) -> dict[str, str]:
    return {"anthropic-version": _VERSION, **({"x-api-key": key} if key else {})}
