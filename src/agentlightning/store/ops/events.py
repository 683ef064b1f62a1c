"""Training events: recorded by operations, written together right before the commit, in the order of commits.

An event carries the fields that it changed, so that folding all events gives the tables again (`ops/folding.py`).
Liveness (heartbeats, leases, workers, reserved sequence ids) is no history and records nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from sqlalchemy import select

from agentlightning.kit.clock import now
from agentlightning.kit.db import Params, Row, Session, one_of
from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import EVENT_KINDS, TrainingEvent
from agentlightning.schemas.building import construct
from agentlightning.store import pieces, verbs
from agentlightning.store.ops import payloads
from agentlightning.store.records import pack, unpack
from agentlightning.store.tables import events

RECORDED = "recorded"
"""Announced without a key: there are new events."""

_INSERT = """INSERT INTO events (time, kind, rollout_id, attempt_id, packed_data)
    VALUES (:time, :kind, :rollout_id, :attempt_id, :data)"""


def record(
    db: Session,
    kind: str,
    data: Mapping[str, Any],
    *,
    rollout_id: str | None = None,
    attempt_id: str | None = None,
) -> None:
    """Record that something has happened; forgotten when the operation fails.

    Args:
        db: The operation's session.
        kind: One of `EVENT_KINDS`.
        data: The fields that changed; what is packed already goes in as `packed(...)`, without being encoded again.
        rollout_id: Whom it happened to.
        attempt_id: Likewise.

    Raises:
        BadInputError: `data` holds something that is not plain data.
        PayloadTooLargeError: It is larger than the store takes.
    """
    blob = pack(data, "The event")
    if len(blob) > pieces.INLINE_BYTES or _has_stashed(data):
        payloads.check_size(db, blob)
        blob = stored(db, blob)  # here, since before the commit is too late to wait for anybody
    db.record({"kind": kind, "rollout_id": rollout_id, "attempt_id": attempt_id, "data": blob})


def stored(db: Session, data: bytes) -> bytes:
    """An event's data as it shall be written: with references in the place of large items, whose pieces are stored."""
    found: pieces.Pieces = {}
    blob = pieces.nest(data, found)
    payloads.keep(db, found)
    return blob


def _has_stashed(data: Mapping[str, Any]) -> bool:
    for value in data.values():  # noqa: SIM110 - at every change; a generator would take three times as long
        if type(value) is msgspec.Raw and pieces.is_stashed(
            memoryview(value)  # pyright: ignore[reportArgumentType] - it has the buffer protocol
        ):
            return True
    return False


def packed(column: bytes | None) -> msgspec.Raw | None:
    """The content of a `packed_*` column as written, references and all, to be put into an event's data as it is."""
    return None if column is None else msgspec.Raw(column)


def write(db: Session, rows: Sequence[Params]) -> None:
    """Write what a transaction has recorded; the last thing in it."""
    at = now()
    for row in cast("Sequence[dict[str, Any]]", rows):
        row["time"] = at
    db.run_many(_INSERT, rows)
    db.announce(RECORDED)


def query_events(db: Session, verb: verbs.QueryEvents) -> verbs.EventPage:
    """See `LightningStore.query_events`; does not wait."""
    _check(verb)
    newest = db.all("SELECT coalesce(max(no), 0) FROM events")[0][0]
    query = select(*events.columns).where(events.c.no > verb.after).order_by(events.c.no)
    if verb.kind_in is not None:
        query = query.where(one_of(events.c.kind, verb.kind_in))
    if verb.rollout_id is not None:
        query = query.where(events.c.rollout_id == verb.rollout_id)
    if verb.limit != -1:
        query = query.limit(verb.limit)
    items = [event_from_row(row) for row in payloads.resolve(db, db.select(query), 5)] if verb.limit else []
    if verb.limit > 0 and len(items) == verb.limit:
        return verbs.EventPage(items=items, last=items[-1].no)
    # Numbers are given in the order of commits: all up to the newest were there to be read.
    return verbs.EventPage(items=items, last=max(verb.after, newest, items[-1].no if items else 0))


def _check(verb: verbs.QueryEvents) -> None:
    if not 0 <= verb.after < 2**63:
        raise BadInputError(f"after={verb.after} is no position.", hint="Give the `no` of the last event seen, or 0.")
    if not -1 <= verb.limit < 2**63:
        raise BadInputError(f"limit={verb.limit} is no number of events.", hint="-1 for all, or ≥ 0.")
    if verb.timeout is not None and not math.isfinite(verb.timeout):
        raise BadInputError(f"timeout={verb.timeout} is no time.", hint="Give seconds, or None not to wait.")
    for kind in verb.kind_in or ():
        if kind not in EVENT_KINDS:
            raise BadInputError(f"{kind!r} is no kind of event.", hint=f"Use one of: {', '.join(EVENT_KINDS)}.")


def event_from_row(row: Row) -> TrainingEvent:
    """From the columns of `events`, in their order."""
    return construct(
        TrainingEvent,
        {
            "no": row[0],
            "time": row[1],
            "kind": row[2],
            "rollout_id": row[3],
            "attempt_id": row[4],
            "data": unpack(row[5]),
        },
    )
