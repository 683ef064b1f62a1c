"""Translates OpenAI Responses requests into canonical (OpenAI chat) ones. Pure.

Fields it does not know go on as they are; what has no counterpart is refused, never dropped. Fields about storage and
bookkeeping (`store`, `metadata`, `user`, `prompt_cache_key`, …) have no effect on the answer and are left out.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from agentlightning.gateway.errors import invalid, unsupported


class _InputText(msgspec.Struct, tag="input_text"):
    text: str


class _OutputText(msgspec.Struct, tag="output_text"):
    text: str


class _Refusal(msgspec.Struct, tag="refusal"):
    refusal: str


class _InputImage(msgspec.Struct, tag="input_image"):
    image_url: str
    detail: str | None = None


class _InputFile(msgspec.Struct, tag="input_file"):
    file_data: str
    filename: str | None = None


_Part = _InputText | _OutputText | _Refusal | _InputImage | _InputFile


class _Message(msgspec.Struct, tag="message"):
    role: str
    content: str | list[_Part]


class _FunctionCall(msgspec.Struct, tag="function_call"):
    call_id: str
    name: str
    arguments: str


class _FunctionCallOutput(msgspec.Struct, tag="function_call_output"):
    call_id: str
    output: str | list[_InputText | _InputImage | _InputFile]


class _ReasoningText(msgspec.Struct):
    text: str = ""


class _Reasoning(msgspec.Struct, tag="reasoning"):
    content: list[_ReasoningText] | None = None


_Item = _Message | _FunctionCall | _FunctionCallOutput | _Reasoning


class _Tool(msgspec.Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Format(msgspec.Struct):
    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _TextConfig(msgspec.Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _ReasoningConfig(msgspec.Struct):
    effort: str | None = None


class _Request(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[_Item]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    parallel_tool_calls: bool | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: _TextConfig | None = None
    reasoning: _ReasoningConfig | None = None
    previous_response_id: str | None = None


_WITHOUT_EFFECT = frozenset(
    {
        "include",  # all it can add besides logprobs belongs to tools that are refused
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "truncation",
        "user",
    }
)
_KNOWN = frozenset(_Request.__struct_fields__) | _WITHOUT_EFFECT
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "context_management": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "top_logprobs": (0,),
}


def to_canonical(native: dict[str, Any]) -> dict[str, Any]:
    """The OpenAI chat request that asks for the same, of this turn alone.

    Raises:
        CallError: 400; the request is malformed, or asks for what has no counterpart.
    """
    for name, neutral in _NEUTRAL.items():
        if native.get(name) is not None and native[name] not in neutral:
            raise unsupported(name, f"'{name}' is not supported here; leave it out.")
    if "message.output_text.logprobs" in (native.get("include") or ()):
        raise unsupported("include", "Log-probabilities are reported by /v1/chat/completions only.")
    if native.get("truncation") == "auto":
        raise unsupported("truncation", "'truncation' may be 'disabled' only: prompts are never cut.")
    request = _decode(native)
    body: dict[str, Any] = {name: native[name] for name in native.keys() - _KNOWN - _NEUTRAL.keys()}
    body |= {"model": request.model, "messages": _messages(request)}
    _set(body, "max_tokens", request.max_output_tokens)
    _set(body, "stream", request.stream)
    _set(body, "temperature", request.temperature)
    _set(body, "top_p", request.top_p)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        _set(body, "parallel_tool_calls", request.parallel_tool_calls)
        _set(body, "tool_choice", _tool_choice(request.tool_choice))
    if request.reasoning is not None:
        _set(body, "reasoning_effort", request.reasoning.effort)
    if request.text is not None:
        _set(body, "verbosity", request.text.verbosity)
        _set(body, "response_format", _response_format(request.text.format))
    return body


def _decode(native: dict[str, Any]) -> _Request:
    items = native.get("input")
    if isinstance(items, list):
        # Messages may come without a type.
        items = [
            {"type": "message", **item} if isinstance(item, dict) and "role" in item else item
            for item in cast(list[Any], items)
        ]
    try:
        return msgspec.convert(native | {"input": items}, _Request)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        place = path.rstrip("`")
        raise invalid(
            f"Invalid value for '{place or 'input'}': {message}.", place or "input", "invalid_value"
        ) from error


def _set(body: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        body[name] = value


def _messages(request: _Request) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for item in request.input:
        if isinstance(item, _Message):
            _add_message(messages, item)
        elif isinstance(item, _FunctionCallOutput):
            _add_output(messages, item)
        elif isinstance(item, _FunctionCall):
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            message = _open_assistant(messages, is_for_text=False)
            message.setdefault("tool_calls", []).append(call)
        elif text := "".join(part.text for part in item.content or ()):
            # Reasoning opens the turn that it led to.
            messages.append({"role": "assistant", "content": None, "reasoning_content": text})
    if not request.input:
        raise invalid("'input' must not be empty.", "input", "invalid_value")
    return messages


def _open_assistant(messages: list[dict[str, Any]], *, is_for_text: bool) -> dict[str, Any]:
    """The assistant message under way: items of one turn belong together."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or (is_for_text and last["content"] is not None):
        last = {"role": "assistant", "content": None}
        messages.append(last)
    return last


