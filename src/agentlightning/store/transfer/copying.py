"""One store into another, without files between."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from agentlightning.kit.db import Row
from agentlightning.kit.errors import BadInputError
from agentlightning.store.databases import parse_location, require_store, show_location
from agentlightning.store.endpoints import Endpoint, open_endpoint
from agentlightning.store.progress import Progress, Steps, silent
from agentlightning.store.tables import REVISIONS
from agentlightning.store.transfer.plan import TablePlan, plans
from agentlightning.store.transfer.rows import Digest, in_parts
from agentlightning.store.transfer.selection import Selection, rows_of
from agentlightning.store.transfer.staging import Staging, open_staging

PART_ROWS = 50_000


def copy_store(
    source: str | Path, target: str | Path, progress: Progress = silent, *, part_rows: int = PART_ROWS
) -> dict[str, int]:
    """Copy everything into an empty store, created when missing; returns the rows by table.

    Args:
        source: File or URL.
        target: The same.
        progress: Called with the fraction done and the table.
        part_rows: Rows that are written at once, and that an interruption costs at most.

    Raises:
        NotFoundError: There is no such source.
        ConflictError: The target holds something.
        BadInputError: A value does not fit the target.
        BusyError: Another transfer into the target is under way.
    """
    from_, to = parse_location(source), parse_location(target)
    if from_ == to:
        raise BadInputError("Source and target are the same.", hint="Give another target.")
    require_store(from_)
    named = f"copy {show_location(from_)} {REVISIONS[-1]} {part_rows}"
    opened = open_endpoint(from_)
    try:
        with open_staging(to, hashlib.sha256(named.encode()).hexdigest(), into_empty=True) as staging:
            _fill(opened, staging, Steps(progress), part_rows)
            return staging.publish(into_empty=True)
    finally:
        opened.close()


def _fill(source: Endpoint, staging: Staging, steps: Steps, part_rows: int) -> None:
    steps.expect(sum(source.count(plan.table) for plan in plans()))
    for plan in plans():
        known = staging.entries(plan)
        last = number = 0
        for number, batches in enumerate(in_parts(source.stream(rows_of(plan, Selection())), part_rows), 1):
            entry = known[number - 1] if number <= len(known) else None
            digest = Digest()
            if entry is not None:
                for _ in _counted(batches, digest, steps, plan):
                    pass
                if entry.digest == digest.hex():
                    last = entry.last_no
                    continue
                batches = source.stream(rows_of(plan, Selection(), after=last, up_to=digest.last_no))
                digest = Digest()
            last = staging.put(plan, number - 1, last, _counted(batches, digest, steps, plan), digest.hex).last_no
        staging.cut(plan, number, last)
    steps.finish()


def _counted(batches: Iterator[list[Row]], digest: Digest, steps: Steps, plan: TablePlan) -> Iterator[list[Row]]:
    for rows in batches:
        digest.add(rows, len(plan.columns))
        yield rows
        steps.done(len(rows), plan.name)
