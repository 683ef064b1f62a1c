"""Translates Anthropic Messages requests into canonical (OpenAI chat) ones. Pure.

Fields it does not know go on as they are, so that an upstream's own parameters work and the embedded engine can
refuse them by name. What has no counterpart is refused, never dropped; fields without effect on the answer
(`cache_control`, `metadata`, `service_tier`) are left out.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from agentlightning.gateway.errors import invalid, unsupported


class _Base64(msgspec.Struct, tag="base64"):
    media_type: str
    data: str


class _Url(msgspec.Struct, tag="url"):
    url: str


class _PlainText(msgspec.Struct, tag="text"):
    data: str


class _Text(msgspec.Struct, tag="text"):
    text: str


class _Image(msgspec.Struct, tag="image"):
    source: _Base64 | _Url


class _Document(msgspec.Struct, tag="document"):
    source: _Base64 | _PlainText
    title: str | None = None


class _ToolUse(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class _ToolResult(msgspec.Struct, tag="tool_result"):
    tool_use_id: str
    content: str | list[_Text | _Image | _Document] | None = None


class _Thinking(msgspec.Struct, tag="thinking"):
    thinking: str


class _RedactedThinking(msgspec.Struct, tag="redacted_thinking"):
    data: str


_Block = _Text | _Image | _Document | _ToolUse | _ToolResult | _Thinking | _RedactedThinking


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Format(msgspec.Struct, tag="json_schema"):
    schema: dict[str, Any]


class _OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    format: _Format | None = None
    effort: str | None = None


class _ThinkingConfig(msgspec.Struct):
    type: str


class _Request(msgspec.Struct, kw_only=True):
    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    system: str | list[_Text] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _ThinkingConfig | None = None
    output_config: _OutputConfig | None = None
    cache_control: Any = None
    metadata: Any = None
    service_tier: Any = None


_KNOWN = frozenset(_Request.__struct_fields__)
_UNTRANSLATABLE = frozenset(
    {"container", "context_management", "fallbacks", "mcp_servers", "output_format", "speed", "inference_geo"}
)


def to_canonical(native: dict[str, Any]) -> dict[str, Any]:
    """The OpenAI chat request that asks for the same.

    Raises:
        CallError: 400; the request is malformed, or asks for what has no counterpart.
    """
    try:
        request = msgspec.convert(native, _Request)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        place = path.rstrip("`")
        raise invalid(f"{place or 'request'}: {message}", place or None, "invalid_value") from error
    for name in sorted(_UNTRANSLATABLE & native.keys()):
        if native[name] is not None:
            raise unsupported(name, f"{name}: only a model behind an AnthropicUpstream understands this.")
    body: dict[str, Any] = {name: native[name] for name in native.keys() - _KNOWN - _UNTRANSLATABLE}
    body |= {"model": request.model, "messages": _messages(request)}
    _set(body, "max_tokens", request.max_tokens)
    _set(body, "stream", request.stream)
    _set(body, "temperature", request.temperature)
    _set(body, "top_p", request.top_p)
    _set(body, "top_k", request.top_k)
    _set(body, "stop", request.stop_sequences or None)
    if request.tools:
        body["tools"] = [_tool(tool, index) for index, tool in enumerate(request.tools)]
    if request.tool_choice is not None:
        _choose_tool(body, request.tool_choice)
    if request.thinking is not None and request.thinking.type == "enabled":
        raise unsupported("thinking", "thinking: this model's server cannot be told to think; leave it out.")
    if request.output_config is not None:
        _configure_output(body, request.output_config)
    return body


def _set(body: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        body[name] = value


def _messages(request: _Request) -> list[dict[str, Any]]:
    if not request.messages:
        raise invalid("messages: at least one message is required", "messages")
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": _content([_part(block) for block in _blocks(request.system)])})
    for index, message in enumerate(request.messages):
        if message.role == "user":
            _add_user(messages, message, index)
        elif message.role == "assistant":
            messages.append(_assistant(message, index))
        elif message.role == "system":  # Claude Code reminds of something between two turns this way
            messages.append(
                {"role": "system", "content": _content([_part(block) for block in _blocks(message.content)])}
            )
        else:
            raise invalid(f"messages.{index}.role: must be 'user' or 'assistant', not '{message.role}'", "messages")
    if request.messages[-1].role == "assistant":
        raise unsupported(
            "messages", "messages: this model cannot continue an assistant message; the last one must be the user's."
        )
    return messages


def _blocks(content: Any) -> list[Any]:
    return [_Text(content)] if isinstance(content, str) else content


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Plain text where it is: chat templates and small servers want strings."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _part(block: _Text | _Image | _Document) -> dict[str, Any]:
    if isinstance(block, _Text):
        return {"type": "text", "text": block.text}
    source = block.source
    if isinstance(source, _PlainText):
        return {"type": "text", "text": source.data}
    url = source.url if isinstance(source, _Url) else f"data:{source.media_type};base64,{source.data}"
    if isinstance(block, _Image):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": block.title or "document", "file_data": url}}


def _add_user(messages: list[dict[str, Any]], message: _Message, index: int) -> None:
    """A user turn becomes tool messages and user messages, in its order."""
    parts: list[dict[str, Any]] = []
    for block in _blocks(message.content):
        if isinstance(block, _ToolResult):
            if parts:
                messages.append({"role": "user", "content": _content(parts)})
            parts = _add_result(messages, block)
        elif isinstance(block, _Text | _Image | _Document):
            parts.append(_part(block))
        else:
            raise invalid(f"messages.{index}: a user message cannot hold {_tag(block)} blocks", "messages")
    if parts:
        messages.append({"role": "user", "content": _content(parts)})
    elif not message.content:
        raise invalid(f"messages.{index}.content: must not be empty", "messages")


def _add_result(messages: list[dict[str, Any]], result: _ToolResult) -> list[dict[str, Any]]:
    """Add a tool message; return what tool messages cannot hold: images and files go into the next user message."""
    parts = [_part(block) for block in _blocks(result.content or "")]
    texts = [part for part in parts if part["type"] == "text"]
    messages.append({"role": "tool", "tool_call_id": result.tool_use_id, "content": _content(texts) if texts else ""})
    return [part for part in parts if part["type"] != "text"]


def _assistant(message: _Message, index: int) -> dict[str, Any]:
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in _blocks(message.content):
        if isinstance(block, _Text):
            texts.append(block.text)
        elif isinstance(block, _Thinking):
            reasoning.append(block.thinking)
        elif isinstance(block, _ToolUse):
            function = {"name": block.name, "arguments": orjson.dumps(block.input).decode()}
            calls.append({"id": block.id, "type": "function", "function": function})
        else:
            raise invalid(f"messages.{index}: an assistant message cannot hold {_tag(block)} blocks here", "messages")
    canonical: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if reasoning:
        canonical["reasoning_content"] = "".join(reasoning)
    if calls:
        canonical["tool_calls"] = calls
        canonical["content"] = canonical["content"] or None
    return canonical


def _tag(block: msgspec.Struct) -> str:
    return str(type(block).__struct_config__.tag)


def _tool(tool: _Tool, index: int) -> dict[str, Any]:
    if tool.type not in (None, "custom") or tool.input_schema is None:
        raise unsupported("tools", f"tools.{index}: only custom tools with an input_schema can be used here.")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    _set(function, "description", tool.description)
    _set(function, "strict", tool.strict)
    return {"type": "function", "function": function}


def _choose_tool(body: dict[str, Any], choice: _ToolChoice) -> None:
    plain = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type == "tool" and choice.name:
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice.type in plain:
        body["tool_choice"] = plain[choice.type]
    else:
        raise invalid(f"tool_choice.type: unknown value '{choice.type}'", "tool_choice")
    if choice.disable_parallel_tool_use:
        body["parallel_tool_calls"] = False


def _configure_output(body: dict[str, Any], config: _OutputConfig) -> None:
    _set(body, "reasoning_effort", config.effort)
    if config.format is not None:
        schema = {"name": "output", "schema": config.format.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
