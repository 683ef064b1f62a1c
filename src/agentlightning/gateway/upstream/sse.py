"""Cuts a byte stream into server-sent events. Knows nothing of models."""

from __future__ import annotations

import re

# A blank line ends an event; servers end lines with LF or CRLF.
_END = re.compile(rb"\r?\n\r?\n")


class EventTooLargeError(ValueError):
    """An event never ended."""


class SseReader:
    """Collects bytes and hands out complete events.

    Args:
        max_event_bytes: An event larger than that is not one of a model's answer.
    """

    def __init__(self, max_event_bytes: int = 32 << 20) -> None:
        self._buffer = b""
        self._max_event_bytes = max_event_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes; return the complete events, each with its terminating blank line.

        Raises:
            EventTooLargeError: The event under way exceeds the limit.
        """
        self._buffer += data
        events: list[bytes] = []
        start = 0
        for end in _END.finditer(self._buffer):
            events.append(self._buffer[start : end.end()])
            start = end.end()
        self._buffer = self._buffer[start:]
        if len(self._buffer) > self._max_event_bytes:
            raise EventTooLargeError(f"an event exceeds {self._max_event_bytes} bytes")
        return events

    @property
    def rest(self) -> bytes:
        """What followed the last complete event."""
        return self._buffer


def event_data(event: bytes) -> bytes:
    """The payload of an event; empty for comments (keep-alive pings)."""
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)
