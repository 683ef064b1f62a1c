"""Lineages: series of rollouts side by side; a person locks what is to be kept, and that says what is better.

In a cycle, each lineage has at most one rollout. While a cycle is its session's newest, its preferences follow the
locks: each rollout of a lineage locked in it is better than each of those not locked. Then they stay as they are.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from agentlightning.kit.clock import now
from agentlightning.kit.db import Row, Session, one_of
from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.kit.ids import new_id
from agentlightning.schemas import Lineage, LineageSession, LineageStep, PaginatedResult, Preference
from agentlightning.schemas.building import construct
from agentlightning.store import verbs
from agentlightning.store.ops import events, payloads, preferences
from agentlightning.store.ops.paging import Condition, columns, combine, named, page, result, text_filters
from agentlightning.store.ops.rows import lock_rollouts, require_rollout
from agentlightning.store.records import pack, unpack
from agentlightning.store.tables import lineage_sessions, lineage_steps, lineages, rollouts

MAX_LINEAGES = 64

_ADD_SESSION = """INSERT INTO lineage_sessions (session_id, name, create_time, packed_metadata)
    VALUES (:session_id, :name, :create_time, :packed_metadata)"""
_ADD_LINEAGE = """INSERT INTO lineages (lineage_id, session_no, position, name)
    VALUES (:lineage_id, :session_no, :position, :name)"""
_ADD_STEP = """INSERT INTO lineage_steps (lineage_no, kind, cycle, rollout_no, author, create_time)
    VALUES (:lineage_no, :kind, :cycle, :rollout_no, :author, :create_time)"""
_SET_LOCK = "UPDATE lineages SET locked_cycle = :cycle WHERE no = :no"

_SELECT = """SELECT s.session_id, l.lineage_id, l.position, l.name, l.locked_cycle, t.cycle, r.rollout_id,
    l.no, s.no FROM lineages l JOIN lineage_sessions s ON s.no = l.session_no
    LEFT JOIN lineage_steps t ON t.lineage_no = l.no AND t.rollout_no IS NOT NULL AND t.cycle = (
        SELECT max(x.cycle) FROM lineage_steps x WHERE x.lineage_no = l.no AND x.rollout_no IS NOT NULL)
    LEFT JOIN rollouts r ON r.no = t.rollout_no"""
_OF_SESSIONS = f"{_SELECT} WHERE s.session_id IN (:*ids) ORDER BY s.no, l.position"
_ONE = f"{_SELECT} WHERE l.lineage_id = :lineage_id"
_LOCK_SESSION = """SELECT 1 FROM lineage_sessions WHERE no = (SELECT session_no FROM lineages
    WHERE lineage_id = :lineage_id) FOR UPDATE"""
_NEWEST_CYCLE = """SELECT max(t.cycle) FROM lineage_steps t JOIN lineages l ON l.no = t.lineage_no
    WHERE l.session_no = :session_no AND t.rollout_no IS NOT NULL"""
_STEP_OF_ROLLOUT = "SELECT cycle FROM lineage_steps WHERE lineage_no = :no AND rollout_no = :rollout_no"
_TAKEN = "SELECT 1 FROM lineage_steps WHERE lineage_no = :no AND cycle = :cycle AND rollout_no IS NOT NULL"

_IN_CYCLE = """SELECT l.position, l.locked_cycle, r.no, r.rollout_id FROM lineages l
    JOIN lineage_steps t ON t.lineage_no = l.no AND t.cycle = :cycle JOIN rollouts r ON r.no = t.rollout_no
    WHERE l.session_no = :session_no ORDER BY l.position"""
_PAIRS = """SELECT no, preference_id FROM preferences
    WHERE session_no = :session_no AND cycle = :cycle AND source = 'lock'"""

_SESSION_FIELDS = columns(lineage_sessions, "session_id name create_time packed_metadata")
_STEP_FIELDS = [
    lineages.c.lineage_id,
    lineages.c.position,
    *columns(lineage_steps, "kind cycle author create_time"),
    rollouts.c.rollout_id,
]
_STEP_NAMES = tuple(field.name for field in _STEP_FIELDS)


def create_lineage_session(db: Session, verb: verbs.CreateLineageSession) -> LineageSession:
    """See `LightningStore.create_lineage_session`."""
    count = len(verb.names) if verb.names is not None else verb.lineages
    if not 1 <= count <= MAX_LINEAGES:
        raise BadInputError(f"{count} lineages cannot be compared.", hint=f"Give 1 to {MAX_LINEAGES}.")
    if verb.session_id is not None:
        known = _sessions(db, [verb.session_id])
        if known:
            return _same(known[0], count, verb)
    session_id = verb.session_id or new_id("ls")
    row: dict[str, Any] = {
        "session_id": session_id,
        "name": verb.name,
        "create_time": now(),
        "packed_metadata": None if verb.metadata is None else pack(verb.metadata, "The session's metadata"),
    }
    db.run(_ADD_SESSION, payloads.stashed_one(db, row, "packed_metadata"))
    session_no = db.all("SELECT no FROM lineage_sessions WHERE session_id = :id", {"id": session_id})[0][0]
    names = verb.names if verb.names is not None else [None] * count
    db.run_many(
        _ADD_LINEAGE,
        [
            {"lineage_id": f"{session_id}.{i}", "session_no": session_no, "position": i, "name": name}
            for i, name in enumerate(names)
        ],
    )
    said = {"session_id": session_id, "name": verb.name, "lineages": count, "names": verb.names}
    said |= {"create_time": row["create_time"], "metadata": verb.metadata}
    events.record(db, "lineage.session_created", said)
    return _sessions(db, [session_id])[0]


def _same(known: LineageSession, count: int, verb: verbs.CreateLineageSession) -> LineageSession:
    if len(known.lineages) != count or known.name != verb.name:
        raise ConflictError(
            f"Session {known.session_id!r} exists and is another one.",
            hint="Use another id, or none.",
            details={"session_id": known.session_id, "lineages": len(known.lineages), "name": known.name},
        )
    return known


def get_lineage_session(db: Session, verb: verbs.GetLineageSession) -> LineageSession | None:
    """See `LightningStore.get_lineage_session`."""
    found = _sessions(db, [verb.session_id])
    return found[0] if found else None


def query_lineage_sessions(db: Session, verb: verbs.QueryLineageSessions) -> PaginatedResult[LineageSession]:
    """See `LightningStore.query_lineage_sessions`."""
    conditions: list[Condition] = text_filters(verb, named(lineage_sessions, "name"))
    if verb.session_id_in is not None:
        conditions.append(one_of(lineage_sessions.c.session_id, verb.session_id_in))
    rows, total = page(
        db,
        verb,
        lineage_sessions,
        _SESSION_FIELDS,
        combine(conditions, verb.filter_logic),
        named(lineage_sessions, "session_id name create_time"),
        lineage_sessions.c.no,
    )
    return result(verb, _with_lineages(db, rows), total)


def _sessions(db: Session, session_ids: list[str]) -> list[LineageSession]:
    query = select(*_SESSION_FIELDS).where(one_of(lineage_sessions.c.session_id, session_ids))
    return _with_lineages(db, db.select(query))


def _with_lineages(db: Session, rows: list[Row]) -> list[LineageSession]:
    sessions = {
        row[0]: construct(
            LineageSession,
            {
                "session_id": row[0],
                "name": row[1],
                "create_time": row[2],
                "lineages": [],
                "metadata": unpack(row[3]),
            },
        )
        for row in payloads.resolve(db, rows, 3)
    }
    if sessions:
        for row in db.all(_OF_SESSIONS, {"ids": list(sessions)}):
            sessions[row[0]].lineages.append(_lineage(row))
    return list(sessions.values())


def _lineage(row: Row) -> Lineage:
    return construct(
        Lineage,
        {
            "session_id": row[0],
            "lineage_id": row[1],
            "position": row[2],
            "name": row[3],
            "locked": row[4] is not None,
            "locked_cycle": row[4],
            "cycle": row[5],
            "rollout_id": row[6],
        },
    )


def _require(db: Session, lineage_id: str) -> tuple[Lineage, int, int]:
    """The lineage, its `no` and its session's; nobody else changes the session until the transaction ends."""
    db.lock(_LOCK_SESSION, {"lineage_id": lineage_id})
    row = db.first(_ONE, {"lineage_id": lineage_id})
    if row is None:
        raise NotFoundError(
            f"There is no lineage {lineage_id!r}.",
            hint="The lineages of a session are in get_lineage_session(session_id).",
            details={"lineage_id": lineage_id},
        )
    return _lineage(row), row[7], row[8]


