"""Who waits for what in this process, and how they are woken. Knows no database.

Waiters live in event loops, announcements come from the writer's thread; nobody polls.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Generator, Iterable
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Waiter:
    """One waiting task: for all of `pending` rollouts to end, or for work when there is none to wait for."""

    __slots__ = ("_event", "_loop", "pending")

    def __init__(self, pending: Iterable[str] = ()) -> None:
        self.pending = set(pending)
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            logger.debug("A waiter's event loop is closed.")

    async def wait(self, timeout_s: float | None) -> bool:
        """Wait to be woken; false when the time was up first."""
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Signals:
    """The waiters of one store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_rollout: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._for_work: list[Waiter] = []
        self._for_events: list[Waiter] = []

    def anyone_waiting(self) -> bool:
        """Whether there is any waiter."""
        return bool(self._by_rollout or self._for_work or self._for_events)

    @contextmanager
    def waiting_for_ends(self, rollout_ids: Iterable[str]) -> Generator[Waiter]:
        """A waiter that is woken when the last of the rollouts has ended."""
        waiter = Waiter(rollout_ids)
        ids = tuple(waiter.pending)
        with self._lock:
            for rollout_id in ids:
                self._by_rollout[rollout_id].add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                for rollout_id in ids:
                    waiters = self._by_rollout.get(rollout_id)
                    if waiters is not None:
                        waiters.discard(waiter)
                        if not waiters:
                            del self._by_rollout[rollout_id]

    @contextmanager
    def waiting_for_work(self) -> Generator[Waiter]:
        """A waiter that is woken when rollouts were queued."""
        with self._waiting(self._for_work) as waiter:
            yield waiter

    @contextmanager
    def waiting_for_events(self) -> Generator[Waiter]:
        """A waiter that is woken when events were recorded."""
        with self._waiting(self._for_events) as waiter:
            yield waiter

    @contextmanager
    def _waiting(self, waiters: list[Waiter]) -> Generator[Waiter]:
        waiter = Waiter()
        with self._lock:
            waiters.append(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                waiters.remove(waiter)

    def rollout_ended(self, rollout_id: str) -> None:
        """Tell those who wait for it."""
        with self._lock:
            for waiter in self._by_rollout.pop(rollout_id, ()):
                waiter.pending.discard(rollout_id)
                if not waiter.pending:
                    waiter.wake()

    def work_queued(self) -> None:
        """Tell those who wait for work."""
        with self._lock:
            for waiter in self._for_work:
                waiter.wake()

    def events_recorded(self) -> None:
        """Tell those who wait for events."""
        with self._lock:
            for waiter in self._for_events:
                waiter.wake()

    def wake_all(self) -> None:
        """Let everybody look again: another process has changed something, or the store closes."""
        with self._lock:
            ends = (w for waiters in self._by_rollout.values() for w in waiters)
            for waiter in {*self._for_work, *self._for_events, *ends}:
                waiter.wake()
