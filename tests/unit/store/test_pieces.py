"""Cutting and joining: nothing is lost, whatever the value; and every column that may refer to pieces is known."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import LargeBinary

from agentlightning.store import pieces
from agentlightning.store.ops import garbage
from agentlightning.store.records import pack
from agentlightning.store.tables import metadata

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
)
LARGE = st.builds(
    lambda unit, times: unit * times,
    st.text(min_size=1, max_size=9) | st.binary(min_size=1, max_size=9),
    st.integers(0, 9000),
) | st.lists(st.integers(0, 2**17), min_size=600, max_size=900)
VALUES = st.recursive(
    SCALARS | LARGE, lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=6
)

# Small, or written by nobody but us.
NEVER_LARGE = {("rollouts", "packed_config"), ("workers", "packed_heartbeat_stats")}


def restored(blob: bytes, found: pieces.Pieces) -> bytes:
    return pieces.restore(blob, {digest: bytes(piece) for digest, piece in found.items()})


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_any_value_comes_back(value: Any) -> None:
    blob = pack(value, "It")
    found: pieces.Pieces = {}
    stashed = pieces.stash(blob, found)
    assert pieces.is_stashed(stashed)
    assert set(pieces.hashes_in(stashed)) == set(found)
    assert restored(stashed, found) == blob
    assert all(len(piece) <= pieces.FAR_PIECE_BYTES for piece in found.values())


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_any_span_comes_back(attributes: dict[str, Any]) -> None:
    blob = pack({"attributes": attributes, "events": [{"name": "e"}], "context": True, "extra": {"x": 1}}, "It")
    found: pieces.Pieces = {}
    stashed = pieces.stash_body(blob, found)
    assert pieces.is_stashed(stashed) == bool(found)
    assert (restored(stashed, found) if found else stashed) == blob


def test_maps_are_taken_apart_and_share_their_items() -> None:
    one: pieces.Pieces = {}
    other: pieces.Pieces = {}
    pieces.stash(pack({"system": "x" * 9000, "question": 1}, "It"), one)
    pieces.stash(pack({"question": 2, "system": "x" * 9000}, "It"), other)
    assert set(one) == set(other)
    whole: pieces.Pieces = {}
    pieces.stash(pack({1: "x" * 9000}, "It"), whole)  # keys that are no strings
    assert set(whole) != set(one)


@pytest.mark.parametrize(
    "value", ["x" * 200_000, b"x" * 200_000, list(range(200, 70_000)), {str(n): n for n in range(20_000)}]
)
def test_what_begins_alike_shares_all_but_the_last_piece(value: Any) -> None:
    longer = {**value, "z": 1} if isinstance(value, dict) else value + type(value)(value[:1])
    one: pieces.Pieces = {}
    other: pieces.Pieces = {}
    pieces.stash(b"" + pack(value, "It"), one)
    pieces.stash(b"" + pack(longer, "It"), other)
    assert len(set(other) - set(one)) <= 1


def test_a_whole_that_is_one_of_ours_but_of_another_kind_is_refused() -> None:
    blob = msgspec.msgpack.encode(msgspec.msgpack.Ext(77, b"\x00" * 33))
    with pytest.raises(ValueError, match="extension 77"):
        list(pieces.hashes_in(blob))


def test_every_column_that_may_refer_to_pieces_is_looked_through() -> None:
    packed = {
        (str(table.name), str(column.name))
        for table in metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, LargeBinary) and table.name != "payloads"
    }
    assert set(garbage.REFERRING) == packed - NEVER_LARGE
