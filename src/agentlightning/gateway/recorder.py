"""Writes calls to the store before they are answered. Knows nothing of dialects or upstreams.

Spans that arrive while a write is under way leave together in the next one, so the batch grows with the load
and a lonely call waits for nobody. With a spool, a store that is away stops nobody either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.spool import Entry, Spool
from agentlightning.gateway.spooling import RecordingStats, SpoolQueue, is_outage
from agentlightning.kit.errors import AgentLightningError, NotFoundError, StorageError
from agentlightning.schemas.span import Span
from agentlightning.store.records import record_from_span

_log = logging.getLogger(__name__)

WhenFull = Literal["refuse", "answer"]
"""What happens to a call whose record can be kept nowhere: its answer is withheld, or it goes out unrecorded."""


class SpanStore(Protocol):
    """The part of `LightningStore` that recording needs."""

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Write spans in order; a `sequence_id` of 0 is assigned by the store."""
        ...

    async def get_rollout_by_id(self, rollout_id: str) -> Any:
        """The rollout, or `None`."""
        ...


class _Entry(msgspec.Struct):
    spans: list[Span]
    written: asyncio.Future[None]


class Recorder:
    """One writer in front of the store.

    Args:
        store: Where spans go.
        is_durable: `record` returns when the spans are committed, to the store or to the spool's disk; `False`: when
            they are queued, and failures to write them are logged and counted in `lost`.
        write_timeout_s: How long one write may take when there is no spool, and one delivery from the spool.
        spool: Where spans are kept while the store is away; without one the calls fail.
        spool_after_s: How long the store may take before it counts as away.
        when_full: What happens to calls when the spool is full or its disk refuses them.
    """

    def __init__(
        self,
        store: SpanStore,
        *,
        is_durable: bool = True,
        write_timeout_s: float = 30.0,
        spool: Spool | None = None,
        spool_after_s: float = 2.0,
        when_full: WhenFull = "refuse",
    ) -> None:
        self._store = store
        self._is_durable = is_durable
        self._write_timeout_s = write_timeout_s
        self._spooling = None if spool is None else SpoolQueue(spool, self._try_write)
        self._spool_after_s = spool_after_s
        self._when_full: WhenFull = when_full
        self._queue: list[_Entry] = []
        self._arrived = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.lost = 0

    def start(self) -> None:
        """Begin to write, first what an earlier process left in the spool.

        Raises:
            StorageError: The spool's folder cannot be used.
        """
        self._is_stopping = False
        if self._spooling is not None:
            self._spooling.open()
        self._writer = asyncio.create_task(self._run(), name="gateway-recorder")

    async def stop(self) -> None:
        """Write what is queued, then end."""
        self._is_stopping = True
        self._arrived.set()
        if self._writer is not None:
            await self._writer
            self._writer = None
            if self._spooling is not None:
                await self._spooling.close()

    async def record(self, spans: list[Span]) -> None:
        """Write spans; see `is_durable`.

        Raises:
            CallError: They could not be written: 404 for an unknown rollout or attempt, else 507.
        """
        written = self.enqueue(spans)
        if self._is_durable:
            await written

    def enqueue(self, spans: list[Span]) -> asyncio.Future[None]:
        """Queue spans and return a future for the write; nobody has to await it."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.add_done_callback(self._count_loss)
        self._queue.append(_Entry(spans, written))
        self._arrived.set()
        return written

    async def delivered(self) -> None:
        """Return when nothing waits in the spool: all that was answered is in the store."""
        if self._spooling is not None:
            await self._spooling.wait_empty()

    def stats(self) -> RecordingStats:
        """How recording goes."""
        queue = self._spooling
        waiting, size = (0, 0) if queue is None else queue.waiting
        return RecordingStats(
            to="spool" if queue is not None and queue.is_active else "store",
            waiting=waiting,
            waiting_bytes=size,
            spooled=queue.spooled if queue else 0,
            delivered=queue.delivered if queue else 0,
            refused=queue.refused if queue else 0,
            lost=self.lost,
            outages=queue.outages if queue else 0,
            outage_since=queue.outage_since if queue else None,
            last_error=queue.last_error if queue else None,
        )

    def _count_loss(self, written: asyncio.Future[None]) -> None:
        if not written.cancelled() and written.exception() is not None:
            self.lost += 1
            _log.error("A model call could not be recorded: %s", written.exception())

    async def _run(self) -> None:
        while not (self._is_stopping and not self._queue):
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._queue = self._queue, []
            if batch:
                await self._write(batch)

    async def _write(self, batch: list[_Entry]) -> None:
        if self._spooling is not None and self._spooling.is_active:
            await self._keep(self._spooling, batch, None)
            return
        timeout_s = self._write_timeout_s if self._spooling is None else self._spool_after_s
        error = await self._try_write([span for entry in batch for span in entry.spans], timeout_s)
        if error is not None and self._spooling is not None and is_outage(error):
            await self._keep(self._spooling, batch, error)
        elif isinstance(error, NotFoundError | ValueError | TypeError) and len(batch) > 1:
            # One bad entry must not take the others down: a store refuses a batch as a whole.
            for entry in batch:
                await self._write([entry])
        else:
            for entry in batch:
                _settle(entry, error)

    async def _try_write(self, spans: list[Span], timeout_s: float | None = None) -> Exception | None:
        try:
            async with asyncio.timeout(timeout_s or self._write_timeout_s):
                await self._store.add_many_spans(spans)
        except Exception as error:  # noqa: BLE001 - it becomes the answer of the calls in the batch
            return error
        return None

    async def _keep(self, spooling: SpoolQueue, batch: list[_Entry], error: Exception | None) -> None:
        kept: list[_Entry] = []
        packed: list[Entry] = []
        for entry in batch:
            try:
                packed.append([record_from_span(span) for span in entry.spans])
            except (ValueError, TypeError) as unusable:
                _settle(entry, unusable)
            else:
                kept.append(entry)
        if not kept:
            return
        failure: StorageError | None = None
        try:
            await spooling.keep(packed, error)
        except StorageError as full:
            failure = full
            self._note_unkept(kept, full)
        for entry in kept:
            _settle(entry, failure if self._when_full == "refuse" else None)

    def _note_unkept(self, entries: list[_Entry], error: StorageError) -> None:
        if self._when_full == "answer":
            if self.lost == 0:
                _log.error("Model calls are answered without a record: %s", error)
            self.lost += len(entries)


def _settle(entry: _Entry, error: Exception | None) -> None:
    if entry.written.done():  # the caller went away
        return
    if error is None:
        entry.written.set_result(None)
    else:
        entry.written.set_exception(_as_call_error(error, entry.spans[0]))


def _as_call_error(error: Exception, span: Span) -> CallError:
    where = f"rollout '{span.rollout_id}', attempt '{span.attempt_id}'"
    if isinstance(error, NotFoundError):
        failure = CallError(
            f"The call was not recorded, so its answer is withheld: {error} ({where})",
            status=404,
            reason="rollout_not_found",
        )
    else:
        text = str(error) if isinstance(error, AgentLightningError) else f"{type(error).__name__}: {error}"
        failure = CallError(
            f"The call could not be recorded, so its answer is withheld: {text} ({where})",
            status=507,
            reason="record_failed",
            is_retryable=False,
        )
    failure.__cause__ = error
    return failure