def _newest_cycle(db: Session, session_no: int) -> int | None:
    return db.all(_NEWEST_CYCLE, {"session_no": session_no})[0][0]


def add_to_lineage(db: Session, verb: verbs.AddToLineage) -> Lineage:
    """See `LightningStore.add_to_lineage`."""
    if verb.cycle is not None and verb.cycle < 0:
        raise BadInputError(f"cycle is {verb.cycle}.", hint="Give 0 or more, or None.")
    lineage, no, session_no = _require(db, verb.lineage_id)
    lock_rollouts(db, [verb.rollout_id])
    rollout_no = require_rollout(db, verb.rollout_id)
    known = db.first(_STEP_OF_ROLLOUT, {"no": no, "rollout_no": rollout_no})
    if known is not None and verb.cycle in (None, known[0]):
        return lineage
    if known is not None:
        raise ConflictError(f"Rollout {verb.rollout_id!r} is in {verb.lineage_id!r} already, in cycle {known[0]}.")
    if lineage.locked:
        raise ConflictError(
            f"Lineage {verb.lineage_id!r} is locked.",
            hint="Unlock it first: unlock_lineage().",
            details={"cycle": lineage.cycle},
        )
    newest = _newest_cycle(db, session_no)
    cycle = _next_cycle(lineage, newest) if verb.cycle is None else verb.cycle
    if db.first(_TAKEN, {"no": no, "cycle": cycle}) is not None:
        raise ConflictError(
            f"Lineage {verb.lineage_id!r} has a rollout in cycle {cycle} already.", hint="Use the next cycle."
        )
    _add_step(db, lineage, no, "rollout", cycle, verb.author, rollout_no=rollout_no, rollout_id=verb.rollout_id)
    if newest is None or cycle >= newest:
        _derive(db, lineage.session_id, session_no, cycle, verb.author)
    return _require(db, verb.lineage_id)[0]


