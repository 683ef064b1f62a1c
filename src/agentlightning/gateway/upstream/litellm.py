"""Every other provider (Gemini, Bedrock, Cohere, Mistral, …) as an upstream, through the library LiteLLM.

LiteLLM translates both ways; here are its library's calls, what may go into them, and its errors as `CallError`. It is
imported with the first call, without the network access that it makes by default. Knows nothing of recording.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import os
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson

from agentlightning.gateway.call import Answer, Api, StreamPiece, UpstreamCall
from agentlightning.gateway.capture import StreamCapture, capture_completion
from agentlightning.gateway.errors import CallError, unsupported
from agentlightning.gateway.upstream.base import count_by_completion
from agentlightning.gateway.upstream.litellm_errors import failure_of, headers_of, status_of
from agentlightning.gateway.upstream.replies import failed_answer
from agentlightning.gateway.upstream.retry import RetryPolicy
from agentlightning.kit.errors import MissingExtraError

_T = TypeVar("_T")

# LiteLLM takes its own settings (keys, addresses, callbacks) as parameters beside the model's. An agent may set the
# model's only: with `api_base` it could have the gateway's key sent anywhere.
_SHARED = frozenset(
    {
        "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "seed", "stop",
        "temperature", "top_k", "top_p", "user",
    }
)  # fmt: skip
_PASSED_ON = {
    "chat": _SHARED
    | {
        "audio", "function_call", "functions", "max_completion_tokens", "messages", "modalities",
        "parallel_tool_calls", "prediction", "reasoning_effort", "response_format", "thinking", "tool_choice",
        "tools", "top_logprobs", "verbosity", "web_search_options",
    },
    "text": _SHARED | {"best_of", "echo", "prompt", "suffix"},
}  # fmt: skip
# About the client's bookkeeping, not about the answer; the rest is set here.
_LEFT_OUT = frozenset(
    {
        "metadata", "model", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier",
        "store", "stream", "stream_options",
    }
)  # fmt: skip

# Tools are the agent's business. Without this, LiteLLM looks for MCP servers of its own in every call with tools, which
# takes a version of `mcp` that it does not ask for (1.106.2: ImportError with `mcp` 1, or without it).
_WITHOUT_MCP = {"_skip_mcp_handler": True}


class LiteLLMUpstream:
    """Answers from any provider that LiteLLM knows. Calls are recorded, and labelled not trainable: providers do not
    report token ids.

    A parameter that the provider does not have is refused with a 400 that names it; only `seed`, which promises
    nothing, is left out where it is unknown.

    Args:
        model: LiteLLM's name of the model, provider first: `"gemini/gemini-2.5-flash"`, `"bedrock/…"`.
        api_key: The provider's key; `None` lets LiteLLM take the provider's own variable, e.g. `GEMINI_API_KEY`. Never
            logged or recorded.
        name: Model name under which agents ask for it; `model` by default.
        base_url: Where the provider is, if not where LiteLLM expects it.
        timeout_s: Longest silence of the provider.
        retry: When and how often to try again.
        options: More of LiteLLM's parameters, e.g. `{"aws_region_name": "eu-central-1"}`.
        api_key_env: Name of the environment variable with the key, if it is not the provider's own.

    Raises:
        MissingExtraError: LiteLLM is not installed.
    """

    api: Api = "openai"

    def __init__(
        self,
        model: str,
        api_key: str | None = None,
        *,
        name: str | None = None,
        base_url: str | None = None,
        timeout_s: float = 300.0,
        retry: RetryPolicy | None = None,
        options: dict[str, Any] | None = None,
        api_key_env: str | None = None,
    ) -> None:
        if importlib.util.find_spec("litellm") is None:
            raise MissingExtraError(
                f"The model {model!r} is reached through LiteLLM.", hint="pip install 'agentlightning[litellm]'"
            )
        self._model = model
        self._name = name or model
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        password = urlsplit(base_url or "").password
        self._secrets = [password] if password else []
        self._options: dict[str, Any] = {"timeout": timeout_s, "max_retries": 0, "num_retries": 0, **(options or {})}
        self.key_env = api_key_env if api_key is None else None
        if key := api_key or os.environ.get(api_key_env or ""):
            self.use_key(key)
        if base_url is not None:
            self._options["api_base"] = base_url.rstrip("/")
        self._library: Any = None

    def __repr__(self) -> str:
        return f"LiteLLMUpstream({self._model!r}, name={self._name!r})"

    def use_key(self, key: str | None) -> None:
        """Send another key from the next call on; without one, LiteLLM takes the provider's own variable."""
        if key:
            self._secrets = [*self._secrets, key]
            self._options = {**self._options, "api_key": key}
        else:
            self._options = {name: value for name, value in self._options.items() if name != "api_key"}

    def names(self) -> list[str]:
        """The name it was given."""
        return [self._name]

    async def list_models(self) -> list[str]:
        """The same."""
        return self.names()

    async def aclose(self) -> None:
        """Close the connections; LiteLLM has them in common for all its models in this process."""
        if self._library is not None:
            await self._library.close_litellm_async_clients()

    async def complete(self, call: UpstreamCall) -> Answer:
        """Answer in one piece.

        Raises:
            CallError: 400 for what the provider does not have, its own refusal, or 502, 503, 504 when it fails, is
                down or hangs.
        """
        answer = await self._ask(call, {})
        body = _plain(answer)
        if not isinstance(body.get("choices"), list) or not body["choices"]:
            raise failed_answer(self._model, "there is no choice in it")
        for choice in body["choices"]:
            if "message" in choice:
                choice["message"].setdefault("content", None)
        return Answer(body=body, capture=capture_completion(call.kind, body))

    async def stream(self, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """Answer in pieces, as the provider sends them; raises what `complete` raises."""
        progress = StreamCapture(call.kind)
        shows_usage = bool((call.body.get("stream_options") or {}).get("include_usage"))
        chunks = await self._ask(call, {"stream": True, "stream_options": {"include_usage": True}})
        try:
            async for chunk in self._in_time(chunks):
                event = _plain(chunk)
                progress.feed(event)
                events = _shown(event, shows_usage=shows_usage)
                yield StreamPiece(events=events, finishes=progress.finished_choices >= call.n)
        except Exception as error:  # every provider's library has errors of its own; all become a CallError
            raise self._failure(error) from error
        finally:
            await _close(chunks)
        if progress.finished_choices < call.n:
            raise failed_answer(self._model, "the stream ended before the answer did")
        yield StreamPiece(events=[], finishes=True, capture=progress.capture())

    async def count_tokens(self, call: UpstreamCall) -> int:
        """Let the provider read the prompt; raises what `complete` raises."""
        return await count_by_completion(self, call)

    async def embed(self, body: dict[str, Any]) -> bytes:
        """Answer an embeddings request; raises what `complete` raises."""
        wanted = {name: body[name] for name in ("input", "dimensions") if body.get(name) is not None}
        library = await self._load()
        parameters = self._options | wanted | {"model": self._model}
        answer = _plain(await self._with_retries(lambda: library.aembedding(**parameters)))
        if body.get("encoding_format") == "base64":  # OpenAI's client asks for it, few providers know it
            for item in answer["data"]:
                item["embedding"] = _base64(item["embedding"])
        return orjson.dumps(answer)

    async def _ask(self, call: UpstreamCall, more: dict[str, Any]) -> Any:
        library = await self._load()
        ask = library.acompletion if call.kind == "chat" else library.atext_completion
        parameters = _WITHOUT_MCP | self._options | self._parameters(call, library) | more
        return await self._with_retries(lambda: ask(**parameters))

    def _parameters(self, call: UpstreamCall, library: Any) -> dict[str, Any]:
        given = {name: value for name, value in call.body.items() if value is not None and name not in _LEFT_OUT}
        for name in given.keys() - _PASSED_ON[call.kind]:
            raise unsupported(name, f"'{name}' cannot be sent to this model; leave it out.")
        if "seed" in given and "seed" not in (library.get_supported_openai_params(self._model) or ()):
            del given["seed"]
        return given | {"model": self._model}

    async def _with_retries(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        attempt = 0
        while True:
            attempt += 1
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await ask()
            except Exception as error:  # as in `stream`
                failure = self._failure(error)
                delay_s = self._retry.delay_s(attempt, status=status_of(error), headers=headers_of(error))
                if delay_s is None or failure.reason == "timeout":
                    raise failure from error
            await asyncio.sleep(delay_s)

    async def _in_time(self, chunks: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """LiteLLM's own time limit does not hold between the pieces of an answer."""
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            yield chunk

    def _failure(self, error: Exception) -> CallError:
        return failure_of(self._model, error, timeout_s=self._timeout_s, secrets=self._secrets)

    async def _load(self) -> Any:
        if self._library is None:
            # It takes seconds; the loop must go on meanwhile.
            self._library = await asyncio.to_thread(_import)
        return self._library


def _import() -> Any:
    """The library, quiet, and without the look-up of prices on the network that its import makes otherwise."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm  # pyright: ignore[reportMissingImports] - an extra that the others do not fit beside

    library: Any = litellm
    library.suppress_debug_info = True
    library.telemetry = False
    return library


_ANSWER = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "data"}
)


def _plain(answer: Any) -> dict[str, Any]:
    """The JSON of one of LiteLLM's objects, as OpenAI's would be: without its many empty additions."""
    body = {name: value for name, value in answer.model_dump(exclude_none=True).items() if name in _ANSWER}
    for choice in body.get("choices") or ():
        for part in ("message", "delta"):
            if part in choice:
                choice[part] = {name: value for name, value in choice[part].items() if value != []}
        if "delta" in choice:
            choice.setdefault("finish_reason", None)
    return body


def _base64(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _shown(event: dict[str, Any], *, shows_usage: bool) -> list[dict[str, Any]]:
    """What of a chunk the agent asked for: usage comes in a last chunk of its own, or not at all."""
    if "usage" not in event:
        return [event]
    chunk = {name: value for name, value in event.items() if name != "usage"}
    says = any(choice.get("finish_reason") or choice.get("delta") for choice in event.get("choices") or ())
    last = [{**chunk, "choices": [], "usage": event["usage"]}] if shows_usage else []
    return [chunk, *last] if says else last


async def _close(stream: Any) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
