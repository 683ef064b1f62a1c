"""What the live views of runs share: events go to their handlers; a terminal shows the panel, other outputs do not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel


class LiveView(ABC):
    """Context manager that takes the events of a run; one of type `x` goes to the method `_on_x`, if there is one.

    Args:
        title: Of the panel.
        console: Where to show it.
    """

    def __init__(self, title: str, console: Console | None) -> None:
        self.console = console or Console()
        self.title = title
        self._live: Live | None = None

    @abstractmethod
    def __rich__(self) -> Panel:
        """How things stand."""

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(self, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event."""
        handler = getattr(self, f"_on_{event['type']}", None)
        if handler is not None:
            handler(event)
