"""Imports: sources one after the other, each with all its items in one transaction, so that a stopped import goes on.

A source that is as it was is skipped; one that has changed replaces what came from it; one that cannot be read leaves
that alone, and is read again next time; near-duplicates are left out.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.auth.repository import note
from agentlightning.platform.database import Database
from agentlightning.platform.knowledge import repository
from agentlightning.platform.knowledge.batches import add_batch
from agentlightning.platform.knowledge.repository import Draft

_AT_ONCE = 64  # items of a transaction
_AHEAD = 200  # sources that are looked up together
_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Source:
    """Something to import.

    Attributes:
        key: Names it, now and next time; 700 characters at most.
        hash: Other content, other hash.
        load: Reads it into items.
    """

    key: str
    hash: str
    load: Callable[[], list[Draft] | Awaitable[list[Draft]]]


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that is not imported, and why."""

    name: str
    reason: str


@dataclass(slots=True)
class Report:
    """What an import did."""

    sources: int = 0
    """Seen."""
    unchanged: int = 0
    """Of them imported before, as they are."""
    items: int = 0
    """Added."""
    replaced: int = 0
    """Removed, because their source has changed."""
    duplicates: int = 0
    """Left out: near-duplicates of something that is there."""
    refused: dict[str, int] = field(default_factory=dict[str, int])
    """Files not read, by reason."""
    problems: list[str] = field(default_factory=list[str])
    """The first of what could not be read, with the reason."""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}


async def import_sources(
    database: Database,
    found: Iterable[Source | Refused],
    by: str,
    report: Callable[[Report], Awaitable[None] | None] | None = None,
) -> Report:
    """Import them all.

    Args:
        database: Where to.
        found: What; it is read on while the import goes on.
        by: Who imports.
        report: Is told how far it is, after each transaction.
    """
    done, started, refused = Report(), time.monotonic(), Counter[str]()
    waiting: list[tuple[Source, list[Draft]]] = []

    async def flush() -> None:
        if waiting:
            await _keep(database, waiting, by, done)
            waiting.clear()
        done.seconds, done.refused = time.monotonic() - started, dict(refused)
        told = report(done) if report is not None else None
        if told is not None:
            await told

    entries = iter(found)
    while chunk := await asyncio.to_thread(_next, entries, _AHEAD):
        sources = [entry for entry in chunk if isinstance(entry, Source)]
        for entry in chunk:
            if isinstance(entry, Refused):
                refused[entry.reason] += 1
        async with database.read() as session:
            known = await repository.sources(session, [source.key for source in sources])
        for source in sources:
            done.sources += 1
            if known.get(source.key) == source.hash:
                done.unchanged += 1
                continue
            waiting += await _load(source, done)
            if sum(len(drafts) for _, drafts in waiting) >= _AT_ONCE:
                await flush()
        await flush()
    async with database.write() as session:
        note(session, "knowledge.import", f"{done.items} items", actor=by, **done.as_dict())
    return done


async def _load(source: Source, done: Report) -> list[tuple[Source, list[Draft]]]:
    """The source with its items; nothing where it cannot be read: what came from it earlier stays."""
    try:
        if inspect.iscoroutinefunction(source.load):
            return [(source, await source.load())]
        loaded = await asyncio.to_thread(source.load)
        return [(source, loaded if isinstance(loaded, list) else await loaded)]
    except AgentLightningError as error:
        if len(done.problems) < _PROBLEMS:
            done.problems.append(f"{source.key}: {error.message}"[:300])
        return []


async def _keep(database: Database, waiting: Sequence[tuple[Source, list[Draft]]], by: str, done: Report) -> None:
    async with database.write() as session:
        for source, drafts in waiting:
            old = await repository.ids_of_source(session, source.key)
            if old:
                await repository.remove(session, old)
            added, alike = await add_batch(session, drafts, by)
            await repository.replace_source(session, source.key, source.hash, len(added))
            done.items += len(added)
            done.duplicates += alike
            done.replaced += len(old)


def _next(entries: Iterator[Source | Refused], count: int) -> list[Source | Refused]:
    return [entry for entry, _ in zip(entries, range(count), strict=False)]
