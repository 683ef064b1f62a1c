"""A store built again from its history: now, or as it was at some event or moment. Knows no HTTP.

The events of the source are folded in order into an empty target; spans, which are rows that never change, are copied
where an event says that they were added, and the events themselves are copied, so that the target goes on from there.
Liveness (heartbeats, leases, workers, claims' names) is not history: attempts that were active are left to time out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import func, select

from agentlightning.kit.db import Row, Session
from agentlightning.kit.db.sqlite import prepare_folder
from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError, StorageError
from agentlightning.kit.files import exclusive_lock
from agentlightning.schemas import TrainingEvent
from agentlightning.store.databases import Location, parse_location, require_store
from agentlightning.store.endpoints import Endpoint, PostgresEndpoint, open_endpoint, settle
from agentlightning.store.ops import events as recorded
from agentlightning.store.ops import folding, folding_judgements, payloads
from agentlightning.store.progress import Progress, Steps, silent
from agentlightning.store.tables import events, metadata, rollouts, spans
from agentlightning.store.transfer.staging import check_empty, give_name

_FOLDS = {**folding.FOLDS, **folding_judgements.FOLDS}
_SPAN_NAMES = [column.name for column in spans.columns if column.name not in ("no", "attempt_no")]
_SPAN_ID, _BODY = _SPAN_NAMES.index("span_id"), _SPAN_NAMES.index("packed_body")
_ATTEMPTS = "SELECT attempt_id, no FROM attempts WHERE attempt_id IN (:*ids)"
_SPANS = f"""SELECT {", ".join(_SPAN_NAMES)} FROM spans
    WHERE attempt_no = (SELECT no FROM attempts WHERE attempt_id = :attempt_id) AND span_id IN (:*span_ids)"""
_ADD_SPAN = f"""INSERT INTO spans (attempt_no, {", ".join(_SPAN_NAMES)})
    VALUES (:attempt_no, {", ".join(f":{name}" for name in _SPAN_NAMES)})"""
_ADD_EVENT = """INSERT INTO events (no, time, kind, rollout_id, attempt_id, packed_data)
    VALUES (:no, :time, :kind, :rollout_id, :attempt_id, :packed_data)"""


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did."""

    events: int
    """Folded."""
    last: int
    """`no` of the last one; 0 when there was none."""
    last_time: float | None
    """When it was committed, Unix seconds; `None` when there was none."""
    rows: dict[str, int]
    """In the target, by table."""
    without_history: int
    """Rollouts of the source that no event tells of: they are missing in the target."""


def rebuild_store(
    source: str | Path,
    target: str | Path,
    *,
    until_no: int | None = None,
    until_time: float | None = None,
    progress: Progress = silent,
) -> Replayed:
    """Build a store from another one's history, in one transaction: interrupted, it leaves nothing.

    Args:
        source: File or URL of a store; it may be in use.
        target: File or URL of an empty store; created when missing.
        until_no: Stop behind this event; 0 for a store before anything has happened.
        until_time: Stop before the first event that is later, Unix seconds. Imported events keep their times.
        progress: Called with the fraction done.

    Raises:
        NotFoundError: There is no such source, or `until_no` is beyond its last event.
        ConflictError: The target holds something.
        BadInputError: Source and target are the same, or a bound is none.
        BusyError: Another replay into the same new file is under way.
        StorageError: An event is of a newer version, or the target cannot be written.
    """
    from_, to = parse_location(source), parse_location(target)
    if from_ == to:
        raise BadInputError("Source and target are the same.", hint="Give another target.")
    if until_no is not None and until_no < 0:
        raise BadInputError(f"until_no={until_no} is no event.", hint="Give an event's number.")
    if until_time is not None and not math.isfinite(until_time):
        raise BadInputError(f"until_time={until_time} is no time.", hint="Give Unix seconds.")
    require_store(from_)
    opened = open_endpoint(from_)
    try:
        if until_no is not None:
            _require_event(opened, until_no)
        with _target(to) as filled:
            return _Replay(opened, filled, Steps(progress)).run(until_no, until_time)
    finally:
        opened.close()


def _require_event(source: Endpoint, no: int) -> None:
    last = source.query("SELECT coalesce(max(no), 0) FROM events")[0][0]
    if no > last:
        raise NotFoundError(
            f"There is no event {no}; the last one is {last}.", hint="`agl store events` lists them with their numbers."
        )


