"""Packed values as JSON: readable, and without loss for whatever msgpack can hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import example, given
from msgspec.msgpack import Ext

from agentlightning.kit.errors import BadInputError
from agentlightning.store.transfer.values import decode_bytes, from_json, to_json
from tests.random_stores import foreign, values

pack = msgspec.msgpack.Encoder().encode


def as_it_is(extension: Ext) -> Ext:
    return extension


@given(values)
@example({"$bytes": "not base64"})
@example({"$map": [["$map", {"$float": 1}]]})
@example([float("nan"), -0.0, float("-inf"), 2**64 - 1, -(2**63), 1e22, 5e-324])
@example({1: {None: b"\x00"}, "1": {True: []}})
def test_whatever_we_pack_comes_back_byte_for_byte(value: Any) -> None:
    blob = pack(value)
    text, exact = to_json(blob, as_it_is)
    assert exact or b"nan" in text  # one of the many other NaNs, which travel as they are beside it
    assert not exact or from_json(orjson.loads(text), may_be_tagged=b'{"$' in text) == blob


@given(foreign)
def test_what_another_encoder_wrote_is_readable_and_said_not_to_be_exact(blob: bytes) -> None:
    text, exact = to_json(blob, as_it_is)
    orjson.loads(text)
    assert exact == (from_json(orjson.loads(text), may_be_tagged=True) == blob)


def test_ordinary_values_are_ordinary_json() -> None:
    value = {"messages": [{"role": "user", "content": "ä\n"}], "n": 1, "$ref": "#/x", "f": 1.0}
    assert to_json(pack(value), as_it_is)[0] == orjson.dumps(value)
    assert orjson.loads(to_json(pack({"b": b"\x00\xff", "f": float("nan")}), as_it_is)[0]) == {
        "b": {"$bytes": "AP8="},
        "f": {"$float": "nan"},
    }


def test_times_and_extensions_are_kept() -> None:
    moment = datetime(2026, 11, 21, 12, tzinfo=UTC)
    for value in ([moment], [Ext(5, b"abc")]):
        text, exact = to_json(pack(value), as_it_is)
        assert exact, text
    assert to_json(pack(Ext(5, b"abc")), lambda _: {"found": b"x"}) == (b'{"found":{"$bytes":"eA=="}}', False)


@pytest.mark.parametrize(
    "value", [{"$bytes": 1}, {"$bytes": "?"}, {"$float": "1"}, {"$map": [1]}, {"$map": 3}, {"$ext": []}, {"$time": "x"}]
)
def test_a_malformed_tag_is_refused(value: Any) -> None:
    with pytest.raises(BadInputError):
        from_json([value], may_be_tagged=True)


def test_bytes_are_base64() -> None:
    with pytest.raises(BadInputError, match="text"):
        decode_bytes(3)
    with pytest.raises(BadInputError, match="base64"):
        decode_bytes("ä")