def _next_cycle(lineage: Lineage, newest: int | None) -> int:
    """The session's newest cycle if the lineage lacks a rollout there, else the next one."""
    if newest is None:
        return 1
    return newest if lineage.cycle is None or lineage.cycle < newest else newest + 1


def lock_lineage(db: Session, verb: verbs.LockLineage) -> Lineage:
    """See `LightningStore.lock_lineage`."""
    lineage, no, session_no = _require(db, verb.lineage_id)
    if lineage.locked:
        return lineage
    if lineage.cycle is None:
        raise ConflictError(f"Lineage {verb.lineage_id!r} has nothing to keep yet.", hint="Add a rollout first.")
    db.run(_SET_LOCK, {"cycle": lineage.cycle, "no": no})
    _add_step(db, lineage, no, "locked", lineage.cycle, verb.author)
    if lineage.cycle == _newest_cycle(db, session_no):
        _derive(db, lineage.session_id, session_no, lineage.cycle, verb.author)
    return _require(db, verb.lineage_id)[0]


def unlock_lineage(db: Session, verb: verbs.UnlockLineage) -> Lineage:
    """See `LightningStore.unlock_lineage`."""
    lineage, no, session_no = _require(db, verb.lineage_id)
    cycle = lineage.locked_cycle
    if cycle is None:
        return lineage
    db.run(_SET_LOCK, {"cycle": None, "no": no})
    _add_step(db, lineage, no, "unlocked", cycle, verb.author)
    if cycle == _newest_cycle(db, session_no):
        _derive(db, lineage.session_id, session_no, cycle, verb.author)
    return _require(db, verb.lineage_id)[0]


