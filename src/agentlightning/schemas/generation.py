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


class Constraint(msgspec.Struct, kw_only=True):
    """What a response has to look like. Without a schema and without `must_call` it is free text, but the calls in it
    follow their tools' schemas.
    """

    json_schema: dict[str, Any] | bool | None = None
    """The content is JSON that this schema accepts (or, where there are tools, tool calls)."""
    must_call: bool = False
    """The response is one or more tool calls."""
    tool: str | None = None
    """The only tool that may be called."""
    parallel: bool = True
    """Several calls in one response are allowed."""


class GenerateRequest(msgspec.Struct, kw_only=True):
    """One request; exactly one of `messages`, `prompt`, `prompt_token_ids` is given.

    `messages` and `tools` have OpenAI chat-completion shapes.
    """

    request_id: str = ""
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    constraint: Constraint | None = None
    """`None` leaves the response free."""
    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    stream: bool = False


class GeneratedChoice(msgspec.Struct, kw_only=True):
    """One sampled response of R tokens.

    `token_ids` (R) includes the end token when one was sampled; `logprobs` (R) are natural-log probabilities under the
    model's distribution after temperature, before truncation by top_p, top_k or a constraint. `text` is the decoded
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
    constrained: bool = False
    """A constraint decided which tokens could be sampled, so `logprobs` are not those of the sampling distribution."""


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


class EngineStats(msgspec.Struct, kw_only=True):
    """What an engine has done since it started, and what it holds now."""

    requests: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    """Prompt tokens of all admitted sequences."""
    reused_tokens: int = 0
    """Those of them whose keys and values were taken from another sequence instead of being computed."""
    generated_tokens: int = 0
    preemptions: int = 0
    """Sequences that gave up their memory to others and were continued later."""
    active: int = 0
    """Sequences being decoded now."""
    waiting: int = 0
    cache_bytes: int = 0
    """Memory of keys and values now."""
    memory_bytes: int = 0
    """Memory of the process now (on CUDA: of its tensors on the device)."""
