"""Calls that all wait while a database's writer is busy, and so are done together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any


async def while_busy(write: Callable[[Callable[[Any], None]], Awaitable[Any]], *calls: Awaitable[Any]) -> list[Any]:
    """Results, or errors, of `calls`, which are made while `write` holds the writer."""
    entered, leave = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        entered.set()
        assert leave.wait(10)

    holding = asyncio.ensure_future(write(hold))
    assert await asyncio.to_thread(entered.wait, 10)
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0.05)  # all of them reach the queue
    leave.set()
    await holding
    return await asyncio.gather(*waiting, return_exceptions=True)
