"""Preferences: pairs of rollouts of which one is better, as said by somebody or as it follows from locks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

from sqlalchemy import or_, select

from agentlightning.kit.clock import now
from agentlightning.kit.db import Row, Session, one_of
from agentlightning.kit.errors import BadInputError, ConflictError
from agentlightning.kit.ids import new_id
from agentlightning.schemas import PaginatedResult, Preference, PreferenceSource
from agentlightning.schemas.building import construct
from agentlightning.store import verbs
from agentlightning.store.ops import events, payloads
from agentlightning.store.ops.paging import Condition, columns, combine, named, page, result
from agentlightning.store.ops.rows import lock_rollouts, require_rollout
from agentlightning.store.ops.spans import find_attempt
from agentlightning.store.records import pack, unpack
from agentlightning.store.tables import lineage_sessions, preferences, rollouts

_INSERT = """INSERT INTO preferences (preference_id, chosen_no, rejected_no, chosen_attempt_id, rejected_attempt_id,
    source, weight, margin, comment, author, session_no, cycle, create_time, packed_metadata) VALUES (:preference_id,
    :chosen_no, :rejected_no, :chosen_attempt_id, :rejected_attempt_id, :source, :weight, :margin, :comment, :author,
    :session_no, :cycle, :create_time, :packed_metadata)"""

_chosen, _rejected = rollouts.alias("chosen"), rollouts.alias("rejected")
_FIELDS = [
    preferences.c.preference_id,
    _chosen.c.rollout_id.label("chosen_rollout_id"),
    _rejected.c.rollout_id.label("rejected_rollout_id"),
    *columns(
        preferences, "chosen_attempt_id rejected_attempt_id source weight margin comment author cycle create_time"
    ),
    lineage_sessions.c.session_id,
    preferences.c.packed_metadata,
]
_NAMES = tuple(field.name for field in _FIELDS[:-1])
_METADATA = len(_FIELDS) - 1
_SOURCE = (
    preferences.join(_chosen, _chosen.c.no == preferences.c.chosen_no)
    .join(_rejected, _rejected.c.no == preferences.c.rejected_no)
    .outerjoin(lineage_sessions, lineage_sessions.c.no == preferences.c.session_no)
)


def add_preference(db: Session, verb: verbs.AddPreference) -> Preference:
    """See `LightningStore.add_preference`."""
    _check(verb)
    lock_rollouts(db, [verb.chosen_rollout_id, verb.rejected_rollout_id])
    chosen_no = require_rollout(db, verb.chosen_rollout_id)
    rejected_no = require_rollout(db, verb.rejected_rollout_id)
    for rollout_id, attempt_id in (
        (verb.chosen_rollout_id, verb.chosen_attempt_id),
        (verb.rejected_rollout_id, verb.rejected_attempt_id),
    ):
        if attempt_id is not None:
            find_attempt(db, rollout_id, attempt_id)
    given = _from_verb(verb)
    if verb.preference_id is not None and (known := _find(db, verb.preference_id)) is not None:
        return _same(known, given)
    insert(db, given, chosen_no=chosen_no, rejected_no=rejected_no, session_no=None)
    return given


def insert(db: Session, preference: Preference, *, chosen_no: int, rejected_no: int, session_no: int | None) -> None:
    """Write a new preference."""
    metadata = preference.metadata
    row: dict[str, Any] = {
        **preference.__dict__,
        "chosen_no": chosen_no,
        "rejected_no": rejected_no,
        "session_no": session_no,
        "packed_metadata": None if metadata is None else pack(metadata, "The preference's metadata"),
    }
    events.record(db, "preference.added", dict(preference.__dict__), rollout_id=preference.chosen_rollout_id)
    db.run(_INSERT, payloads.stashed_one(db, row, "packed_metadata"))


def query_preferences(db: Session, verb: verbs.QueryPreferences) -> PaginatedResult[Preference]:
    """See `LightningStore.query_preferences`."""
    conditions: list[Condition] = []
    if verb.rollout_id_in is not None:
        ids = verb.rollout_id_in
        conditions.append(or_(one_of(_chosen.c.rollout_id, ids), one_of(_rejected.c.rollout_id, ids)))
    if verb.source_in is not None:
        conditions.append(one_of(preferences.c.source, verb.source_in))
    if verb.session_id is not None:
        conditions.append(lineage_sessions.c.session_id == verb.session_id)
    if verb.cycle is not None:
        conditions.append(preferences.c.cycle == verb.cycle)
    if verb.author is not None:
        conditions.append(preferences.c.author == verb.author)
    sortable = {
        **named(preferences, "preference_id source weight margin author cycle create_time"),
        "chosen_rollout_id": _chosen.c.rollout_id,
        "rejected_rollout_id": _rejected.c.rollout_id,
    }
    where = combine(conditions, verb.filter_logic)
    rows, total = page(db, verb, _SOURCE, _FIELDS, where, sortable, preferences.c.no)
    return result(verb, _from_rows(db, rows), total)


def _check(verb: verbs.AddPreference) -> None:
    same_attempt = verb.chosen_attempt_id == verb.rejected_attempt_id
    if verb.chosen_rollout_id == verb.rejected_rollout_id and (same_attempt or None in _attempts(verb)):
        raise BadInputError(
            f"Rollout {verb.chosen_rollout_id!r} cannot be better than itself.",
            hint="Give two rollouts, or two attempts of one by their ids.",
        )
    if verb.source not in get_args(PreferenceSource):
        raise BadInputError(f"source is {verb.source!r}.", hint=f"Use one of {', '.join(get_args(PreferenceSource))}.")
    if not (math.isfinite(verb.weight) and verb.weight > 0):
        raise BadInputError(f"weight is {verb.weight}.", hint="Give a number above 0.")
    if verb.margin is not None and not (math.isfinite(verb.margin) and verb.margin >= 0):
        raise BadInputError(f"margin is {verb.margin}.", hint="Give a number of 0 or more, or None.")


def _attempts(verb: verbs.AddPreference) -> tuple[str | None, str | None]:
    return verb.chosen_attempt_id, verb.rejected_attempt_id


def _from_verb(verb: verbs.AddPreference) -> Preference:
    return construct(
        Preference,
        {
            "preference_id": verb.preference_id or new_id("pf"),
            "chosen_rollout_id": verb.chosen_rollout_id,
            "rejected_rollout_id": verb.rejected_rollout_id,
            "chosen_attempt_id": verb.chosen_attempt_id,
            "rejected_attempt_id": verb.rejected_attempt_id,
            "source": verb.source,
            "weight": float(verb.weight),
            "margin": None if verb.margin is None else float(verb.margin),
            "comment": verb.comment,
            "author": verb.author,
            "session_id": None,
            "cycle": None,
            "create_time": now(),
            "metadata": verb.metadata,
        },
    )


def _from_rows(db: Session, rows: Sequence[Row]) -> list[Preference]:
    return [
        construct(Preference, {**dict(zip(_NAMES, row, strict=False)), "metadata": unpack(row[_METADATA])})
        for row in payloads.resolve(db, list(rows), _METADATA)
    ]


def _find(db: Session, preference_id: str) -> Preference | None:
    query = select(*_FIELDS).select_from(_SOURCE).where(preferences.c.preference_id == preference_id)
    found = _from_rows(db, db.select(query))
    return found[0] if found else None


def _same(known: Preference, given: Preference) -> Preference:
    mine, theirs = _said(known), _said(given)
    if pack([mine[name] for name in sorted(mine)], "It") != pack([theirs[name] for name in sorted(theirs)], "It"):
        raise ConflictError(
            f"Preference {known.preference_id!r} exists and says something else.",
            hint="Use another id, or none.",
            details={"preference_id": known.preference_id},
        )
    return known


def _said(preference: Preference) -> dict[str, Any]:
    return {name: value for name, value in preference.__dict__.items() if name != "create_time"}
