"""Amounts of the last minute. Pure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec

WINDOW_S = 60.0
_GRAIN_S = 0.25


class Entry(msgspec.Struct):
    """An amount and when it came; may be corrected later."""

    at: float
    amount: float


class SlidingWindow:
    """A sum over the last minute, kept in quarters of a second, so its size does not grow with the traffic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: deque[Entry] = deque()
        self._total = 0.0

    def total(self) -> float:
        """The sum."""
        oldest = self._clock() - WINDOW_S
        while self._entries and self._entries[0].at <= oldest:
            self._total -= self._entries.popleft().amount
        return self._total

    def add(self, amount: float) -> Entry:
        """Add an amount now; returns the entry it went into, for `correct`."""
        now = self._clock()
        last = self._entries[-1] if self._entries else None
        if last is None or now - last.at >= _GRAIN_S:
            last = Entry(now, 0.0)
            self._entries.append(last)
        last.amount += amount
        self._total += amount
        return last

    def correct(self, entry: Entry, difference: float) -> None:
        """Change what was added before; without effect once it has left the window."""
        if self._entries and entry.at >= self._entries[0].at:
            entry.amount += difference
            self._total += difference

    def frees_in_s(self, limit: float) -> float:
        """How long until the sum is below `limit` if nothing is added."""
        left, now = self.total(), self._clock()
        for entry in self._entries:
            if left < limit:
                return 0.0
            left -= entry.amount
            if left < limit:
                return max(0.0, entry.at + WINDOW_S - now)
        return 0.0
