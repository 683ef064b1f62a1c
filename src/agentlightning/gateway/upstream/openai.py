"""Any OpenAI-compatible server as an upstream: vLLM, Ollama, llama.cpp, LM Studio, OpenAI.

Requests go on as they are, unknown fields included, and so do the answers: what the gateway asks for beyond
the agent's request (token ids, logprobs, usage) goes into the record and is taken out of the answer. Knows
nothing of recording.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import orjson

from agentlightning.gateway.call import Answer, Capture, StreamPiece, UpstreamCall
from agentlightning.gateway.capture import RAW_LOGPROBS, StreamCapture, capture_completion
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.upstream.additions import Additions
from agentlightning.gateway.upstream.replies import error_of, failed_answer, unreachable
from agentlightning.gateway.upstream.retry import RetryPolicy
from agentlightning.gateway.upstream.sse import EventTooLargeError, SseReader, event_data

if TYPE_CHECKING:
    import aiohttp

_log = logging.getLogger(__name__)
_PATHS = {"chat": "/chat/completions", "text": "/completions"}
_DONE = b"[DONE]"


class OpenAIUpstream:
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
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key or os.environ.get(api_key_env) or None
        self._model = model
        self._reports_token_ids = {"vllm": True, "none": False}.get(capture)
        self._has_processed_logprobs = has_processed_logprobs
        self._asks_usage = asks_usage
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._retry = retry or RetryPolicy()
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"OpenAIUpstream({self._base_url!r}, model={self._model!r})"

    def names(self) -> list[str]:
        """The model it was made for, if one was named."""
        return [self._model] if self._model else []

    async def list_models(self) -> list[str]:
        """The server's models.

        Raises:
            CallError: The server is down or answers something else.
        """
        return [str(model["id"]) for model in await self._models() if model.get("id")]

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(self, call: UpstreamCall) -> Answer:
        """Answer in one piece.

        Raises:
            CallError: The server's own refusal, or 502, 503, 504 when it fails, is down or hangs.
        """
        additions = await self._additions()
        body = additions.add(call)
        async with self._post(call, body) as response:
            raw = await response.read()
        answer = _json_object(raw)
        if answer is None or not isinstance(answer.get("choices"), list):
            raise failed_answer(self._base_url, f"it is no completion: {raw[:200]!r}")
        capture = self._checked(call, capture_completion(call.kind, answer))
        if additions.strip(call, answer):
            return Answer(body=answer, capture=capture)
        return Answer(body=answer, capture=capture, raw=raw)

    async def stream(self, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """Answer in pieces, as the server sends them; raises what `complete` raises."""
        additions = await self._additions()
        progress = StreamCapture(call.kind)
        is_done = False
        async with self._post(call, additions.add(call)) as response:
            async for event in self._events(response):
                if event_data(event) == _DONE:
                    is_done = True
                    break
                piece = self._piece(call, event, additions)
                for chunk in piece.events:
                    progress.feed(chunk)
                piece.finishes = progress.finished_choices >= call.n
                yield piece
        if not is_done and progress.finished_choices < call.n:
            raise failed_answer(self._base_url, "the stream ended before the answer did")
        yield StreamPiece(events=[], raw=b"", finishes=True, capture=self._checked(call, progress.capture()))

    def _piece(self, call: UpstreamCall, event: bytes, additions: Additions) -> StreamPiece:
        data = event_data(event)
        if not data:  # a comment: servers send them to keep the connection alive
            return StreamPiece(events=[], raw=event)
        chunk = _json_object(data)
        if chunk is None:
            raise failed_answer(self._base_url, f"a chunk is no JSON object: {data[:200]!r}")
        if "error" in chunk and "choices" not in chunk:
            raise error_of(self._base_url, 502, data)
        return StreamPiece(events=[chunk], raw=additions.strip_chunk(call, chunk, event))

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        reader = SseReader()
        try:
            async for data in response.content.iter_any():
                for event in reader.feed(data):
                    yield event
        except EventTooLargeError as error:
            raise failed_answer(self._base_url, str(error)) from error
        if reader.rest.strip():
            yield reader.rest  # some servers leave out the last blank line

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
                _log.debug("Cannot tell what %s is: %s", self._base_url, error)
                return Additions(token_ids=False, usage=self._asks_usage)
            self._reports_token_ids = any(model.get("owned_by") == "vllm" for model in models)
        return Additions(token_ids=self._reports_token_ids, usage=self._asks_usage)

    async def _models(self) -> list[dict[str, Any]]:
        async with self._request("GET", "/models", None) as response:
            raw = await response.read()
        models = (_json_object(raw) or {}).get("data")
        if not isinstance(models, list):
            raise failed_answer(self._base_url, f"/models is no list of models: {raw[:200]!r}")
        return [model for model in models if isinstance(model, dict)]

    def _post(self, call: UpstreamCall, body: dict[str, Any]) -> Any:
        if self._model is not None:
            body["model"] = self._model
        return self._request("POST", _PATHS[call.kind], orjson.dumps(body))

    @asynccontextmanager
    async def _request(self, method: str, path: str, data: bytes | None) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The server's good answer, after retries; what goes wrong while it is read is raised as `CallError` too."""
        import aiohttp

        try:
            response = await self._send(method, path, data)
            async with response:
                yield response
        except TimeoutError as error:
            raise CallError(
                f"{self._base_url} did not answer: it was silent for {self._idle_timeout_s:g} s.",
                status=504,
                reason="timeout",
                is_retryable=False,
            ) from error
        except aiohttp.ClientConnectorError as error:
            raise unreachable(self._base_url, error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise failed_answer(self._base_url, f"the connection broke: {error or type(error).__name__}") from error

    async def _send(self, method: str, path: str, data: bytes | None) -> aiohttp.ClientResponse:
        import aiohttp

        attempt = 0
        while True:
            attempt += 1
            try:
                # Redirects are not followed: they would carry the key elsewhere.
                response = await self._open_session().request(
                    method, self._base_url + path, data=data, headers=self._headers(), allow_redirects=False
                )
            except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError, ConnectionResetError):
                delay_s = self._retry.delay_s(attempt, status=None, headers={})
                if delay_s is None:
                    raise
            else:
                if response.status < 300:
                    return response
                delay_s = self._retry.delay_s(attempt, status=response.status, headers=response.headers)
                if delay_s is None:
                    async with response:
                        raise error_of(self._base_url, response.status, await response.read(), response.headers)
                response.release()
            await asyncio.sleep(delay_s)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return headers

    def _open_session(self) -> aiohttp.ClientSession:
        # Not in the constructor: a session belongs to the running event loop.
        if self._session is None:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_s, sock_read=self._idle_timeout_s)
            # The gateway limits calls in flight itself.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=timeout, read_bufsize=1 << 18
            )
        return self._session


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
