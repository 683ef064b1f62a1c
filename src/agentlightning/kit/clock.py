"""Time: Unix seconds, UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> float:
    """Unix seconds."""
    return time.time()


def iso(seconds: float) -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
