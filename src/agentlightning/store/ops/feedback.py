"""Feedback: what people say of rollouts, kept as they said it."""

from __future__ import annotations

import math
from typing import Any, get_args

from sqlalchemy import select

from agentlightning.kit.clock import now
from agentlightning.kit.db import Row, Session, one_of
from agentlightning.kit.errors import BadInputError, ConflictError
from agentlightning.kit.ids import new_id
from agentlightning.schemas import Feedback, PaginatedResult, Thumb
from agentlightning.schemas.building import construct
from agentlightning.store import verbs
from agentlightning.store.ops import events, payloads
from agentlightning.store.ops.paging import Condition, columns, combine, named, page, result
from agentlightning.store.ops.rows import lock_rollouts, require_rollout
from agentlightning.store.ops.spans import find_attempt
from agentlightning.store.records import pack, unpack
from agentlightning.store.tables import feedback, rollouts

_INSERT = """INSERT INTO feedback (feedback_id, rollout_no, attempt_id, score, score_min, score_max, thumb, comment,
    author, create_time, packed_metadata) VALUES (:feedback_id, :rollout_no, :attempt_id, :score, :score_min,
    :score_max, :thumb, :comment, :author, :create_time, :packed_metadata)"""

_FIELDS = [
    feedback.c.feedback_id,
    rollouts.c.rollout_id,
    *columns(feedback, "attempt_id score score_min score_max thumb comment author create_time packed_metadata"),
]
_METADATA = 10
_SOURCE = feedback.join(rollouts, rollouts.c.no == feedback.c.rollout_no)


def add_feedback(db: Session, verb: verbs.AddFeedback) -> Feedback:
    """See `LightningStore.add_feedback`."""
    _check(verb)
    lock_rollouts(db, [verb.rollout_id])
    rollout_no = require_rollout(db, verb.rollout_id)
    if verb.attempt_id is not None:
        find_attempt(db, verb.rollout_id, verb.attempt_id)
    given = _from_verb(verb)
    if verb.feedback_id is not None and (known := _find(db, verb.feedback_id)) is not None:
        return _same(known, given)
    row: dict[str, Any] = {
        **given.__dict__,
        "rollout_no": rollout_no,
        "packed_metadata": None if given.metadata is None else pack(given.metadata, "The feedback's metadata"),
    }
    kind = "feedback.given" if given.score is None else "artifact.scored"
    events.record(db, kind, dict(given.__dict__), rollout_id=given.rollout_id, attempt_id=given.attempt_id)
    db.run(_INSERT, payloads.stashed_one(db, row, "packed_metadata"))
    return given


def query_feedback(db: Session, verb: verbs.QueryFeedback) -> PaginatedResult[Feedback]:
    """See `LightningStore.query_feedback`."""
    conditions: list[Condition] = []
    if verb.rollout_id_in is not None:
        conditions.append(one_of(rollouts.c.rollout_id, verb.rollout_id_in))
    if verb.author is not None:
        conditions.append(feedback.c.author == verb.author)
    if verb.thumb is not None:
        conditions.append(feedback.c.thumb == verb.thumb)
    for wanted, column in ((verb.has_score, feedback.c.score), (verb.has_comment, feedback.c.comment)):
        if wanted is not None:
            conditions.append(column.isnot(None) if wanted else column.is_(None))
    sortable = named(feedback, "feedback_id attempt_id score thumb author create_time")
    where = combine(conditions, verb.filter_logic)
    rows, total = page(
        db, verb, _SOURCE, _FIELDS, where, {**sortable, "rollout_id": rollouts.c.rollout_id}, feedback.c.no
    )
    return result(verb, _from_rows(db, rows), total)


def _check(verb: verbs.AddFeedback) -> None:
    if verb.thumb is not None and verb.thumb not in get_args(Thumb):
        raise BadInputError(f"thumb is {verb.thumb!r}.", hint="Use 'up', 'down' or None.")
    low, high = verb.score_min, verb.score_max
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInputError(f"A scale from {low} to {high} is none.", hint="score_min has to be below score_max.")
    if verb.score is not None and not low <= verb.score <= high:  # not a number is not between either
        raise BadInputError(
            f"The score {verb.score} is outside of {low:g} to {high:g}.",
            hint="Give a score on that scale, or name the scale with score_min and score_max.",
            details={"score": str(verb.score), "score_min": low, "score_max": high},
        )
    if verb.score is None and verb.thumb is None and not verb.comment and not verb.metadata:
        raise BadInputError("The feedback says nothing.", hint="Give a score, a thumb or a comment.")


def _from_verb(verb: verbs.AddFeedback) -> Feedback:
    return construct(
        Feedback,
        {
            "feedback_id": verb.feedback_id or new_id("fb"),
            "rollout_id": verb.rollout_id,
            "attempt_id": verb.attempt_id,
            "score": None if verb.score is None else float(verb.score),
            "score_min": float(verb.score_min),
            "score_max": float(verb.score_max),
            "thumb": verb.thumb,
            "comment": verb.comment,
            "author": verb.author,
            "create_time": now(),
            "metadata": verb.metadata,
        },
    )


def _from_rows(db: Session, rows: list[Row]) -> list[Feedback]:
    names = tuple(column.name for column in _FIELDS[:_METADATA])
    return [
        construct(Feedback, {**dict(zip(names, row, strict=False)), "metadata": unpack(row[_METADATA])})
        for row in payloads.resolve(db, rows, _METADATA)
    ]


def _find(db: Session, feedback_id: str) -> Feedback | None:
    query = select(*_FIELDS).select_from(_SOURCE).where(feedback.c.feedback_id == feedback_id)
    found = _from_rows(db, db.select(query))
    return found[0] if found else None


def _same(known: Feedback, given: Feedback) -> Feedback:
    if pack(_said(known), "The feedback") != pack(_said(given), "The feedback"):
        raise ConflictError(
            f"Feedback {known.feedback_id!r} exists and says something else.",
            hint="Feedback is not changed afterwards; add another one.",
            details={"feedback_id": known.feedback_id},
        )
    return known


def _said(given: Feedback) -> dict[str, Any]:
    """All but the time, which differs when a request is repeated."""
    return {name: value for name, value in given.__dict__.items() if name != "create_time"}
