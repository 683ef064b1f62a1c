"""What ends attempts by itself: time limits, silence, leases that have run out."""

from __future__ import annotations

import math

from agentlightning.kit.clock import now
from agentlightning.kit.db import Session
from agentlightning.kit.errors import BadInputError
from agentlightning.store.ops.lifecycle import give_up
from agentlightning.store.ops.rows import lock_rollouts

_TOO_LONG, _LEASE = 2, 1  # else it was silent for too long
_EXPIRED = """SELECT r.rollout_id, a.attempt_id, CASE WHEN a.start_time + a.timeout_seconds < :now THEN 2 ELSE 0 END
    FROM attempts a JOIN rollouts r ON r.no = a.rollout_no WHERE a.watched IS NOT NULL AND
    (a.start_time + a.timeout_seconds < :now
    OR coalesce(a.last_heartbeat_time, a.start_time) + a.unresponsive_seconds < :now)
    UNION ALL SELECT r.rollout_id, a.attempt_id, 1 FROM attempts a JOIN rollouts r ON r.no = a.rollout_no
    WHERE a.lease_until < :now AND a.lease_s < :now - :since"""


def check_lease(lease_s: float | None) -> None:
    """Refuse what is no duration.

    Raises:
        BadInputError: It is not.
    """
    if lease_s is not None and not 0 < lease_s < math.inf:
        raise BadInputError(
            f"lease_s={lease_s} is no lease.", hint="Give seconds, more than 0; None for a claim that does not end."
        )


def has_expired(db: Session, *, since: float = 0.0) -> bool:
    """Whether `check_timeouts` has anything to do."""
    return db.first(f"{_EXPIRED} LIMIT 1", {"now": now(), "since": since}) is not None


def check_timeouts(db: Session, *, since: float = 0.0) -> int:
    """Mark attempts that took too long (`timeout`) or fell silent (`unresponsive`); returns how many.

    Args:
        db: The session.
        since: When this store was opened, Unix seconds. While there was none, nobody could renew a lease, so each gets
            its full time from then on.
    """
    params = {"now": now(), "since": since}
    expired = db.all(_EXPIRED, params)
    if expired:  # another process may be at it, too: look again once nobody else can
        lock_rollouts(db, [row[0] for row in expired])
        expired = [row for row in db.all(_EXPIRED, params) if row in expired]
    worst: dict[tuple[str, str], int] = {}
    for *key, why in expired:
        worst[key[0], key[1]] = max(why, worst.get((key[0], key[1]), 0))
    for (rollout_id, attempt_id), why in worst.items():
        give_up(db, rollout_id, attempt_id, "timeout" if why == _TOO_LONG else "unresponsive", lost=why == _LEASE)
    return len(worst)
