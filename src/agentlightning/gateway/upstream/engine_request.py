"""Reads an OpenAI request as one for the engine, refusing what the engine cannot honour. Knows nothing of answers."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec

from agentlightning.gateway.call import UpstreamCall
from agentlightning.gateway.errors import invalid, unsupported
from agentlightning.schemas.generation import Constraint, GenerateRequest, SamplingParams

_MAX_CHOICES = 128
_MAX_STOPS = 16
_TEXT_MAX_TOKENS = 16  # OpenAI's default for text completions

# Values under which a parameter asks for nothing; anything else is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "store": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
}
# About the client's bookkeeping, not about the answer.
_WITHOUT_EFFECT = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "user"}
)
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


class RenderOptions(msgspec.Struct, kw_only=True):
    """What the answer has to contain."""

    n: int
    logprobs: bool
    return_token_ids: bool
    include_usage: bool


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Request(msgspec.Struct, kw_only=True):
    """The parameters that are honoured; `null` means not given."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    return_token_ids: bool | None = None


class _ChatRequest(_Request, kw_only=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None


class _TextRequest(_Request, kw_only=True):
    prompt: str | list[Any]
    """Text, several texts, token ids, or several lists of token ids."""
    logprobs: int | None = None


_R = TypeVar("_R", bound=_Request)

_HONOURED = {
    "chat": frozenset(_ChatRequest.__struct_fields__),
    "text": frozenset(_TextRequest.__struct_fields__),
}


def to_generate_requests(call: UpstreamCall) -> tuple[list[GenerateRequest], RenderOptions]:
    """The engine's requests for a call: one, or one per prompt of a text completion.

    Raises:
        CallError: 400; a parameter is wrong, or one that the engine cannot honour.
    """
    _refuse_unsupported(call)
    if call.kind == "chat":
        chat = _decode(call.body, _ChatRequest)
        max_tokens = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
        params = _sampling(chat, max_tokens)
        request = GenerateRequest(
            request_id=call.call_id,
            messages=[_plain_message(message, index) for index, message in enumerate(chat.messages)],
            tools=_tools(chat),
            constraint=_constraint(chat, samples_freely=call.samples_freely),
            params=params,
            stream=call.is_streamed,
        )
        return [request], _options(chat, params, logprobs=bool(chat.logprobs))
    text = _decode(call.body, _TextRequest)
    params = _sampling(text, _TEXT_MAX_TOKENS if text.max_tokens is None else text.max_tokens)
    if text.logprobs:
        raise unsupported("logprobs", "The embedded engine reports the sampled tokens only: 'logprobs' may be 0.")
    requests = [_text_request(call, i, prompt, params) for i, prompt in enumerate(_prompts(text.prompt))]
    if call.is_streamed and len(requests) > 1:
        raise unsupported("prompt", "Several prompts cannot be streamed in one request; send one each.")
    return requests, _options(text, params, logprobs=text.logprobs is not None)


def _refuse_unsupported(call: UpstreamCall) -> None:
    for name in call.body.keys() - _HONOURED[call.kind] - _WITHOUT_EFFECT:
        value = call.body[name]
        if value is None or value in _NEUTRAL.get(name, ()):
            continue
        if name in ("functions", "function_call"):
            raise unsupported(name, f"'{name}' is outdated; use 'tools' and 'tool_choice'.")
        raise unsupported(name, f"The embedded engine does not support '{name}' = {value!r:.80}; leave it out.")


def _decode(body: dict[str, Any], shape: type[_R]) -> _R:
    try:
        return msgspec.convert(body, shape)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        param = path.rstrip("`").partition("[")[0].partition(".")[0] or None
        raise invalid(f"Invalid value for '{param}': {message}.", param, "invalid_type") from error


def _sampling(request: _Request, max_tokens: int | None) -> SamplingParams:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    params = SamplingParams(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(0, request.top_k or 0),  # -1 means "all" in vLLM
        max_tokens=max_tokens,
        stop=[text for text in stop if text],
        seed=request.seed,
        n=1 if request.n is None else request.n,
    )
    _check_range("temperature", params.temperature, 0.0, 2.0)
    _check_range("top_p", params.top_p, 0.0, 1.0)
    _check_range("n", params.n, 1, _MAX_CHOICES)
    _check_range("stop", len(params.stop), 0, _MAX_STOPS)
    if max_tokens is not None:
        _check_range("max_tokens", max_tokens, 1, 1 << 31)
    return params


def _check_range(param: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise invalid(f"'{param}' must be between {low:g} and {high:g}, got {value:g}.", param, "invalid_value")


def _options(request: _Request, params: SamplingParams, *, logprobs: bool) -> RenderOptions:
    stream_options = request.stream_options
    if stream_options is not None and not request.stream:
        raise invalid("'stream_options' is only allowed with 'stream'.", "stream_options", "invalid_value")
    return RenderOptions(
        n=params.n,
        logprobs=logprobs,
        return_token_ids=bool(request.return_token_ids),
        include_usage=bool(stream_options and stream_options.include_usage),
    )


def _tools(chat: _ChatRequest) -> list[dict[str, Any]] | None:
    for tool in chat.tools or ():
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict) or not function.get("name"):
            raise invalid('A tool must be {"type": "function", "function": {"name", …}}.', "tools", "invalid_value")
    if chat.tool_choice not in (None, "none") and not chat.tools:
        raise invalid("'tool_choice' is only allowed with 'tools'.", "tool_choice", "invalid_value")
    if chat.tool_choice == "none":
        return None  # a model that is not shown the tools cannot be led to call one
    return chat.tools or None


def _constraint(chat: _ChatRequest, *, samples_freely: bool) -> Constraint | None:
    """What the answer has to look like, where the request says so."""
    schema = _schema(chat.response_format)
    tools = [tool["function"] for tool in chat.tools or () if chat.tool_choice != "none"]
    must_call, tool = _forced(chat.tool_choice, [function["name"] for function in tools])
    is_strict = any(function.get("strict") for function in tools)
    parallel = chat.parallel_tool_calls is not False or not tools
    if samples_freely:
        is_strict, parallel = False, True
    if schema is None and not must_call and not is_strict and parallel:
        return None
    return Constraint(json_schema=None if must_call else schema, must_call=must_call, tool=tool, parallel=parallel)


def _schema(response_format: dict[str, Any] | None) -> dict[str, Any] | bool | None:
    kind = None if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    given = response_format.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict | bool):
        raise invalid(
            '\'response_format\' must be {"type": "text"}, {"type": "json_object"} or '
            '{"type": "json_schema", "json_schema": {"name", "schema": {…}}}.',
            "response_format",
            "invalid_value",
        )
    return schema


