"""Collecting payloads that nothing refers to, and deleting old rollouts; each function is one small step.

A collection is: `begin` (a new epoch; waits on PostgreSQL until nobody is between referring to a piece and committing),
`mark` over every table that may hold references, `sweep` over the payloads of earlier epochs, `finish`. What is
written meanwhile belongs to the new epoch and is not touched. Cut off at any point, it has removed only garbage.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, LiteralString

from agentlightning.kit.clock import now
from agentlightning.kit.db import Session
from agentlightning.schemas.rollout import TERMINAL_ROLLOUT_STATUSES
from agentlightning.store.ops import payloads

REFERRING: tuple[tuple[LiteralString, LiteralString], ...] = (
    ("rollouts", "packed_input"),
    ("rollouts", "packed_metadata"),
    ("attempts", "packed_metadata"),
    ("spans", "packed_body"),
    ("resources", "packed_resources"),
    ("events", "packed_data"),
    ("feedback", "packed_metadata"),
    ("lineage_sessions", "packed_metadata"),
    ("preferences", "packed_metadata"),
)
"""Every column that may hold references; a test compares with the tables, since what is missing here is lost."""

_ALONE = "SELECT pg_advisory_xact_lock(hashtext(current_schema()), 1)"
_BEGIN = "INSERT INTO payload_epochs (start_time) VALUES (:now) RETURNING no"
_FINISH = """UPDATE payload_epochs SET end_time = :now, removed = :removed, removed_bytes = :removed_bytes
    WHERE no = :epoch"""
# No parameter for the bounds: what a reference begins with is part of the format.
_MARK = "SELECT no, {column} FROM {table} WHERE no > :after ORDER BY no LIMIT :limit"
_OLD = "SELECT no, hash FROM payloads WHERE no > :after AND epoch < :epoch ORDER BY no LIMIT :limit"
# Looked at again on deleting: on PostgreSQL somebody may have taken it into the new epoch since.
_REMOVE = "DELETE FROM payloads WHERE no IN (:*numbers) AND epoch < :epoch RETURNING length(data)"

_ENDED = ", ".join(f"'{status}'" for status in sorted(TERMINAL_ROLLOUT_STATUSES))
_UNREFERENCED = """NOT EXISTS (SELECT 1 FROM feedback f WHERE f.rollout_no = r.no)
    AND NOT EXISTS (SELECT 1 FROM preferences p WHERE p.chosen_no = r.no)
    AND NOT EXISTS (SELECT 1 FROM preferences p WHERE p.rejected_no = r.no)
    AND NOT EXISTS (SELECT 1 FROM lineage_steps s WHERE s.rollout_no = r.no)"""
_OLD_ROLLOUTS = f"""SELECT r.no, r.rollout_id, CASE WHEN {_UNREFERENCED} THEN 1 ELSE 0 END FROM rollouts r
    WHERE r.no > :after AND r.no <= :last AND r.status IN ({_ENDED}) AND r.end_time < :ended_before
    ORDER BY r.no LIMIT :limit /*pg FOR UPDATE OF r */"""
_KEPT_FROM = f"SELECT no FROM rollouts WHERE status IN ({_ENDED}) ORDER BY no DESC LIMIT 1 OFFSET :keep"
_ATTEMPTS_OF = "SELECT no FROM attempts WHERE rollout_no IN (:*numbers)"


@dataclass(frozen=True)
class Marked:
    """What a step of `mark` found."""

    hashes: frozenset[str]
    last: int
    """Where the next step begins; 0 when this was the last."""


@dataclass(frozen=True)
class Swept:
    """What a step of `sweep` did."""

    removed: int
    removed_bytes: int
    last: int


@dataclass(frozen=True)
class Pruned:
    """What a step of `prune` did; ids of rollouts."""

    deleted: list[str]
    kept: list[str]
    """Feedback, preferences or lineages refer to them."""
    last: int


def begin(db: Session) -> int:
    """Start a collection; gives its epoch."""
    db.lock(_ALONE)
    payloads.forget_epoch(db)
    return db.all(_BEGIN, {"now": now()})[0][0]


def mark(db: Session, table: LiteralString, column: LiteralString, after: int, limit: int) -> Marked:
    """Pieces that the next rows of a table refer to."""
    rows = db.all(_MARK.format(column=column, table=table), {"after": after, "limit": limit})
    last = rows[-1][0] if len(rows) == limit else 0
    return Marked(frozenset(payloads.references_of(rows, 1)), last)


def sweep(db: Session, epoch: int, marked: Collection[str], after: int, limit: int) -> Swept:
    """Remove the next payloads of earlier epochs that are not marked."""
    rows = db.all(_OLD, {"after": after, "epoch": epoch, "limit": limit})
    garbage = [no for no, digest in rows if digest not in marked]
    removed = db.all(_REMOVE, {"numbers": garbage, "epoch": epoch}) if garbage else []
    last = rows[-1][0] if len(rows) == limit else 0
    return Swept(len(removed), sum(row[0] for row in removed), last)


def finish(db: Session, epoch: int, removed: int, removed_bytes: int) -> None:
    """Note what came of a collection."""
    db.run(_FINISH, {"now": now(), "epoch": epoch, "removed": removed, "removed_bytes": removed_bytes})


def last_to_prune(db: Session, keep_last: int) -> int:
    """The newest ended rollout (its `no`) that is not among the newest `keep_last`; 0 when there is none."""
    row = db.first(_KEPT_FROM, {"keep": keep_last})
    return 0 if row is None else row[0]


def prune(db: Session, *, ended_before: float, last: int, after: int, limit: int, force: bool, dry_run: bool) -> Pruned:
    """Delete the next ended rollouts with everything that belongs to them.

    Args:
        db: The transaction.
        ended_before: Unix seconds.
        last: The newest (`no`) that may go.
        after: Where the last step ended.
        limit: Rollouts to look at.
        force: Also those that feedback, preferences or lineages refer to, with these.
        dry_run: Only say which.
    """
    params = {"ended_before": ended_before, "last": last, "after": after, "limit": limit}
    rows = db.all(_OLD_ROLLOUTS if not dry_run else _OLD_ROLLOUTS.replace("/*pg FOR UPDATE OF r */", ""), params)
    doomed = [row for row in rows if row[2] or force]
    kept = [row[1] for row in rows if not (row[2] or force)]
    if doomed and not dry_run:
        _delete(db, [row[0] for row in doomed], [row[1] for row in doomed])
    return Pruned([row[1] for row in doomed], kept, rows[-1][0] if len(rows) == limit else 0)


def _delete(db: Session, numbers: list[int], rollout_ids: list[str]) -> None:
    params: dict[str, Any] = {"numbers": numbers, "ids": rollout_ids}
    attempts = [row[0] for row in db.all(_ATTEMPTS_OF, params)]
    db.run("DELETE FROM feedback WHERE rollout_no IN (:*numbers)", params)
    db.run("DELETE FROM preferences WHERE chosen_no IN (:*numbers)", params)
    db.run("DELETE FROM preferences WHERE rejected_no IN (:*numbers)", params)
    db.run("DELETE FROM lineage_steps WHERE rollout_no IN (:*numbers)", params)
    db.run("DELETE FROM spans WHERE attempt_no IN (:*attempts)", {"attempts": attempts})
    db.run("DELETE FROM attempts WHERE rollout_no IN (:*numbers)", params)
    db.run("DELETE FROM events WHERE rollout_id IN (:*ids)", params)
    db.run("DELETE FROM rollouts WHERE no IN (:*numbers)", params)
