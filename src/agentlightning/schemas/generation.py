"""What an engine is asked and what it answers. Knows nothing of HTTP dialects or of torch."""

from __future__ import annotations

from typing import Any

import msgspec


class SamplingParams(msgspec.Struct, kw_only=True):
    """How to sample. `temperature == 0.0` means greedy; `top_k == 0` and `top_p == 1.0` mean no truncation."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    """Longest response in tokens; `None` fills the context."""
    stop: list[str] = []
    seed: int | None = None
    """Same seed, same prompt, same weights: same sample (up to floating-point batching effects)."""
    n: int = 1


class GenerateRequest(msgspec.Struct, kw_only=True):
    """One request; exactly one of `messages`, `prompt`, `prompt_token_ids` is given.

    `messages` and `tools` have OpenAI chat-completion shapes.
    """

    request_id: str = ""
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    stream: bool = False


class GeneratedChoice(msgspec.Struct, kw_only=True):
    """One sampled response of R tokens.

    `token_ids` (R) includes the end token when one was sampled; `logprobs` (R) are natural-log probabilities under the
    distribution that was sampled from (after temperature, before truncation by top_p/top_k). `text` is the decoded
    content without special tokens and without parsed tool calls.
    """

    index: int
    token_ids: list[int]
    logprobs: list[float]
    text: str
    tool_calls: list[dict[str, Any]] = []
    """OpenAI shape: `{"id", "type": "function", "function": {"name", "arguments": str}}`."""
    finish_reason: str = "stop"
    """`stop`, `length` or `tool_calls`."""
    stop_sequence: str | None = None
    """The stop string that ended it, if one did."""


class GenerateResult(msgspec.Struct, kw_only=True):
    """The finished answer to a `GenerateRequest`."""

    request_id: str
    prompt_token_ids: list[int]
    choices: list[GeneratedChoice]
    model: str
    model_version: str


class GenerateDelta(msgspec.Struct, kw_only=True):
    """A piece of a streamed answer; the last one of a request carries `result`."""

    request_id: str
    index: int = 0
    text: str = ""
    tool_calls: list[dict[str, Any]] = []
    """Finished tool calls; a tool call is sent whole, once."""
    result: GenerateResult | None = None


class EngineInfo(msgspec.Struct, kw_only=True):
    """What an engine is serving."""

    model: str
    model_version: str
    parameters: int
    vocab_size: int
    max_context: int
    device: str
    dtype: str
    has_chat_template: bool
    can_train: bool = True
