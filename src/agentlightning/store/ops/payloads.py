"""Large values of rows: moved out into `payloads` when they are written, put back when they are read.

Nothing here collects garbage, but the rules that make it safe are kept here (see `garbage`): whoever refers to a piece
makes sure, in the same transaction, that it exists and belongs to the present epoch. A collection begins a new epoch,
alone, and removes only pieces of earlier ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from agentlightning.kit.db import Row, Session
from agentlightning.kit.errors import PayloadError, PayloadTooLargeError
from agentlightning.kit.zstd import ZstdError, compress, decompress
from agentlightning.store import pieces
from agentlightning.store.pieces import Pieces

MAX_VALUE_BYTES = 256 * 2**20
LIMIT = "largest value, bytes"
"""Where in a session's memo the store's own limit stands."""

_LEVEL = 1  # 3 saves 1 % more and costs 10 % more CPU, see dev/LOG.md
_EPOCH = "payload epoch"
_PRESENT = "payloads of this epoch"

SHARED_LOCK = "SELECT pg_advisory_xact_lock_shared(hashtext(current_schema()), 1)"
"""Held by whoever refers to pieces; a collection begins only when nobody does."""

_FRESH = "SELECT hash FROM payloads WHERE hash IN (:*hashes) AND epoch = :epoch"
_FIND = "SELECT hash, size, data FROM payloads WHERE hash IN (:*hashes)"
_KEEP = """INSERT INTO payloads (hash, size, epoch, data) VALUES (:hash, :size, :epoch, :data)
    ON CONFLICT (hash) DO UPDATE SET epoch = excluded.epoch WHERE payloads.epoch < excluded.epoch"""


def check_size(db: Session, blob: bytes) -> None:
    """Refuse what is too large.

    Raises:
        PayloadTooLargeError: It is.
    """
    limit = db.memo.get(LIMIT, MAX_VALUE_BYTES)
    if len(blob) > limit:
        raise PayloadTooLargeError(
            f"A value of {len(blob):,} bytes is larger than this store takes ({limit:,}).",
            hint="Store a reference to it instead, or raise max_value_bytes (AGL_MAX_VALUE_BYTES).",
            details={"bytes": len(blob), "limit": limit},
        )


def stashed(
    db: Session,
    rows: Sequence[dict[str, Any]],
    *columns: str,
    stash: Callable[[bytes, Pieces], bytes] = pieces.stash,
) -> Sequence[dict[str, Any]]:
    """Rows as they shall be written: with references in the place of large values, whose pieces are stored.

    Args:
        db: The transaction in which the rows are written.
        rows: Parameters of statements; they stay as they are.
        columns: Which of them hold packed values; one may be missing.
        stash: What becomes of a large value.

    Raises:
        PayloadTooLargeError: A value exceeds the limit.
    """
    large = [
        (i, column)
        for i, row in enumerate(rows)
        for column in columns
        if (value := row.get(column)) is not None and pieces.is_large(value)
    ]
    if not large:
        return rows
    found: Pieces = {}
    written = list(rows)
    for i, column in large:
        blob: bytes = rows[i][column]
        check_size(db, blob)
        written[i] = {**written[i], column: stash(blob, found)}
    keep(db, found)
    return written


def stashed_one(db: Session, row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """As `stashed`, for one row."""
    return stashed(db, [row], *columns)[0]


def stashed_bodies(db: Session, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """As `stashed`, for spans: large attributes are moved out one by one."""
    return stashed(db, rows, "packed_body", stash=pieces.stash_body)


def keep(db: Session, found: Pieces) -> None:
    """Make sure that pieces are stored and belong to the present epoch, in the transaction that refers to them."""
    epoch = _current_epoch(db)
    present: set[str] = db.memo.setdefault(_PRESENT, set())
    wanted = [digest for digest in found if digest not in present]
    if not wanted:
        return
    fresh = {row[0] for row in db.all(_FRESH, {"hashes": wanted, "epoch": epoch})}
    # In one order, so that two processes with the same pieces wait for each other in one direction only.
    missing = sorted(digest for digest in wanted if digest not in fresh)
    if missing:
        db.run_many(_KEEP, [_row(digest, found[digest], epoch) for digest in missing])
    present.update(wanted)


def _row(digest: str, piece: memoryview, epoch: int) -> dict[str, Any]:
    return {"hash": digest, "size": len(piece), "epoch": epoch, "data": compress(piece, _LEVEL)}


def _current_epoch(db: Session) -> int:
    if _EPOCH not in db.memo:
        db.lock(SHARED_LOCK)
        row = db.first("SELECT max(no) FROM payload_epochs")
        db.memo[_EPOCH] = (row[0] if row else None) or 0
    return db.memo[_EPOCH]


def forget_epoch(db: Session) -> None:
    """A new epoch has begun in this transaction."""
    db.memo.pop(_EPOCH, None)
    db.memo.pop(_PRESENT, None)


def resolve(db: Session, rows: list[Row], *columns: int) -> list[Row]:
    """Put values back into rows that were read, all with one query; rows without references stay as they are.

    Args:
        db: The transaction in which the rows were read.
        rows: What was read.
        columns: Positions of packed values.

    Raises:
        PayloadError: A piece is missing or damaged.
    """
    stashed = [(i, column) for i, row in enumerate(rows) for column in columns if pieces.is_stashed(row[column])]
    if not stashed:
        return rows
    owners: dict[str, Any] = {}  # piece -> the first column of a row that needs it, which names the row
    for i, column in stashed:
        owners |= dict.fromkeys(_hashes(rows[i], column), rows[i][0])
    found = _fetch(db, owners)
    resolved = list(rows)
    for i, column in stashed:
        row = resolved[i]
        resolved[i] = (*row[:column], pieces.restore(row[column], found), *row[column + 1 :])
    return resolved


def resolve_one(db: Session, row: Row | None, *columns: int) -> Row | None:
    """As `resolve`, for what `Session.first` gives."""
    return None if row is None else resolve(db, [row], *columns)[0]


def _hashes(row: Row, column: int) -> list[str]:
    try:
        return list(pieces.hashes_in(row[column]))
    except (ValueError, msgspec.MsgspecError) as error:
        raise PayloadError(
            f"A value of {row[0]} cannot be read: {error}.",
            hint="It was written by a newer version, or is damaged. Upgrade agentlightning, or restore a backup.",
            details={"needed_by": str(row[0])},
        ) from error


def _fetch(db: Session, owners: Mapping[str, Any]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for digest, size, data in db.all(_FIND, {"hashes": list(owners)}):
        piece = _unpacked(data)
        if piece is None or len(piece) != size or hashlib.sha256(piece).hexdigest() != digest:
            raise _unreadable(digest, owners[digest], "damaged")
        found[digest] = piece
    for digest, owner in owners.items():
        if digest not in found:
            raise _unreadable(digest, owner, "missing")
    return found


def _unpacked(data: bytes) -> bytes | None:
    try:
        return decompress(data)
    except ZstdError:
        return None


def _unreadable(digest: str, owner: Any, problem: str) -> PayloadError:
    return PayloadError(
        f"Payload {digest} is {problem}; {owner} needs it.",
        hint="Restore the database from a backup. Whatever does not need this payload can still be read.",
        details={"payload": digest, "problem": problem, "needed_by": str(owner)},
    )


def references_of(rows: Sequence[Row], column: int) -> set[str]:
    """Digests of all pieces that rows refer to.

    Raises:
        PayloadError: A reference cannot be read, so it is not known what may go.
    """
    return {digest for row in rows if pieces.is_stashed(row[column]) for digest in _hashes(row, column)}
