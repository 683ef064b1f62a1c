"""Garbage collection and pruning as a series of small transactions, beside whoever else uses the database.

Interrupted anywhere, what is done is done and the rest is as it was; the next run goes on. Knows no SQL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial

from agentlightning.kit.errors import BadInputError
from agentlightning.store.databases import Database
from agentlightning.store.ops import garbage
from agentlightning.store.progress import Progress, silent

BATCH = 500
PRUNE_BATCH = 100
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_EXAMPLES = 20


@dataclass
class CollectionReport:
    """What a garbage collection did."""

    epoch: int
    payloads: int = 0
    """In use."""
    removed: int = 0
    removed_bytes: int = 0
    """As stored, compressed."""


@dataclass
class PruneReport:
    """What pruning did, or would do."""

    deleted: int = 0
    kept: int = 0
    """Old enough, but feedback, preferences or lineages refer to them."""
    kept_examples: list[str] = field(default_factory=list[str])
    dry_run: bool = False


def parse_age(text: str) -> float:
    """Seconds of `90s`, `15m`, `12h`, `30d` or `4w`.

    Raises:
        BadInputError: It is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    if found is None:
        raise BadInputError(f"{text!r} is no age.", hint="Write 30d, 12h, 90m, 4w or 600s.")
    return float(found[1]) * _UNITS_S[found[2]]


async def collect_garbage(database: Database, progress: Progress = silent, *, batch: int = BATCH) -> CollectionReport:
    """Remove payloads that nothing refers to; others may write meanwhile. Memory: some 100 bytes per payload in use.

    Args:
        database: Whose.
        progress: Told how far it is.
        batch: Rows to a transaction.

    Raises:
        PayloadError: A reference cannot be read, so it is not known what may go; nothing was removed.
    """
    report = CollectionReport(await database.write(garbage.begin))
    marked: set[str] = set()
    for done, (table, column) in enumerate(garbage.REFERRING):
        after = 0
        while True:
            progress(0.8 * done / len(garbage.REFERRING), f"looking through {table}")
            found = await database.read(partial(garbage.mark, table=table, column=column, after=after, limit=batch))
            marked |= found.hashes
            if not found.last:
                break
            after = found.last
    report.payloads = len(marked)
    after = 0
    while True:
        progress(0.8, f"removing: {report.removed:,} so far")
        swept = await database.write(
            partial(garbage.sweep, epoch=report.epoch, marked=marked, after=after, limit=batch)
        )
        report.removed += swept.removed
        report.removed_bytes += swept.removed_bytes
        if not swept.last:
            break
        after = swept.last
    await database.write(
        partial(garbage.finish, epoch=report.epoch, removed=report.removed, removed_bytes=report.removed_bytes)
    )
    progress(1.0, "done")
    return report


async def prune(
    database: Database,
    *,
    ended_before: float | None = None,
    keep_last: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    batch: int = PRUNE_BATCH,
) -> PruneReport:
    """Delete ended rollouts with their attempts, spans and events, oldest first.

    Args:
        database: Whose.
        ended_before: Only those that ended before this, Unix seconds.
        keep_last: Never the newest so many of the ended ones.
        force: Also those with feedback, preferences or lineages, which go with them.
        dry_run: Only count.
        progress: Told how far it is.
        batch: Rollouts to a transaction.

    Raises:
        BadInputError: Neither limit is given, or `keep_last` is negative.
    """
    if ended_before is None and keep_last is None:
        raise BadInputError(
            "Pruning needs a limit.", hint="Give ended_before (--older-than), keep_last (--keep-last), or both."
        )
    if keep_last is not None and keep_last < 0:
        raise BadInputError(f"keep_last is {keep_last}.", hint="Give 0 or more.")
    report = PruneReport(dry_run=dry_run)
    last = await database.read(partial(garbage.last_to_prune, keep_last=keep_last or 0))
    step = partial(
        garbage.prune,
        ended_before=float("inf") if ended_before is None else ended_before,
        last=last,
        limit=batch,
        force=force,
        dry_run=dry_run,
    )
    after = 0
    while True:
        progress(min(1.0, after / max(1, last)), f"{report.deleted:,} rollouts")
        operation = partial(step, after=after)
        done = await (database.read(operation) if dry_run else database.write(operation))
        report.deleted += len(done.deleted)
        report.kept += len(done.kept)
        report.kept_examples += done.kept[: max(0, _EXAMPLES - len(report.kept_examples))]
        if not done.last:
            break
        after = done.last
    progress(1.0, "done")
    return report
