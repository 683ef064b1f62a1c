"""Identifiers: sortable by time, safe in URLs and file names."""

from __future__ import annotations

import hashlib
import os
import time
from functools import lru_cache

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_POOL_WORDS = 512

_pool: list[str] = []
"""Random words of 64 bits, 16 hex characters each. Asking the system for each word gives up the interpreter lock."""
os.register_at_fork(after_in_child=_pool.clear)


def _base36(number: int, width: int) -> str:
    digits = ""
    while number:
        number, rest = divmod(number, 36 * 36)
        digits = _PAIRS[rest] + digits
    return digits.lstrip("0").rjust(width, "0")


@lru_cache(maxsize=1)
def _time_part(milliseconds: int) -> str:
    return _base36(milliseconds, 9)


def _random_word() -> str:
    while True:
        try:
            return _pool.pop()  # never the same for two threads
        except IndexError:
            fresh = os.urandom(8 * _POOL_WORDS).hex()
            _pool.extend(fresh[start : start + 16] for start in range(0, len(fresh), 16))


def new_id(prefix: str) -> str:
    """Return `prefix-<time><random>`: 9 base-36 characters of milliseconds, then 60 random bits."""
    return f"{prefix}-{_time_part(time.time_ns() // 1_000_000)}{_base36(int(_random_word(), 16) >> 4, 12)}"


def id_from_key(prefix: str, key: str) -> str:
    """Return `prefix-<21 characters>`, always the same for the same key; 104 bits of its SHA-256."""
    return f"{prefix}-{_base36(int.from_bytes(hashlib.sha256(key.encode()).digest()[:13], 'big'), 21)}"


def new_name(prefix: str) -> str:
    """Return `prefix-<6 random characters>`: short enough to type, one of two billion."""
    return f"{prefix}-{_base36(int.from_bytes(os.urandom(4), 'big') >> 1, 6)}"


def new_trace_id() -> str:
    """32 hex characters, as OpenTelemetry formats a trace id."""
    return _random_word() + _random_word()


def new_span_id() -> str:
    """16 hex characters, as OpenTelemetry formats a span id."""
    return _random_word()
