"""A circuit breaker: a target that keeps failing is left alone for a while. Pure: knows neither calls nor sockets.

Closed, calls pass and their outcomes are counted over a sliding window. Open, none passes until the cool-down is over.
Half-open, a few probes pass: one that fails opens it again, enough that succeed close it. (Nygard, Release It!, 2007.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec

State = Literal["closed", "open", "half_open"]

_BUCKETS = 10


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a target counts as broken."""

    failure_ratio: float = 0.5
    """Share of the calls in the window that has to fail."""
    min_calls: int = 20
    """Fewer outcomes than this in the window never open it; 0 switches the breaker off."""
    window_s: float = 30.0
    cool_down_s: float = 10.0
    """How long it stays open before probes may pass."""
    probes: int = 1
    """Calls at once that try whether the target is back, and how many of them have to succeed."""


class Breaker:
    """One target's breaker."""

    def __init__(self, policy: BreakerPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._slice_s = policy.window_s / _BUCKETS
        self.opened = 0
        """How often it has opened."""
        self.last_failure = ""
        self._period = (
            0  # a new one begins whenever it opens or closes; outcomes of calls from an older one do not count
        )
        self._open_until: float | None = None
        self._probing = 0
        self._probed_well = 0
        self._clear()

    @property
    def state(self) -> State:
        """As it is now."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half_open"

    def retry_after_s(self) -> float:
        """How long it will refuse calls; 0 when it would let one pass."""
        if self._open_until is None:
            return 0.0
        left_s = self._open_until - self._clock()
        if left_s > 0:
            return left_s
        return self._slice_s if self._probing >= self._policy.probes else 0.0

    def enter(self) -> int | None:
        """A ticket for a call, to hand to `succeed`, `fail` or `forget`; `None` refuses it."""
        if self._open_until is not None:
            if self.retry_after_s() > 0:
                return None
            self._probing += 1
        return self._period

    def succeed(self, ticket: int) -> None:
        """The call was answered, be it with a refusal."""
        if ticket != self._period:
            return
        if self._open_until is None:
            self._advance()
            self._good[self._slice % _BUCKETS] += 1
            return
        self._probing -= 1
        self._probed_well += 1
        if self._probed_well >= self._policy.probes:
            self._period += 1
            self._open_until = None
            self._clear()

    def fail(self, ticket: int, why: str) -> None:
        """The target failed."""
        self.last_failure = why
        if ticket != self._period:
            return
        if self._open_until is not None:
            self._open()
            return
        self._advance()
        self._bad[self._slice % _BUCKETS] += 1
        bad = sum(self._bad)
        total = bad + sum(self._good)
        if self._policy.min_calls and total >= self._policy.min_calls and bad >= self._policy.failure_ratio * total:
            self._open()

    def forget(self, ticket: int) -> None:
        """The call ended in a way that says nothing about the target, such as a client that left."""
        if ticket == self._period and self._open_until is not None:
            self._probing -= 1

    def _open(self) -> None:
        self.opened += 1
        self._period += 1
        self._probing = self._probed_well = 0
        self._open_until = self._clock() + self._policy.cool_down_s

    def _clear(self) -> None:
        self._good = [0] * _BUCKETS
        self._bad = [0] * _BUCKETS
        self._slice = int(self._clock() / self._slice_s)

    def _advance(self) -> None:
        now = int(self._clock() / self._slice_s)
        if now == self._slice:
            return
        for passed in range(self._slice + 1, min(now, self._slice + _BUCKETS) + 1):
            self._good[passed % _BUCKETS] = self._bad[passed % _BUCKETS] = 0
        self._slice = now