def _forced(choice: str | dict[str, Any] | None, known: list[str]) -> tuple[bool, str | None]:
    """Whether a tool must be called, and which one if one is named."""
    if choice in (None, "auto", "none"):
        return False, None
    if choice == "required":
        return True, None
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in known:
        raise invalid(
            f"'tool_choice' must be 'auto', 'none', 'required' or name one of the tools ({', '.join(known)}), "
            f"not {choice!r:.80}.",
            "tool_choice",
            "invalid_value",
        )
    return True, name


def _plain_message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """The message with text parts joined: chat templates want strings."""
    if message.get("role") not in _ROLES:
        raise invalid(
            f"messages[{index}].role must be one of {', '.join(sorted(_ROLES))}.", "messages", "invalid_value"
        )
    content = message.get("content")
    plain = {**message, "role": "system"} if message["role"] == "developer" else message
    if content is None or isinstance(content, str):
        return plain
    if not isinstance(content, list):
        raise invalid(f"messages[{index}].content must be text or a list of parts.", "messages", "invalid_type")
    texts: list[str] = []
    for part in cast(list[Any], content):
        if not isinstance(part, dict) or part.get("type") not in ("text", "refusal"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise unsupported("messages", f"The embedded engine reads text only, not {kind!r:.40} parts.")
        texts.append(str(part.get("text") or part.get("refusal") or ""))
    return {**plain, "content": "".join(texts)}


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    prompts = [prompt] if all(isinstance(item, int) for item in prompt) else prompt
    for item in prompts:
        is_ids = isinstance(item, list) and item and all(isinstance(token, int) for token in item)
        if not isinstance(item, str) and not is_ids:
            raise invalid("'prompt' must be text, token ids, or a list of either.", "prompt", "invalid_type")
    return cast("list[str | list[int]]", prompts)


def _text_request(
    call: UpstreamCall, position: int, prompt: str | list[int], params: SamplingParams
) -> GenerateRequest:
    request = GenerateRequest(
        request_id=call.call_id if position == 0 else f"{call.call_id}-{position}",
        params=params,
        stream=call.is_streamed,
    )
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.prompt_token_ids = prompt
    return request
