"""The one bridge from synchronous callers to async code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_sync(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result, also from inside a running loop (a notebook).

    Raises:
        BaseException: Whatever the coroutine raises.
    """
    if not _is_loop_running():
        return asyncio.run(main)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(asyncio.run(main))
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=target, name="agl-bridge", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
