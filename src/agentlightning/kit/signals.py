"""Ctrl-C and SIGTERM as a wish that the program ends. Knows no program."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def stop_requests(on_stop: Callable[[int], None]) -> Generator[None]:
    """Within the block, Ctrl-C and SIGTERM call `on_stop` in the running loop; a second one ends the program at once.

    Outside the main thread, and on Windows, whose loops take no signal handlers, nothing changes.

    Args:
        on_stop: Gets the signal's number.
    """
    loop = asyncio.get_running_loop()
    is_possible = threading.current_thread() is threading.main_thread() and sys.platform != "win32"
    numbers = (signal.SIGINT, signal.SIGTERM) if is_possible else ()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        on_stop(number)

    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