@contextmanager
def _target(location: Location) -> Generator[Endpoint]:
    """The store to be filled. A new file is filled under another name, and gets its own when all is in."""
    if not isinstance(location, Path) or location.exists():
        with closing(open_endpoint(location, to_write=True)) as target:
            yield target
        return
    partial = location.with_name(f".{location.name}.replaying")
    lock = location.with_name(f".{location.name}.replaying.lock")
    prepare_folder(location)
    with exclusive_lock(lock, purpose=f"A replay into {location}", remove=True):
        try:
            _remove(partial)  # what a replay left that was killed
            with closing(open_endpoint(partial, to_write=True)) as target:
                yield target
            settle(partial)
            if not give_name(partial, location):
                raise ConflictError(f"{location} was made by somebody else meanwhile.", hint="Give another target.")
        finally:
            _remove(partial)


def _remove(file: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


class _Replay:
    def __init__(self, source: Endpoint, target: Endpoint, steps: Steps) -> None:
        self._source, self._target, self._steps = source, target, steps
        self._read, self._write = source.session(), target.session()
        self._count = self._last = 0
        self._last_time: float | None = None

    def run(self, until_no: int | None, until_time: float | None) -> Replayed:
        with self._target.transaction(alone=True):
            check_empty(self._target)
            self._steps.expect(self._source.count(events))
            for batch in self._batches(until_no, until_time):
                with self._target.in_one_go():
                    self._fold(batch)
                self._steps.done(len(batch), "events")
            if isinstance(self._target, PostgresEndpoint):
                self._target.renumber()
                self._target.announce()
            rows = {str(table.name): self._target.count(table) for table in metadata.sorted_tables}
        self._steps.finish()
        known = select(events.c.rollout_id).where(events.c.rollout_id.isnot(None))
        missing = select(func.count()).select_from(rollouts).where(rollouts.c.rollout_id.not_in(known))
        return Replayed(self._count, self._last, self._last_time, rows, self._source.run(missing)[0][0])

    def _batches(self, until_no: int | None, until_time: float | None) -> Iterator[list[Row]]:
        query = select(*events.columns).order_by(events.c.no)
        if until_no is not None:
            query = query.where(events.c.no <= until_no)
        for rows in self._source.stream(query):
            wanted = rows
            if until_time is not None:
                late = next((i for i, row in enumerate(rows) if row[1] > until_time), len(rows))
                wanted = rows[:late]
            if wanted:
                yield payloads.resolve(self._read, wanted, 5)
            if len(wanted) < len(rows):
                return

    def _fold(self, rows: Sequence[Row]) -> None:
        told = [recorded.event_from_row(row) for row in rows]
        for event in told:
            fold = _FOLDS.get(event.kind)
            if fold is None:
                raise StorageError(
                    f"Event {event.no} is of a kind that this version does not know: {event.kind}.",
                    hint="Upgrade agentlightning, or stop before it.",
                )
            fold(self._write, folding.copied(event))
        _add_spans(self._read, self._write, told)
        copies = [
            {**dict(zip(events.columns.keys(), row, strict=True)), "packed_data": recorded.stored(self._write, row[5])}
            for row in rows
        ]
        self._write.run_many(_ADD_EVENT, copies)
        self._count += len(rows)
        self._last, self._last_time = rows[-1][0], rows[-1][1]


def _added_by(event: TrainingEvent) -> Iterator[tuple[str, list[str]]]:
    """Attempts and ids of the spans that an event says they got."""
    if event.kind == "spans.added":
        yield event.attempt_id or "", event.data["span_ids"]
    elif event.kind == "rollout.snapshot":
        for attempt in event.data["attempts"]:
            yield attempt["attempt_id"], attempt["span_ids"]


def _add_spans(source: Session, target: Session, told: Sequence[TrainingEvent]) -> None:
    """Copy the spans that events tell of, in that order."""
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for event in told:
        for attempt_id, span_ids in _added_by(event):
            wanted[attempt_id] += span_ids
    if not wanted:
        return
    attempt_nos = dict(target.all(_ATTEMPTS, {"ids": list(wanted)}))
    for attempt_id, span_ids in wanted.items():
        if attempt_id not in attempt_nos:
            continue  # of a rollout without a beginning, see `Replayed.without_history`
        rows = payloads.resolve(source, source.all(_SPANS, {"attempt_id": attempt_id, "span_ids": span_ids}), _BODY)
        by_id = {row[_SPAN_ID]: row for row in rows}
        copies: list[dict[str, Any]] = [
            {"attempt_no": attempt_nos[attempt_id], **dict(zip(_SPAN_NAMES, by_id[span_id], strict=True))}
            for span_id in span_ids
            if span_id in by_id
        ]
        if copies:
            target.run_many(_ADD_SPAN, payloads.stashed_bodies(target, copies))
