"""Waiting: the gate that holds calls while weights change, and the places of calls in flight at a target."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

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


class Places:
    """Places for calls in flight. Who finds none queues, and the queue is fair among callers, not among calls.

    Each caller (a key, else a rollout) has a line of its own, first come first served; a free place goes to the lines
    in turn. So a caller with a thousand calls delays another one by one call, not by a thousand.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.waiting = 0
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._idle: asyncio.Event | None = None

    async def take(self, limit: int, caller: str, timeout_s: float) -> None:
        """Take a place; give it back with `leave`.

        Args:
            limit: Places there are.
            caller: Whose line to queue in.
            timeout_s: Longest wait.

        Raises:
            CallError: 503 when none became free in time.
        """
        if self.taken < limit and not self._lines:
            self.taken += 1
            return
        await self._queue(limit, caller, timeout_s)

    def leave(self) -> None:
        """Give a place back, to the next who waits."""
        while self._lines:
            caller, line = self._lines.popitem(last=False)
            heir = line.popleft()
            if line:
                self._lines[caller] = line
            if not heir.done():
                heir.set_result(None)
                return
        self.taken -= 1
        if self.taken == 0 and self._idle is not None:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no place is taken."""
        if self.taken == 0:
            return
        if self._idle is None:
            self._idle = asyncio.Event()
        self._idle.clear()
        await self._idle.wait()

    async def _queue(self, limit: int, caller: str, timeout_s: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(caller, deque()).append(turn)
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError as error:
            self._abandon(caller, turn)
            raise CallError(
                f"No free place within {timeout_s:g} s: {limit} calls are in flight and "
                f"{self.waiting - 1} others wait.",
                status=503,
                reason="overloaded",
                retry_after_s=1,
            ) from error
        except asyncio.CancelledError:
            self._abandon(caller, turn)
            raise
        finally:
            self.waiting -= 1

    def _abandon(self, caller: str, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self.leave()  # its turn came at the same moment
            return
        line = self._lines.get(caller)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[caller]
