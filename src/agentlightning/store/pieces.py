"""Large packed values as references to pieces that are stored once, by their hash. Knows no SQL.

A value is cut at fixed offsets, its length prefix left out, so values that begin alike (the prompt of each turn of a
conversation, as text or as token ids) share all pieces but the last. What stands in a row instead is a msgpack
extension at the top of the blob, where no value from outside is ever left:

* `WHOLE`: one reference, for the whole value;
* `MAP`: a map with nil for its large items, and their references by name;
* `BODY`: a span's body, the same with its attributes;
* `NEST`: an event's data, a map with nil for items that are themselves one of the above, and these by name. So an
  event shares the pieces of the column whose new value it tells.

A reference is the length prefix, preceded by its size in one byte, followed by the SHA-256 digests of the pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.msgpack import Ext

INLINE_BYTES = 2048
"""Values up to this size stay where they are."""
PIECE_BYTES = 4096
FAR_BYTES = 65536
"""From this offset on pieces are larger: what is that long rarely repeats in parts."""
FAR_PIECE_BYTES = 32768
REST_BYTES = 16384
"""A map that is still larger without its large items becomes a reference as a whole."""

WHOLE = 1
BODY = 2
MAP = 3
NEST = 4
KINDS = (WHOLE, BODY, MAP, NEST)
DIGEST_BYTES = 32

_PREFIX_SIZES = {0xDA: 3, 0xDC: 3, 0xDE: 3, 0xC5: 3, 0xDB: 5, 0xDD: 5, 0xDF: 5, 0xC6: 5}
"""By the first byte of a str, array, map or bin of more than 255 bytes or 15 items."""

_encode = msgspec.msgpack.Encoder().encode


class _SplitBody(msgspec.Struct, omit_defaults=True):
    """A span's body (`records.SpanBody`), unpacked only as far as needed to take attributes out and put them back."""

    attributes: dict[str, msgspec.Raw] = {}
    status: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    events: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    links: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    context: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parent: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    resource: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    extra: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _StashedBody(msgspec.Struct, array_like=True):
    body: _SplitBody
    references: dict[str, bytes]


class _StashedMap(msgspec.Struct, array_like=True):
    body: dict[str, msgspec.Raw]
    references: dict[str, bytes]


Pieces = dict[str, memoryview]
"""By the digest in hex."""

_NIL = msgspec.Raw(b"\xc0")
_split_body = msgspec.msgpack.Decoder(_SplitBody).decode
_split_map = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_stashed_body = msgspec.msgpack.Decoder(_StashedBody).decode
_stashed_map = msgspec.msgpack.Decoder(_StashedMap).decode
_extension = msgspec.msgpack.Decoder(Ext).decode


def is_stashed(blob: bytes | memoryview | None) -> bool:
    """Whether a blob from a row holds references."""
    return blob is not None and 0xC7 <= blob[0] <= 0xC9


def is_large(blob: bytes) -> bool:
    """Whether `stash` or `stash_body` has anything to do; what looks like a reference never stays as it is."""
    return len(blob) > INLINE_BYTES or 0xC7 <= blob[0] <= 0xC9


def stash(blob: bytes, pieces: Pieces) -> bytes:
    """What to write instead of `blob`; adds its pieces to `pieces`."""
    if 0x80 <= blob[0] <= 0x8F or blob[0] in (0xDE, 0xDF):
        try:
            items = _split_map(blob)
        except msgspec.MsgspecError:  # other keys than strings
            return _whole(blob, pieces)
        references = _take_out(items, len(blob), pieces)
        if references:
            return _encode(Ext(MAP, _encode(_StashedMap(items, references))))
    return _whole(blob, pieces)


def stash_body(blob: bytes, pieces: Pieces) -> bytes:
    """What to write instead of a span's body; it may stay as it is."""
    if 0xC7 <= blob[0] <= 0xC9:
        return _whole(blob, pieces)
    body = _split_body(blob)
    references = _take_out(body.attributes, len(blob), pieces)
    if references is None:
        return _whole(blob, pieces)
    return _encode(Ext(BODY, _encode(_StashedBody(body, references)))) if references else blob


