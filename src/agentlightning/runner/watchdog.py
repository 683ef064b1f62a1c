"""Notices that an agent blocks the event loop that all rollouts of the process share, and says where.

An asynchronous agent that calls something blocking stops every other rollout, the heartbeat and the time limits; only
another thread can tell. Knows nothing of stores.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)

WARN_AFTER_S = 5.0
_TICK_S = 0.25


class LoopWatchdog:
    """Watches the loop it is started in.

    Args:
        is_too_long: Whether being blocked for so many seconds is too long now; called from another thread.
        on_stuck: Called from another thread, once, when it is; gets the blocked task and its stack.
    """

    def __init__(
        self, is_too_long: Callable[[float], bool], on_stuck: Callable[[asyncio.Task[object] | None, str], None]
    ) -> None:
        self._is_too_long = is_too_long
        self._on_stuck = on_stuck
        self._ticked = time.monotonic()
        self._ended = threading.Event()
        self._ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()
        self._ticker = loop.create_task(self._tick(), name="agentlightning-watchdog")
        watched = threading.get_ident()
        threading.Thread(target=self._watch, args=(loop, watched), name="agentlightning-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        if self._ticker is not None:
            self._ticker.cancel()

    async def _tick(self) -> None:
        while True:
            self._ticked = time.monotonic()
            await asyncio.sleep(_TICK_S)

    def _watch(self, loop: asyncio.AbstractEventLoop, watched: int) -> None:
        warned = False
        while not self._ended.wait(_TICK_S):
            blocked_s = time.monotonic() - self._ticked
            too_long = self._is_too_long(blocked_s)
            if blocked_s < WARN_AFTER_S and not too_long:
                warned = False
                continue
            stack = _stack_of(watched)
            if not warned:
                warned = True
                logger.warning(
                    "The event loop is blocked for %.0f s, so all rollouts of this process wait. An asynchronous agent "
                    "must not call blocking functions; make it a plain function instead. It is here:\n%s",
                    blocked_s,
                    stack,
                )
            if too_long:
                self._on_stuck(asyncio.current_task(loop), stack)
                return


def _stack_of(thread: int) -> str:
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] - there is no other way
    return "".join(traceback.format_stack(frame)) if frame is not None else ""