def _add_message(messages: list[dict[str, Any]], item: _Message) -> None:
    if item.role not in ("system", "developer", "user", "assistant"):
        raise invalid(f"A message's role cannot be '{item.role}'.", "input", "invalid_value")
    if item.role != "assistant":
        messages.append({"role": item.role, "content": _content(item.content)})
        return
    content = _content(item.content)
    if not isinstance(content, str):
        raise invalid("An assistant message can hold text only.", "input", "invalid_value")
    message = _open_assistant(messages, is_for_text=True)
    message["content"] = content


def _content(content: str | list[Any]) -> str | list[dict[str, Any]]:
    """Plain text where it is: chat templates and small servers want strings."""
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts) and (len(parts) == 1 or isinstance(content[0], _OutputText)):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: _Part) -> dict[str, Any]:
    if isinstance(part, _InputText | _OutputText):
        return {"type": "text", "text": part.text}
    if isinstance(part, _Refusal):
        return {"type": "text", "text": part.refusal}
    if isinstance(part, _InputImage):
        image = {"url": part.image_url} | ({"detail": part.detail} if part.detail else {})
        return {"type": "image_url", "image_url": image}
    return {"type": "file", "file": {"filename": part.filename or "document", "file_data": part.file_data}}


def _add_output(messages: list[dict[str, Any]], item: _FunctionCallOutput) -> None:
    """Add a tool message, and a user message for the images and files that tool messages cannot hold."""
    parts = [] if isinstance(item.output, str) else [_part(part) for part in item.output]
    text = item.output if isinstance(item.output, str) else "".join(p["text"] for p in parts if p["type"] == "text")
    messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
    if others := [part for part in parts if part["type"] != "text"]:
        messages.append({"role": "user", "content": others})


def _tool(tool: _Tool) -> dict[str, Any]:
    if tool.type != "function" or not tool.name:
        raise unsupported("tools", f"Only function tools can be used here, not '{tool.type}'.")
    function: dict[str, Any] = {"name": tool.name}
    _set(function, "description", tool.description)
    _set(function, "parameters", tool.parameters)
    _set(function, "strict", tool.strict)
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> Any:
    if choice is None or isinstance(choice, str):
        return choice
    if choice.get("type") == "function" and choice.get("name"):
        return {"type": "function", "function": {"name": choice["name"]}}
    raise unsupported("tool_choice", f"This 'tool_choice' is not supported here: {choice!r:.80}.")


def _response_format(wanted: _Format | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.type != "json_schema" or wanted.schema is None:
        raise invalid(f"'text.format' cannot be {wanted.type!r}.", "text.format", "invalid_value")
    schema: dict[str, Any] = {"name": wanted.name or "output", "schema": wanted.schema}
    _set(schema, "strict", wanted.strict)
    return {"type": "json_schema", "json_schema": schema}
