"""The contract of an upstream: whatever can answer a canonical call."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol, runtime_checkable

import msgspec

from agentlightning.gateway.call import Answer, Api, StreamPiece, UpstreamCall
from agentlightning.gateway.errors import CallError

_ABOUT_THE_ANSWER = frozenset(
    {"stream", "stream_options", "n", "stop", "max_tokens", "max_completion_tokens", "response_format"}
)


class Upstream(Protocol):
    """Answers calls. Errors are raised as `CallError`, or as any error that `as_call_error` understands."""

    api: Api
    """What it understands without translation: canonical calls (`openai`), or also a native request."""

    def names(self) -> list[str]:
        """Model names it answers for by itself, now; may be empty."""
        ...

    async def list_models(self) -> list[str]:
        """Model names to show to clients; may ask the server."""
        ...

    async def complete(self, call: UpstreamCall) -> Answer:
        """Answer in one piece. Cancelling it cancels the generation."""
        ...

    def stream(self, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """Answer in pieces, as they come. Closing the generator cancels the generation."""
        ...

    async def count_tokens(self, call: UpstreamCall) -> int:
        """How many tokens the prompt of a chat call has."""
        ...

    async def embed(self, body: dict[str, Any]) -> bytes:
        """Answer an OpenAI embeddings request."""
        ...

    async def aclose(self) -> None:
        """Free connections; the upstream is not used afterwards."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """An upstream that knows which weights would answer now."""

    def weights_id(self, model: str) -> str | None:
        """Names the weights behind a model; other weights never have the same name, in whatever process.

        `None` where it cannot tell for this model.
        """
        ...


@runtime_checkable
class Keyed(Protocol):
    """An upstream whose key is from the environment, and may become another one while it runs."""

    key_env: str | None
    """Name of the variable; `None` where the key was given otherwise, or there is none."""

    def use_key(self, key: str | None) -> None:
        """Send another key, or none, from the next call on; calls that are under way keep theirs."""
        ...


async def count_by_completion(upstream: Upstream, call: UpstreamCall) -> int:
    """Count by sampling one token: exact on every server, at the price of reading the prompt.

    Raises:
        CallError: What `complete` raises, or 501 when the server does not report usage.
    """
    body = {name: value for name, value in call.body.items() if name not in _ABOUT_THE_ANSWER}
    body["max_tokens"] = 1
    answer = await upstream.complete(msgspec.structs.replace(call, body=body))
    if answer.capture.prompt_tokens is None:
        raise not_offered("This model's server does not report how many tokens a prompt has.", "count_not_supported")
    return answer.capture.prompt_tokens


def not_offered(message: str, reason: str) -> CallError:
    """A 501: the model is there, but cannot do that."""
    return CallError(message, status=501, reason=reason, is_retryable=False)
