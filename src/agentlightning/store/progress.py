"""How far long work on a store is. Knows nothing of the work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called with the fraction done and what is being worked on."""


def silent(fraction: float, what: str) -> None:
    """Report to nobody."""
    del fraction, what


class Steps:
    """Rows as a fraction of those expected.

    Args:
        progress: Whom to tell.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._expected = 1
        self._done = 0

    def expect(self, rows: int) -> None:
        """So many rows are to be done in all."""
        self._expected = max(1, rows)

    def done(self, rows: int, what: str) -> None:
        """So many more are done."""
        self._done += rows
        self._progress(min(1.0, self._done / self._expected), what)

    def finish(self) -> None:
        """All is done."""
        self._progress(1.0, "done")
