"""The way around a store that is away: keep calls in the spool, deliver them in order when it is back.

As long as anything waits in the spool, newer calls queue up behind it, so the order within an attempt is kept. Knows
neither calls nor upstreams.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal, ParamSpec, TypedDict, TypeVar

from agentlightning.gateway.spool import Entry, Spool
from agentlightning.kit.errors import AgentLightningError
from agentlightning.schemas.span import Span
from agentlightning.store.records import span_from_record

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_STOP_GRACE_S = 5.0
_SPANS_AT_ONCE = 256
_OUTAGE_STATUSES = (401, 403, 408, 429)

P = ParamSpec("P")
T = TypeVar("T")

Write = Callable[[list[Span]], Awaitable[Exception | None]]


class RecordingStats(TypedDict):
    """How recording goes. Counts are since the start of the gateway, spans unless they say otherwise."""

    to: Literal["store", "spool"]
    """Where records go now."""
    waiting: int
    """In the spool, not delivered yet."""
    waiting_bytes: int
    spooled: int
    delivered: int
    """From the spool to the store."""
    refused: int
    """Delivered from the spool, but not taken: kept in its `refused.log`."""
    lost: int
    """Calls whose record could not be kept anywhere."""
    outages: int
    outage_since: float | None
    """Unix seconds."""
    last_error: str | None


def is_outage(error: Exception) -> bool:
    """Whether the store is away, as opposed to refusing this record."""
    if isinstance(error, AgentLightningError):
        return error.status >= 500 or error.status in _OUTAGE_STATUSES
    # ValueError and TypeError come from records that cannot be written; whatever else happens is not their fault.
    return not isinstance(error, ValueError | TypeError)


class SpoolQueue:
    """The spool with the task that empties it.

    Args:
        spool: Where calls are kept.
        write: Tries to write spans to the store; returns the error, if there was one.
    """

    def __init__(self, spool: Spool, write: Write) -> None:
        self._spool = spool
        self._write = write
        # One thread at a time may use the spool, and nothing may enter between "it is empty" and "write directly".
        self._lock = asyncio.Lock()
        self._delivering: asyncio.Task[None] | None = None
        self._is_stopping = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self.is_active = False
        """Whether calls have to go through the spool."""
        self.spooled = self.delivered = self.refused = self.outages = 0
        self.outage_since: float | None = None
        self.last_error: str | None = None

    def open(self) -> None:
        """Take the folder; what an earlier process left is delivered first.

        Raises:
            StorageError: The folder cannot be used.
        """
        self._spool.open()
        if self._spool.spans:
            _log.warning("%d spans wait in the spool %s; delivering them.", self._spool.spans, self._spool.root)
            self._begin()

    async def close(self) -> None:
        """Try once more to deliver, then leave the rest on disk."""
        self._is_stopping.set()
        if self._delivering is not None:
            await asyncio.wait({self._delivering}, timeout=_STOP_GRACE_S)
        if self._delivering is not None:
            self._delivering.cancel()
            await asyncio.wait({self._delivering})
            self._delivering = None
        if self._spool.spans:
            _log.warning(
                "%d spans stay in the spool %s; the next start delivers them.", self._spool.spans, self._spool.root
            )
        self._spool.close()

    async def keep(self, entries: list[Entry], error: Exception | None = None) -> None:
        """Put calls on disk; `error` says why the store was given up.

        Raises:
            StorageError: The disk refused them, or the spool is full.
        """
        async with self._lock:
            if error is not None:
                self._note_outage(error)
            await self._on_disk(self._spool.append, entries)
            self.spooled += sum(map(len, entries))
            self._begin()

    async def wait_empty(self) -> None:
        """Return when nothing waits."""
        await self._is_empty.wait()

    @property
    def waiting(self) -> tuple[int, int]:
        """Spans and bytes that are not delivered yet."""
        return self._spool.spans, self._spool.bytes

    async def _on_disk(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `act` on a thread, to its end even when the caller is cancelled: it must not overlap with the next."""
        acting = asyncio.ensure_future(asyncio.to_thread(act, *args, **kwargs))
        try:
            return await asyncio.shield(acting)
        except asyncio.CancelledError:
            await asyncio.wait({acting})
            raise

    def _note_outage(self, error: Exception) -> None:
        self.last_error = _text(error)
        if self.outage_since is None:
            self.outages += 1
            self.outage_since = time.time()
            _log.warning(
                "The store is away (%s). Calls go on; what they leave is kept in %s and delivered when it is back.",
                self.last_error,
                self._spool.root,
            )

    def _begin(self) -> None:
        self.is_active = True
        self._is_empty.clear()
        if self._delivering is None:
            self._delivering = asyncio.create_task(self._deliver_all(), name="gateway-spool")

    async def _deliver_all(self) -> None:
        pause_s = _FIRST_PAUSE_S
        before, began = self.delivered, time.monotonic()
        while not await self._is_done():
            if await self._deliver_some():
                pause_s = _FIRST_PAUSE_S
            else:
                await self._pause(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        _log.warning(
            "The store is back: %d spans from the spool were delivered, %.1f s after they began to wait.",
            self.delivered - before,
            time.monotonic() - began,
        )

    async def _pause(self, seconds: float) -> None:
        if self._is_stopping.is_set():
            await asyncio.sleep(_FIRST_PAUSE_S)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._is_stopping.wait()
        except TimeoutError:
            return

    async def _is_done(self) -> bool:
        async with self._lock:
            if self._spool.spans:
                return False
            self.is_active = False
            self.outage_since = self.last_error = None
            self._delivering = None
            self._is_empty.set()
            return True

    async def _deliver_some(self) -> bool:
        """Deliver the oldest entries; `False` when the store does not take them now."""
        try:
            async with self._lock:
                entries = await self._on_disk(self._spool.head, _SPANS_AT_ONCE)
            done = await self._deliver(entries)
            async with self._lock:
                await self._on_disk(self._spool.drop, done)
        except AgentLightningError as error:
            self.last_error = _text(error)
            _log.error("Delivering from the spool failed: %s", error)
            return False
        return done == len(entries)

    async def _deliver(self, entries: list[Entry]) -> int:
        """How many entries are done with, from the first on."""
        error = await self._write([span_from_record(record) for entry in entries for record in entry])
        if error is None:
            self.delivered += sum(map(len, entries))
            return len(entries)
        if is_outage(error):
            self._note_outage(error)
            return 0
        if len(entries) == 1:
            await self._refuse(entries[0], error)
            return 1
        done = 0
        for entry in entries:  # the store refuses a batch as a whole: find the one it will not take
            if not await self._deliver([entry]):
                break
            done += 1
        return done

    async def _refuse(self, entry: Entry, error: Exception) -> None:
        async with self._lock:
            path = await self._on_disk(self._spool.refuse, entry, _text(error))
        if self.refused == 0:
            _log.error("The store will not take a call from the spool (%s); such calls are kept in %s.", error, path)
        self.refused += len(entry)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, AgentLightningError) else f"{type(error).__name__}: {error}".rstrip(": ")
