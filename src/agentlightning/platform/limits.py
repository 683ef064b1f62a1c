"""How often somebody may do something: a sliding window over the times of what was done.

In Redis one script decides and counts in one step, by Redis's own clock, so that several workers share a limit. While
Redis is away each worker counts for itself. What must not be unlocked by an outage (`is_lock`) is counted in both, and
after an outage, for the length of its window, both have to agree: a Redis that comes back may have forgotten.
Knows neither users nor requests.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Protocol

from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.cache import RedisLink

_MAX_KEYS = 100_000

# KEYS[1] the list; ARGV: limit, window in microseconds, name of this one. Answers: allowed, left, microseconds until
# the oldest one leaves the window.
_SCRIPT = """
local now = redis.call('TIME')
local t = now[1] * 1000000 + now[2]
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', t - window)
local count = redis.call('ZCARD', KEYS[1])
local allowed = 0
if count < limit then
  redis.call('ZADD', KEYS[1], t, ARGV[3])
  redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
  count = count + 1
  allowed = 1
end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local wait = window
if oldest[2] then wait = tonumber(oldest[2]) + window - t end
return {allowed, limit - count, wait}
"""


class TooManyError(AgentLightningError):
    """It was done too often."""

    code = "RATE_LIMITED"
    status = 429


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it is allowed, how often it is allowed still, and seconds until it is allowed more often."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    name: str
    """Of this one, for `undo`."""

    @property
    def headers(self) -> dict[str, str]:
        """`RateLimit-Limit`, `-Remaining`, `-Reset`, and `Retry-After` when it was refused."""
        reset = str(max(1, math.ceil(self.reset_s)))
        told = {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(max(0, self.remaining)),
            "RateLimit-Reset": reset,
        }
        return told if self.allowed else {**told, "Retry-After": reset}


class Limiter(Protocol):
    """Counts by key."""

    async def hit(self, key: str, limit: int, window_s: float, *, is_lock: bool = False) -> Verdict:
        """Count one, if it is one of at most `limit` within `window_s`; what is refused is not counted.

        Args:
            key: Of what is counted.
            limit: Most of them.
            window_s: Within so many seconds.
            is_lock: An outage must not let more through.
        """
        ...

    async def undo(self, key: str, name: str) -> None:
        """Take one back."""
        ...

    async def forget(self, key: str) -> None:
        """Take all back."""
        ...


class MemoryLimiter:
    """In this process. The keys used least recently give way when there are too many."""

    def __init__(self, max_keys: int = _MAX_KEYS) -> None:
        self._times: OrderedDict[str, deque[tuple[float, str]]] = OrderedDict()
        self._max = max_keys

    async def hit(self, key: str, limit: int, window_s: float, *, is_lock: bool = False, name: str = "") -> Verdict:
        now = time.monotonic()
        times = self._times.setdefault(key, deque())
        self._times.move_to_end(key)
        if len(self._times) > self._max:
            self._times.popitem(last=False)
        while times and times[0][0] <= now - window_s:
            times.popleft()
        allowed, name = len(times) < limit, name or secrets.token_hex(8)
        if allowed:
            times.append((now, name))
        reset_s = times[0][0] + window_s - now if times else window_s
        return Verdict(allowed, limit, limit - len(times), reset_s, name)

    async def undo(self, key: str, name: str) -> None:
        times = self._times.get(key)
        if times:
            self._times[key] = deque(entry for entry in times if entry[1] != name)

    async def forget(self, key: str) -> None:
        self._times.pop(key, None)


class RedisLimiter:
    """In Redis; in this process while that is away."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._script: Any = link.client.register_script(_SCRIPT)
        self._own = MemoryLimiter()

    async def hit(self, key: str, limit: int, window_s: float, *, is_lock: bool = False) -> Verdict:
        name = secrets.token_hex(8)
        own = await self._own.hit(key, limit, window_s, name=name) if is_lock else None
        if own is not None and not own.allowed and self._had_outage_within(window_s):
            return own
        arguments = [limit, round(window_s * 1e6), name]
        answered, found = await self._link.ask(lambda _: self._script(keys=[f"limit:{key}"], args=arguments))
        if not answered or found is None:
            return own or await self._own.hit(key, limit, window_s)
        allowed, remaining, wait = found
        if own is not None and not allowed:
            await self._own.undo(key, name)
        return Verdict(bool(allowed), limit, int(remaining), int(wait) / 1e6, name)

    def _had_outage_within(self, window_s: float) -> bool:
        return time.monotonic() - self._link.outage.seen_at < window_s

    async def undo(self, key: str, name: str) -> None:
        await self._own.undo(key, name)
        await self._link.ask(lambda client: client.zrem(f"limit:{key}", name))

    async def forget(self, key: str) -> None:
        await self._own.forget(key)
        await self._link.ask(lambda client: client.delete(f"limit:{key}"))
