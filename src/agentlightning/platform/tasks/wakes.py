"""Tells all processes of a platform that something has changed, without saying what: whoever hears it looks.

By PostgreSQL's notifications (sent by the transaction itself), by Redis, or within this process. A message that is lost
costs a delay, nothing else: everybody looks again after `look_again_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from agentlightning.kit.asyncs import cancelled
from agentlightning.platform.cache import RedisLink
from agentlightning.platform.database import Database, listen

log = logging.getLogger(__name__)

_CHANNEL = "agl:wake"
_BACK_S = 1.0


class Wakes:
    """One for each process.

    Args:
        database: Its notifications are listened to, if it has any.
        redis: Shared by the processes, if there is one.

    Attributes:
        look_again_s: After how long to look, told or not. Short where other processes cannot tell.
    """

    def __init__(self, database: Database, redis: RedisLink | None) -> None:
        self._database = database
        self._redis = redis
        self._waiting: set[asyncio.Event] = set()
        self._listening: asyncio.Task[None] | None = None
        self.look_again_s = 1.0 if database.is_sqlite and redis is None else 5.0

    def start(self) -> None:
        """Begin to listen."""
        if not self._database.is_sqlite:
            self._listening = asyncio.create_task(self._for_ever(self._hear_postgres))
        elif self._redis is not None:
            self._listening = asyncio.create_task(self._for_ever(self._hear_redis))

    async def stop(self) -> None:
        """Hear nothing more."""
        if self._listening is not None:
            await cancelled(self._listening)
            self._listening = None

    async def tell(self) -> None:
        """Something has changed, and is committed."""
        self._wake()
        if self._database.is_sqlite and self._redis is not None:
            await self._redis.ask(lambda client: client.publish(_CHANNEL, b""))

    @contextlib.contextmanager
    def ear(self) -> Any:
        """An event that is set with every change; the listener clears it."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            yield event
        finally:
            self._waiting.discard(event)

    async def wait(self, event: asyncio.Event, at_most_s: float | None = None) -> None:
        """Until the next change since `event` was cleared, or for `look_again_s`."""
        limit = self.look_again_s if at_most_s is None else min(at_most_s, self.look_again_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), max(limit, 0.01))

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()

    async def _for_ever(self, hear: Any) -> None:
        while True:
            try:
                await hear()
            except Exception as error:  # noqa: BLE001 - whatever it was: everybody looks by the clock until it is back
                log.warning("Notifications are away (%s); looking by the clock", type(error).__name__)
            self._wake()
            await asyncio.sleep(_BACK_S)

    async def _hear_postgres(self) -> None:
        async for _ in listen(self._database.url):
            self._wake()

    async def _hear_redis(self) -> None:
        assert self._redis is not None
        async with self._redis.client.pubsub() as channel:
            await channel.subscribe(_CHANNEL)
            while True:
                if await channel.get_message(ignore_subscribe_messages=True, timeout=30.0) is not None:
                    self._wake()
