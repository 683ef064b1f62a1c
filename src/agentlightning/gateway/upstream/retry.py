"""When a request to a model server is tried again, and after how long. Pure."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504, 529})


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential backoff with full jitter (Brooker 2015) that honours `Retry-After`."""

    max_attempts: int = 3
    """Tries in all."""
    base_s: float = 0.25
    max_s: float = 8.0
    max_retry_after_s: float = 30.0
    """A server that asks for more is not waited for; the client is told when to come back."""

    def delay_s(self, attempt: int, *, status: int | None, headers: Mapping[str, str]) -> float | None:
        """Seconds to wait before the next try, or `None` to give up.

        Args:
            attempt: Tries so far.
            status: HTTP status of the answer; `None` when there was none.
            headers: Headers of the answer.
        """
        if attempt >= self.max_attempts or (status is not None and status not in _TRANSIENT):
            return None
        asked_s = retry_after_s(headers)
        if asked_s is None:
            return random.uniform(0.0, min(self.max_s, self.base_s * 2 ** (attempt - 1)))
        return asked_s if asked_s <= self.max_retry_after_s else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The `Retry-After` header in seconds (it may be a number or a date), or `None`."""
    value = headers.get("Retry-After")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
