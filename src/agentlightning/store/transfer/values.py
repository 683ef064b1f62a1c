"""Packed values as JSON that a person can read, and back without loss. Knows no tables.

What JSON lacks is tagged: `{"$bytes": base64}`, `{"$float": "nan"}`, `"inf"` or `"-inf"`, and `{"$map": [[key,
value]]}` for maps with other keys than strings, and for what would itself look like a tag. Every value is read back
before it is trusted; the few that do not come back byte for byte (foreign msgpack, values kept in pieces) are given
as JSON for the reader and as they are for the machine.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import orjson
from msgspec.msgpack import Ext

from agentlightning.kit.errors import BadInputError

TAG_START = b'{"$'
_TAGS = frozenset({"$bytes", "$float", "$map", "$ext", "$time"})

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

Resolve = Callable[[Ext], Any]
"""The value that an extension stands for."""


def encode_bytes(data: bytes) -> str:
    """As text."""
    return base64.b64encode(data).decode("ascii")


def decode_bytes(text: object) -> bytes:
    """Inverse of `encode_bytes`.

    Raises:
        BadInputError: It is no base64.
    """
    if not isinstance(text, str):
        raise BadInputError("bytes have to be given as base64 text")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadInputError(f"{text[:40]!r} is no base64") from error


def to_json(blob: bytes, resolve: Resolve) -> tuple[bytes, bool]:
    """A packed value as JSON, and whether `from_json` gives back the same bytes.

    Args:
        blob: msgpack.
        resolve: Called with extensions, which stand for values kept elsewhere.
    """
    value = _decode(blob)
    try:
        text = orjson.dumps(value)
    except TypeError:  # bytes, other keys, extensions
        text = b""
    if text and TAG_START not in text and _encode(orjson.loads(text)) == blob:
        return text, True
    text = orjson.dumps(tagged(value, resolve))
    return text, _encode(untagged(orjson.loads(text))) == blob


def from_json(value: Any, *, may_be_tagged: bool) -> bytes:
    """The packed value for parsed JSON.

    Raises:
        BadInputError: A tag is malformed.
    """
    return _encode(untagged(value) if may_be_tagged else value)


def tagged(value: Any, resolve: Resolve) -> Any:
    """The value in terms of JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, list):
        return [tagged(item, resolve) for item in value]
    if isinstance(value, dict):
        plain = all(isinstance(key, str) for key in value)
        if plain and not (len(value) == 1 and next(iter(value)) in _TAGS):
            return {key: tagged(item, resolve) for key, item in value.items()}
        return {"$map": [[tagged(key, resolve), tagged(item, resolve)] for key, item in value.items()]}
    return _tagged_scalar(value, resolve)


def _tagged_scalar(value: Any, resolve: Resolve) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": encode_bytes(value)}
    if isinstance(value, Ext):
        found = resolve(value)
        if found is value:
            return {"$ext": [value.code, encode_bytes(bytes(value.data))]}
        return tagged(found, resolve)
    if isinstance(value, datetime):
        return {"$time": value.isoformat()}
    return value


def untagged(value: Any) -> Any:
    """Inverse of `tagged`.

    Raises:
        BadInputError: A tag is malformed.
    """
    if isinstance(value, list):
        return [untagged(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (key,) = value
        if key in _TAGS:
            return _untag(key, value[key])
    return {key: untagged(item) for key, item in value.items()}


def _untag(tag: str, content: Any) -> Any:
    try:
        match tag:
            case "$bytes":
                return decode_bytes(content)
            case "$float":
                return float(_FLOATS[content])
            case "$map":
                return {untagged(key): untagged(item) for key, item in content}
            case "$ext":
                return Ext(content[0], decode_bytes(content[1]))
            case _:
                return datetime.fromisoformat(content)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise BadInputError(f"the tag {tag} is malformed") from error


_FLOATS = {"nan": "nan", "inf": "inf", "-inf": "-inf"}