def _add_step(
    db: Session,
    lineage: Lineage,
    no: int,
    kind: str,
    cycle: int,
    author: str | None,
    *,
    rollout_no: int | None = None,
    rollout_id: str | None = None,
) -> None:
    step: dict[str, Any] = {"kind": kind, "cycle": cycle, "author": author, "create_time": now()}
    db.run(_ADD_STEP, {**step, "lineage_no": no, "rollout_no": rollout_no})
    said: dict[str, Any] = {"session_id": lineage.session_id, "lineage_id": lineage.lineage_id, **step}
    if kind == "rollout":
        events.record(db, "lineage.advanced", said, rollout_id=rollout_id)
    else:  # part of the lineage's history, which stays when the rollout is pruned or left out of an export
        events.record(db, f"lineage.{kind}", {**said, "rollout_id": lineage.rollout_id})


def _derive(db: Session, session_id: str, session_no: int, cycle: int, author: str | None) -> None:
    """Make the preferences of a cycle what its locks say."""
    key = {"session_no": session_no, "cycle": cycle}
    made = db.all(_IN_CYCLE, key)
    locked = [row for row in made if row[1] == cycle]
    free = [row for row in made if row[1] is None]
    wanted = {
        f"{session_id}.{cycle}.{better[0]}-{worse[0]}": (better, worse)
        for better in locked
        for worse in free
        if better[2] != worse[2]
    }
    existing = {row[1]: row[0] for row in db.all(_PAIRS, key)}
    for preference_id in existing.keys() - wanted.keys():
        db.run("DELETE FROM preferences WHERE no = :no", {"no": existing[preference_id]})
        events.record(db, "preference.removed", {"preference_id": preference_id, "session_id": session_id})
    for preference_id, (better, worse) in wanted.items():
        if preference_id not in existing:
            preference = _preference(preference_id, better[3], worse[3], session_id, cycle, author)
            preferences.insert(db, preference, chosen_no=better[2], rejected_no=worse[2], session_no=session_no)


def _preference(
    preference_id: str, chosen: str, rejected: str, session_id: str, cycle: int, author: str | None
) -> Preference:
    return Preference(
        preference_id=preference_id,
        chosen_rollout_id=chosen,
        rejected_rollout_id=rejected,
        source="lock",
        author=author,
        session_id=session_id,
        cycle=cycle,
        create_time=now(),
    )


def query_lineage_history(db: Session, verb: verbs.QueryLineageHistory) -> PaginatedResult[LineageStep]:
    """See `LightningStore.query_lineage_history`."""
    session = db.first("SELECT no FROM lineage_sessions WHERE session_id = :id", {"id": verb.session_id})
    if session is None:
        raise NotFoundError(f"There is no session {verb.session_id!r}.", details={"session_id": verb.session_id})
    conditions: list[Condition] = [lineages.c.session_no == session[0]]
    if verb.cycle is not None:
        conditions.append(lineage_steps.c.cycle == verb.cycle)
    conditions += [
        column == wanted
        for column, wanted in ((lineages.c.lineage_id, verb.lineage_id), (lineage_steps.c.kind, verb.kind))
        if wanted is not None
    ]
    source = lineage_steps.join(lineages, lineages.c.no == lineage_steps.c.lineage_no).outerjoin(
        rollouts, rollouts.c.no == lineage_steps.c.rollout_no
    )
    sortable = {**named(lineage_steps, "kind cycle author create_time"), **named(lineages, "lineage_id position")}
    rows, total = page(db, verb, source, _STEP_FIELDS, combine(conditions, "and"), sortable, lineage_steps.c.no)
    steps = [construct(LineageStep, dict(zip(_STEP_NAMES, row, strict=True))) for row in rows]
    return result(verb, steps, total)
