"""Walking through what is judged, a page at a time, and counting what cannot be used. Knows no formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from agentlightning.schemas import Span
from agentlightning.store import LightningStore

T = TypeVar("T")

_EXAMPLES = 5


@dataclass
class Skips:
    """How much was used, and why the rest was not."""

    used: int = 0
    skipped: Counter[str] = field(default_factory=Counter[str])
    """By reason."""
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The first few ids of each reason."""

    @property
    def total(self) -> int:
        """Used or not."""
        return self.used + self.skipped.total()

    def skip(self, reason: str, judgement_id: str) -> None:
        """Count one that cannot be used."""
        self.skipped[reason] += 1
        known = self.examples.setdefault(reason, [])
        if len(known) < _EXAMPLES:
            known.append(judgement_id)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"used": self.used, "skipped": dict(self.skipped), "examples": self.examples}


class Stream(Generic[T]):
    """Training examples, read while they are iterated over; each iteration begins anew.

    Attributes:
        report: What the latest iteration used and left out; complete when it has ended.
    """

    def __init__(self, read: Callable[[Skips], AsyncIterator[T]]) -> None:
        self._read = read
        self.report = Skips()

    async def __aiter__(self) -> AsyncIterator[T]:
        self.report = Skips()
        async for example in self._read(self.report):
            self.report.used += 1
            yield example


async def pages(
    query: Callable[..., Awaitable[Sequence[T]]], filters: dict[str, Any], *, size: int
) -> AsyncIterator[list[T]]:
    """Everything that matches a query of the store, a page at a time, in the order it came."""
    offset = 0
    while True:
        page = list(await query(**filters, limit=size, offset=offset))
        if page:
            yield page
        if len(page) < size:
            return
        offset += size


async def spans_of(
    store: LightningStore, attempts: Sequence[tuple[str, str | None]]
) -> dict[tuple[str, str | None], list[Span]]:
    """Spans of attempts, `None` being the latest; those in one read, named ones each in its own."""
    latest = await store.query_many_spans([rollout_id for rollout_id, attempt_id in attempts if attempt_id is None])
    found: dict[tuple[str, str | None], list[Span]] = {
        (rollout_id, None): spans for rollout_id, spans in latest.items()
    }
    for rollout_id, attempt_id in attempts:
        if attempt_id is not None and (rollout_id, attempt_id) not in found:
            found[rollout_id, attempt_id] = list(await store.query_spans(rollout_id, attempt_id))
    return found
