"""The currency of the gateway: a call in canonical (OpenAI) shape, its answer, and what was captured of it.

Knows neither HTTP nor any upstream. Dialects translate to and from it, upstreams fulfil it, the recorder
keeps it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import orjson

Kind = Literal["chat", "text"]
INSTRUCTIONS = "agentlightning.call.has_instructions"
"""Attribute: the first input message holds a Responses call's `instructions`."""
Api = Literal["openai", "anthropic", "responses"]


class CallScope(msgspec.Struct, frozen=True):
    """Where a call belongs, as its URL says. `mode` is known only from URLs that name it."""

    rollout_id: str
    attempt_id: str
    mode: str | None = None


class UpstreamCall(msgspec.Struct, kw_only=True):
    """What an upstream is asked to do: the body of an OpenAI request, sampling policy already applied."""

    call_id: str
    kind: Kind
    body: dict[str, Any]
    scope: CallScope | None = None
    replaced: dict[str, Any] = {}
    """The agent's own values of parameters that the sampling policy overrode."""
    samples_freely: bool = False
    """The answer is to be trained on: strict tools and `parallel_tool_calls` need not be enforced."""
    started_at: float = 0.0
    """Unix seconds at which the call arrived."""
    api: Api = "openai"
    """The family of APIs the agent speaks."""
    native: dict[str, Any] | None = None
    """The agent's own request where its API is not OpenAI's chat or text completions; `None` where `body` is it."""
    headers: dict[str, str] = {}
    """Headers of the agent's request that belong to its API, for upstreams that speak it themselves."""
    attributes: dict[str, Any] = {}
    """What the dialect adds to the record."""
    mode: str | None = None
    """The rollout's mode, where somebody asked for it."""
    not_trainable_because: str | None = None
    """What makes every answer to it useless for training."""
    key: str | None = None
    """Name of the gateway's key that it came with."""
    deadline: float | None = None
    """When the answer has to be there, on the event loop's clock; nobody waits beyond it."""

    @property
    def model(self) -> str:
        """The model name the agent asked for."""
        return str(self.body.get("model", ""))

    @property
    def is_streamed(self) -> bool:
        """Whether the agent wants server-sent events."""
        return bool(self.body.get("stream"))

    @property
    def n(self) -> int:
        """How many choices were asked for."""
        n = self.body.get("n")
        return n if isinstance(n, int) else 1


class CapturedChoice(msgspec.Struct, kw_only=True):
    """One choice of an answer. P prompt tokens, R response tokens; `None` where the upstream does not report them."""

    index: int
    output: dict[str, Any]
    """The assistant message."""
    finish_reason: str = ""
    stop_sequence: str | None = None
    """The stop string that ended it, where the upstream says so."""
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    not_trainable_because: str | None = None


class Capture(msgspec.Struct, kw_only=True):
    """What is kept of an answer."""

    response_id: str = ""
    model: str = ""
    model_version: str = ""
    choices: list[CapturedChoice] = []
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens that the server had in its cache; they are part of `prompt_tokens`."""
    from_cache: bool = False
    """The gateway's response cache answered, not the upstream."""


class Answer(msgspec.Struct, kw_only=True):
    """A finished answer: `body` in OpenAI shape; `raw` its bytes where they may be passed on untouched."""

    body: dict[str, Any]
    capture: Capture
    raw: bytes | None = None
    raw_api: Api = "openai"
    """Whose shape `raw` has."""


class StreamPiece(msgspec.Struct, kw_only=True):
    """A piece of a streamed answer.

    `events` are OpenAI chunks. `raw` holds the bytes that may be passed on as they are; without it the
    dialect encodes the events. From a piece with `finishes` on, nothing is passed on before the record is
    committed.
    """

    events: list[dict[str, Any]]
    raw: bytes | None = None
    raw_api: Api = "openai"
    """Whose shape `raw` has."""
    finishes: bool = False
    capture: Capture | None = None
    """Exact capture, on the last piece, from upstreams that know it better than the events tell."""


def text_of(content: Any) -> str:
    """The text in a message's content, which some servers send as a list of parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content or ""


def arguments_of(function: dict[str, Any]) -> str:
    """The arguments of a tool call as JSON; some servers send the object itself."""
    arguments = function.get("arguments")
    return arguments if isinstance(arguments, str) else "" if arguments is None else orjson.dumps(arguments).decode()