def nest(blob: bytes, pieces: Pieces) -> bytes:
    """What to write instead of an event's data, whose items may be stashed already; it may stay as it is."""
    items = _split_map(blob)
    nested: dict[str, bytes] = {}
    for key, raw in items.items():
        view = _view(raw)
        if len(view) > INLINE_BYTES or is_stashed(view):
            nested[key] = bytes(view) if is_stashed(view) else stash(bytes(view), pieces)
            items[key] = _NIL
    if not nested and len(blob) > REST_BYTES:
        return _whole(blob, pieces)
    return _encode(Ext(NEST, _encode(_StashedMap(items, nested)))) if nested else blob


def _whole(blob: bytes, pieces: Pieces) -> bytes:
    return _encode(Ext(WHOLE, _cut(blob, pieces)))


def _take_out(items: dict[str, msgspec.Raw], total: int, pieces: Pieces) -> dict[str, bytes] | None:
    """Replace large items by nil, which keeps the order, and give their references; `None`: the rest is too large."""
    large = {key: view for key, raw in items.items() if len(view := _view(raw)) > INLINE_BYTES}
    if total - sum(map(len, large.values())) > REST_BYTES:
        return None
    for key in large:
        items[key] = _NIL
    return {key: _cut(view, pieces) for key, view in large.items()}


def _view(raw: msgspec.Raw) -> memoryview:
    return memoryview(raw)  # pyright: ignore[reportArgumentType] - it has the buffer protocol


def _cut(value: bytes | memoryview, pieces: Pieces) -> bytes:
    view = memoryview(value)
    start = _PREFIX_SIZES.get(view[0], 0)
    reference = [bytes((start,)), bytes(view[:start])]
    offset, end = start, len(view)
    while offset < end:
        size = PIECE_BYTES if offset - start < FAR_BYTES else FAR_PIECE_BYTES
        piece = view[offset : offset + size]
        digest = hashlib.sha256(piece).digest()
        pieces[digest.hex()] = piece
        reference.append(digest)
        offset += size
    return b"".join(reference)


def hashes_in(blob: bytes) -> Iterator[str]:
    """Digests, in hex, of the pieces that a stashed blob needs.

    Raises:
        ValueError: It is none of ours.
    """
    kind, data = _opened(blob)
    if kind == NEST:
        for nested in _stashed_map(data).references.values():
            yield from hashes_in(nested)
        return
    for reference in _references(kind, data):
        digests = reference[1 + reference[0] :]
        for offset in range(0, len(digests), DIGEST_BYTES):
            yield digests[offset : offset + DIGEST_BYTES].hex()


def _references(kind: int, data: bytes) -> list[bytes]:
    if kind == WHOLE:
        return [data]
    return list((_stashed_map(data) if kind == MAP else _stashed_body(data)).references.values())


def _opened(blob: bytes) -> tuple[int, bytes]:
    extension = _extension(blob)
    if extension.code not in KINDS:
        raise ValueError(f"extension {extension.code} is not known")
    return extension.code, bytes(extension.data)


def restore(blob: bytes, found: Mapping[str, bytes]) -> bytes:
    """The value that was stashed.

    Args:
        blob: What stands in the row.
        found: All pieces it needs, by their digest in hex.
    """
    kind, data = _opened(blob)
    if kind == WHOLE:
        return _joined(data, found)
    if kind == NEST:
        event = _stashed_map(data)
        event.body |= {key: msgspec.Raw(restore(nested, found)) for key, nested in event.references.items()}
        return _encode(event.body)
    stashed = _stashed_map(data) if kind == MAP else _stashed_body(data)
    items = stashed.body if isinstance(stashed, _StashedMap) else stashed.body.attributes
    for key, reference in stashed.references.items():
        items[key] = msgspec.Raw(_joined(reference, found))
    return _encode(stashed.body)


def _joined(reference: bytes, found: Mapping[str, bytes]) -> bytes:
    start = 1 + reference[0]
    digests = (reference[offset : offset + DIGEST_BYTES] for offset in range(start, len(reference), DIGEST_BYTES))
    return b"".join((reference[1:start], *(found[digest.hex()] for digest in digests)))
