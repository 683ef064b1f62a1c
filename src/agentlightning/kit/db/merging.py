"""Operations of one kind that wait together are done as one: one statement for all of them instead of one for each.

Whoever waits for an answer has not seen any other of the same moment, so their order is free. Knows no database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from agentlightning.kit.db.jobs import Job, Merge
from agentlightning.kit.db.session import Session


class MergedJob(Job):
    """Several jobs as one."""

    __slots__ = ("_together", "parts")

    def __init__(self, merge: Merge, parts: list[Job]) -> None:
        super().__init__(self._run_together)
        self._together = merge.run
        self.parts = parts

    def _run_together(self, db: Session) -> Sequence[Any]:
        results = self._together(db, [part.argument for part in self.parts])
        if len(results) != len(self.parts):  # before the commit: now all can still be done one by one
            raise RuntimeError(f"{len(self.parts)} merged operations gave {len(results)} results")
        return results

    def settle(self) -> None:
        """Hand the results to the parts."""
        for part, result in zip(self.parts, self.result, strict=True):
            part.result, part.error = result, None


def merged(jobs: Sequence[Job]) -> Sequence[Job]:
    """The same work in as few jobs as possible, sorted by rank and otherwise in order."""
    if len(jobs) == 1:
        return jobs
    groups: defaultdict[Merge, list[Job]] = defaultdict(list)
    ranked: list[tuple[int, Job]] = []
    for job in jobs:
        if job.merge is None:
            ranked.append((0, job))
        else:
            groups[job.merge].append(job)
    for merge, parts in groups.items():
        ranked.append((merge.rank, parts[0] if len(parts) == 1 else MergedJob(merge, parts)))
    ranked.sort(key=lambda pair: pair[0])
    return [job for _, job in ranked]


def settle(jobs: Sequence[Job]) -> None:
    """After the commit: hand out the results of merged jobs."""
    for job in jobs:
        if isinstance(job, MergedJob):
            job.settle()
