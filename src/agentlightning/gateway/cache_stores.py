"""Where cached answers are kept: in this process, or in Redis. Knows neither calls nor answers, only bytes.

No failure of a storage reaches a caller: a cache that is away is a cache that knows nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from agentlightning.kit.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from redis.asyncio import Redis

_log = logging.getLogger(__name__)

_OVERHEAD_BYTES = 200
"""Of an entry in memory, besides its value."""
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class CacheStore(Protocol):
    """Bytes by key, for a while."""

    errors: int
    """Times that it failed."""
    keeps_text_unmasked: bool
    """It keeps what was said outside this process, and nobody has said that it may although the gateway masks."""

    async def get(self, key: bytes) -> bytes | None:
        """The value, if it is there."""
        ...

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> bool:
        """Keep a value; whether it was kept."""
        ...

    def size(self) -> tuple[int | None, int | None]:
        """Entries and bytes; `None` where that is not known."""
        ...

    async def aclose(self) -> None:
        """Free connections."""
        ...


def open_cache(where: str) -> CacheStore:
    """`"memory"`, or Redis by its URL.

    Raises:
        ConfigError: Neither.
        MissingExtraError: Redis's client is not installed.
    """
    if where == "memory":
        return MemoryCache()
    if where.startswith(_REDIS_SCHEMES):
        return RedisCache(where)
    raise ConfigError(
        f"{where.split('://')[0]!r} is no place for a cache.",
        hint='Use "memory" or a URL like redis://127.0.0.1:6379/0.',
    )


class MemoryCache:
    """In this process, least recently used first to go.

    Args:
        max_bytes: Bound of all entries together.
    """

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        self.errors = 0
        self.keeps_text_unmasked = False
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    async def get(self, key: bytes) -> bytes | None:
        """The value, if it is there and not too old."""
        found = self._entries.get(key)
        if found is None:
            return None
        expires, value = found
        if time.monotonic() >= expires:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> bool:
        """Keep a value, at the expense of those not asked for the longest; `False` when it is larger than all room."""
        if _weight(value) > self._max_bytes:
            return False
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (time.monotonic() + ttl_s, value)
        self._bytes += _weight(value)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        return True

    def size(self) -> tuple[int | None, int | None]:
        """Entries and bytes."""
        return len(self._entries), self._bytes

    async def aclose(self) -> None:
        """Nothing to free."""

    def _drop(self, key: bytes) -> None:
        _, value = self._entries.pop(key)
        self._bytes -= _weight(value)


class RedisCache:
    """In Redis, for several processes and across restarts. Entries expire by themselves.

    Args:
        url: `redis://[[user]:password@]host[:port][/database]`, or `rediss://`, or `unix://`.
        prefix: Beginning of the keys: `<prefix><64 hexadecimal digits>`.
        timeout_s: Longest time that a call waits for Redis.
        pause_s: How long a Redis that failed is left alone.
        unmasked: It may hold answers as they are although the gateway masks what it keeps.

    Raises:
        ConfigError: The URL cannot be used.
        MissingExtraError: Redis's client is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "agl:cache:",
        timeout_s: float = 0.5,
        pause_s: float = 5.0,
        unmasked: bool = False,
    ) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError as error:
            raise MissingExtraError(
                "A cache in Redis needs its client.", hint="pip install 'agentlightning[redis]'"
            ) from error
        try:
            self._redis: Redis = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        except ValueError:  # its words may quote a part of the password
            raise ConfigError(
                "This is no URL of a Redis server.", hint="In a password @ is %40, / is %2F, # is %23."
            ) from None
        self.errors = 0
        self.keeps_text_unmasked = not unmasked
        self._prefix = prefix.encode()
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._away_until = 0.0
        self._is_away = False

    async def get(self, key: bytes) -> bytes | None:
        """The value, if it is there."""
        if self._is_left_alone():
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                value = await self._redis.get(self._prefix + key.hex().encode())
        except _redis_errors() as error:
            self._note_failure(error)
            return None
        self._note_success()
        return value if isinstance(value, bytes) else None

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> bool:
        """Keep a value for `ttl_s`; `False` when Redis is away."""
        if self._is_left_alone():
            return False
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.set(self._prefix + key.hex().encode(), value, px=max(1, int(ttl_s * 1000)))
        except _redis_errors() as error:
            self._note_failure(error)
            return False
        self._note_success()
        return True

    def size(self) -> tuple[int | None, int | None]:
        """Not known: others write too."""
        return None, None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _is_left_alone(self) -> bool:
        return time.monotonic() < self._away_until

    def _note_failure(self, error: Exception) -> None:
        self.errors += 1
        self._away_until = time.monotonic() + self._pause_s
        if not self._is_away:
            self._is_away = True
            _log.warning(
                "The response cache in Redis is away; calls go on without it: %s", error or type(error).__name__
            )

    def _note_success(self) -> None:
        if self._is_away:
            self._is_away = False
            _log.warning("The response cache in Redis is back.")


def _weight(value: bytes) -> int:
    return len(value) + _OVERHEAD_BYTES


def _redis_errors() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return (RedisError, OSError, TimeoutError)
