"""Since when something has been away, as this process has noticed; and asking it without waiting for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Outage:
    """Begins with the first failure and ends with the first success after it.

    Attributes:
        since: Unix seconds of the first failure; `None` while all is well.
        reason: What failed, in a word.
        seen_at: `time.monotonic()` of the last failure ever; minus infinity without one.
    """

    since: float | None = None
    reason: str = ""
    seen_at: float = float("-inf")

    def begin(self, reason: str) -> bool:
        """Note a failure; whether it is the first."""
        self.seen_at = time.monotonic()
        if self.since is not None:
            return False
        self.since, self.reason = time.time(), reason
        return True

    def end(self) -> float | None:
        """Note that it works; seconds that it was away, if it was."""
        if self.since is None:
            return None
        gone_s = time.time() - self.since
        self.since, self.reason = None, ""
        return gone_s


class Probe:
    """Asks something that may hang, one question at a time, however many want to know."""

    def __init__(self, ask: Callable[[], Awaitable[object]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[object] | None = None

    async def problem(self, within_s: float) -> BaseException | None:
        """`None` when it answered; else what it failed with, or a `TimeoutError` while it is silent."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._once())
        asking = self._asking
        done, _ = await asyncio.wait({asking}, timeout=within_s)
        if not done:
            return TimeoutError(f"no answer within {within_s:g} s")
        return None if asking.cancelled() else asking.exception()

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking}, timeout=1.0)

    async def _once(self) -> object:
        return await self._ask()
