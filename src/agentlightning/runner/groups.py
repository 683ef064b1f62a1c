"""Process groups that must not outlive their runner. A listener can watch them from outside the process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager

_groups: set[int] = set()
_listener: Callable[[int, bool], None] | None = None


def listen(listener: Callable[[int, bool], None] | None) -> None:
    """Be told of each group that begins (`True`) or ends (`False`)."""
    global _listener
    _listener = listener


@contextmanager
def guarded(group: int) -> Generator[None]:
    """The group lives during the block."""
    _groups.add(group)
    if _listener is not None:
        _listener(group, True)
    try:
        yield
    finally:
        _groups.discard(group)
        if _listener is not None:
            _listener(group, False)


def kill(group: int, number: signal.Signals) -> None:
    """Send a signal to all of a group; one that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; what has its number now is not ours
        os.killpg(group, number)


def kill_all() -> None:
    """End everything at once: the runner is about to die."""
    for group in tuple(_groups):
        kill(group, signal.SIGKILL)
