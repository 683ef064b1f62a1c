"""Waiting: the gate that holds calls while weights change, and the limit of calls in flight per upstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from agentlightning.gateway.errors import CallError


class PauseGate:
    """Holds new calls while closed."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    @property
    def is_paused(self) -> bool:
        """Whether calls are held."""
        return not self._open.is_set()

    def pause(self) -> None:
        """Hold calls from now on."""
        self._open.clear()

    def resume(self) -> None:
        """Let all held calls go on."""
        self._open.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when open.

        Raises:
            CallError: 503 after `timeout_s`.
        """
        if self._open.is_set():
            return
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._open.wait()
        except TimeoutError as error:
            raise CallError(
                f"The gateway has been paused for longer than {timeout_s:g} s.",
                status=503,
                reason="gateway_paused",
                retry_after_s=5,
            ) from error
        finally:
            self.waiting -= 1


class ConcurrencyLimit:
    """At most `limit` calls in flight; the others queue, first come first served."""

    def __init__(self, limit: int, queue_timeout_s: float) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._limit = limit
        self._queue_timeout_s = queue_timeout_s
        self.waiting = 0

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """Hold a slot for the block.

        Raises:
            CallError: 503 when none became free in time.
        """
        if self._slots.locked():
            await self._queue()
        else:
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    async def _queue(self) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise CallError(
                f"No free place within {self._queue_timeout_s:g} s: {self._limit} calls are in flight and "
                f"{self.waiting - 1} others wait.",
                status=503,
                reason="overloaded",
                retry_after_s=1,
            ) from error
        finally:
            self.waiting -= 1
