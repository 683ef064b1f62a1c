"""Nested data to OpenTelemetry's flat attributes and back; tags and links on spans."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from agentlightning.agent.errors import BadResultError
from agentlightning.schemas import semconv

SpanLikeT = TypeVar("SpanLikeT")

_KEY_MATCH = "key_match"
_VALUE_MATCH = "value_match"


class LinkMatch(NamedTuple):
    """One condition of a link: spans whose attribute `key_match` equals `value_match`."""

    key_match: str
    value_match: str


def flatten_attributes(nested: Mapping[str, Any] | Sequence[Any], *, expand_leaf_lists: bool = False) -> dict[str, Any]:
    """`{"a": {"b": 1}, "c": [{"d": 2}]}` to `{"a.b": 1, "c.0.d": 2}`.

    Lists of one primitive type stay whole unless `expand_leaf_lists`.

    Raises:
        BadResultError: A key of a mapping is not a string.
    """
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, item in cast("Mapping[Any, Any]", value).items():
                if not isinstance(key, str):
                    raise BadResultError(f"Attribute names are strings, but {path or 'the top level'} has {key!r}.")
                walk(item, f"{path}.{key}" if path else key)
        elif isinstance(value, list | tuple) and (expand_leaf_lists or not path or not is_leaf_list(value)):
            for index, item in enumerate(cast("Sequence[Any]", value)):
                walk(item, f"{path}.{index}" if path else str(index))
        else:
            flat[path] = value

    walk(nested, "")
    return flat


def is_leaf_list(value: Any) -> bool:
    """Whether OpenTelemetry can store the list as one attribute: not empty, all of one primitive type."""
    kinds = {type(item) for item in value}
    return len(kinds) == 1 and kinds <= {str, bool, int, float}


def unflatten_attributes(flat: Mapping[str, Any]) -> dict[str, Any] | list[Any]:
    """Inverse of `flatten_attributes`; keys `0..n-1` become a list."""
    root: dict[str, Any] = {}
    for path, value in flat.items():
        node = root
        *parents, last = path.split(".")
        for part in parents:
            child = node.get(part)
            if not isinstance(child, dict):
                child = node[part] = {}
            node = child
        node[last] = value
    return _lists(root)


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    converted = {key: _lists(value) for key, value in cast("dict[str, Any]", node).items()}
    if converted and sorted(converted) == sorted(str(i) for i in range(len(converted))):
        return [converted[str(i)] for i in range(len(converted))]
    return converted


def sanitize_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Values that OpenTelemetry accepts as they are, everything else as JSON text."""
    return {key: _sanitize(value) for key, value in attributes.items()}


def _sanitize(value: Any) -> Any:
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple) and is_leaf_list(value):
        return list(cast("Sequence[Any]", value))
    return json.dumps(value, default=str)


def encode_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Flatten and sanitise in one go."""
    return sanitize_attributes(flatten_attributes(attributes)) if attributes else {}


def below(attributes: Mapping[str, Any] | None, prefix: str) -> dict[str, Any] | list[Any]:
    """The attributes under `prefix.`, without the prefix, unflattened."""
    start = f"{prefix}."
    return unflatten_attributes({k[len(start) :]: v for k, v in (attributes or {}).items() if k.startswith(start)})


def make_tag_attributes(tags: Sequence[str]) -> dict[str, Any]:
    """Attributes that tag a span, for `emit_reward(..., attributes=...)`."""
    return {f"{semconv.TAG}.{index}": tag for index, tag in enumerate(tags)}


def extract_tags_from_attributes(attributes: Mapping[str, Any]) -> list[str]:
    """The tags of a span."""
    tags = below(attributes, semconv.TAG)
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def make_link_attributes(links: Mapping[str, str]) -> dict[str, Any]:
    """Attributes that point at other spans by attribute value, e.g. `{"gen_ai.response.id": "chatcmpl-1"}`.

    `trace_id` and `span_id` match the identity of a span itself.

    Raises:
        BadResultError: A value is not a string.
    """
    attributes: dict[str, Any] = {}
    for index, (key, value) in enumerate(links.items()):
        if not isinstance(value, str):
            raise BadResultError(f"A link is matched by text, but {key!r} is {type(value).__name__}.")
        attributes[f"{semconv.LINK}.{index}.{_KEY_MATCH}"] = key
        attributes[f"{semconv.LINK}.{index}.{_VALUE_MATCH}"] = value
    return attributes


def extract_links_from_attributes(attributes: Mapping[str, Any]) -> list[LinkMatch]:
    """The links of a span."""
    links = below(attributes, semconv.LINK)
    if not isinstance(links, list):
        return []
    return [LinkMatch(str(link[_KEY_MATCH]), str(link[_VALUE_MATCH])) for link in links]


def query_linked_spans(spans: Sequence[SpanLikeT], links: Sequence[LinkMatch]) -> list[SpanLikeT]:
    """The spans that satisfy all of `links`."""
    return [span for span in spans if all(_matches(span, link) for link in links)]


def _matches(span: Any, link: LinkMatch) -> bool:
    if link.key_match in ("trace_id", "span_id"):
        identity = getattr(span, link.key_match, None)
        if identity is None:  # a span of the OpenTelemetry SDK
            context = span.get_span_context()
            identity = f"{context.trace_id:032x}" if link.key_match == "trace_id" else f"{context.span_id:016x}"
        return identity == link.value_match
    return (span.attributes or {}).get(link.key_match) == link.value_match


def exception_attributes(error: BaseException) -> dict[str, Any]:
    """OpenTelemetry's attributes of an exception."""
    return {
        semconv.EXCEPTION_TYPE: type(error).__name__,
        semconv.EXCEPTION_MESSAGE: str(error),
        semconv.EXCEPTION_STACKTRACE: "".join(traceback.format_exception(error)),
    }
