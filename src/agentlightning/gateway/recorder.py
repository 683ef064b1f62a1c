"""Writes calls to the store before they are answered. Knows nothing of dialects or upstreams.

Spans that arrive while a write is under way leave together in the next one, so the batch grows with the load
and a lonely call waits for nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from agentlightning.gateway.errors import CallError
from agentlightning.kit.errors import AgentLightningError, NotFoundError
from agentlightning.schemas.span import Span

_log = logging.getLogger(__name__)


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
        is_durable: `record` returns when the spans are committed; `False`: when they are queued, and failures
        to
            write them are logged and counted in `lost`.
        write_timeout_s: How long one write may take.
    """

    def __init__(self, store: SpanStore, *, is_durable: bool = True, write_timeout_s: float = 30.0) -> None:
        self._store = store
        self._is_durable = is_durable
        self._write_timeout_s = write_timeout_s
        self._queue: list[_Entry] = []
        self._arrived = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.lost = 0

    def start(self) -> None:
        """Begin to write."""
        self._is_stopping = False
        self._writer = asyncio.create_task(self._run(), name="gateway-recorder")

    async def stop(self) -> None:
        """Write what is queued, then end."""
        self._is_stopping = True
        self._arrived.set()
        if self._writer is not None:
            await self._writer
            self._writer = None

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
        error = await self._try_write([span for entry in batch for span in entry.spans])
        if isinstance(error, NotFoundError | ValueError | TypeError) and len(batch) > 1:
            # One bad entry must not take the others down: a store refuses a batch as a whole.
            for entry in batch:
                await self._write([entry])
            return
        for entry in batch:
            if entry.written.done():  # the caller went away
                continue
            if error is None:
                entry.written.set_result(None)
            else:
                entry.written.set_exception(_as_call_error(error, entry.spans[0]))

    async def _try_write(self, spans: list[Span]) -> Exception | None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._store.add_many_spans(spans)
        except Exception as error:  # noqa: BLE001 - it becomes the answer of the calls in the batch
            return error
        return None


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
