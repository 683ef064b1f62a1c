"""What is kept for a while: in Redis when there is one, else in this process. The database remains the truth.

A Redis that is gone does not fail anybody's request: reads find nothing, writes are dropped, the caller asks the
database, and `state` says so.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from agentlightning.kit.errors import ConfigError, MissingExtraError
from agentlightning.platform.outage import Outage

log = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT_S = 0.5
_AWAY_S = 1.0  # how long nobody waits for a Redis that did not answer
_MAX_ENTRIES = 100_000


class Cache(Protocol):
    """Bytes under names, each for so many seconds."""

    kind: str
    outage: Outage
    """Since when it has been away."""

    async def get(self, key: str) -> bytes | None:
        """What is kept, if anything is."""
        ...

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep `value` for `ttl_s` seconds; nothing when that is over already."""
        ...

    async def delete(self, *keys: str) -> None:
        """Forget."""
        ...

    async def state(self) -> str:
        """`"up"` or `"down"`."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class MemoryCache:
    """In this process; the oldest entries give way when there are too many."""

    kind = "memory"

    def __init__(self, max_entries: int = _MAX_ENTRIES) -> None:
        self.outage = Outage()
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._max = max_entries

    async def get(self, key: str) -> bytes | None:
        entry = self._kept.get(key)
        if entry is None:
            return None
        if entry[0] <= time.monotonic():
            del self._kept[key]
            return None
        return entry[1]

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        self._kept.pop(key, None)
        if ttl_s <= 0:
            return
        self._kept[key] = (time.monotonic() + ttl_s, value)
        if len(self._kept) > self._max:
            self._kept.popitem(last=False)

    async def delete(self, *keys: str) -> None:
        for key in keys:
            self._kept.pop(key, None)

    async def state(self) -> str:
        return "up"

    async def close(self) -> None:
        self._kept.clear()


class RedisLink:
    """One Redis; after a failure it is left alone for a moment.

    Raises:
        MissingExtraError: The package `redis` is not installed.
        ConfigError: The URL is none of a Redis; it is not repeated.
    """

    def __init__(self, url: str) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise MissingExtraError("Redis needs a package.", hint="pip install 'agentlightning[platform]'") from error
        retry = Retry(NoBackoff(), 1)  # a connection that went stale; the package's ten tries take seconds
        try:
            self.client: Any = Redis.from_url(
                url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=retry
            )
        except ValueError:  # its words may quote a part of the password
            raise ConfigError(
                "REDIS_URL is no URL of a Redis server.",
                hint="Write redis://user:password@host:6379/0; in a password @ is %40, / is %2F, # is %23.",
            ) from None
        self.outage = Outage()
        self._away_until = 0.0

    @property
    def is_away(self) -> bool:
        """Whether it failed a moment ago."""
        return time.monotonic() < self._away_until

    async def ask(self, what: Callable[[Any], Awaitable[T]]) -> tuple[bool, T | None]:
        """Whether it answered, and what."""
        from redis.exceptions import RedisError

        if self.is_away:
            return False, None
        if self.outage.since is not None:
            self._away_until = time.monotonic() + _AWAY_S  # one tries, the others do not wait for it
        try:
            answered = await what(self.client)
        except (RedisError, OSError, TimeoutError) as error:
            if self.outage.begin(type(error).__name__):
                log.warning("Redis does not answer (%s); going on without it", type(error).__name__)
            self._away_until = time.monotonic() + _AWAY_S
            return False, None
        self._away_until = 0.0
        gone_s = self.outage.end()
        if gone_s is not None:
            log.warning("Redis answers again after %.1f s", gone_s)
        return True, answered

    async def close(self) -> None:
        """Let go of the connections."""
        await self.client.aclose()


class RedisCache:
    """In Redis, shared by all workers."""

    kind = "redis"

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self.outage = link.outage

    async def get(self, key: str) -> bytes | None:
        return (await self._link.ask(lambda client: client.get(key)))[1]

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        milliseconds = round(1000 * ttl_s)
        if milliseconds > 0:
            await self._link.ask(lambda client: client.set(key, value, px=milliseconds))

    async def delete(self, *keys: str) -> None:
        if keys:
            await self._link.ask(lambda client: client.delete(*keys))

    async def state(self) -> str:
        answered, _ = await self._link.ask(lambda client: client.ping())
        return "up" if answered else "down"

    async def close(self) -> None:
        await self._link.close()
