"""One account: its caps, what it has used, and what is reserved. Pure, but for the ledger it may write to."""

from __future__ import annotations

import asyncio

import msgspec

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.ledger import Ledger, Spent
from agentlightning.gateway.windows import Entry, SlidingWindow
from agentlightning.kit.errors import ConfigError


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """The most that an account may use; `None` is no cap.

    Raises:
        ConfigError: One is below 0.
    """

    max_calls: int | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_total_tokens: int | None = None
    max_usd: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name, value in msgspec.structs.asdict(self).items():
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} cannot be {value}.")


class Account:
    """What one key, rollout or attempt has used.

    Args:
        told: Its name in messages, as the beginning of a sentence.
        caps: Its caps.
        name: Its name in the ledger.
        ledger: Where it is kept.
    """

    def __init__(self, told: str, caps: Caps, *, name: str = "", ledger: Ledger | None = None) -> None:
        self.caps = caps
        self._told = told
        self._name = name
        self._ledger = ledger
        self._used = Spent()
        self._reserved = Spent()
        self._requests = SlidingWindow() if caps.requests_per_minute is not None else None
        self._tokens = SlidingWindow() if caps.tokens_per_minute is not None else None

    def used(self) -> Spent:
        """What was used, reservations not included."""
        return self._used if self._ledger is None else self._ledger.spent(self._name)

    def refusal(self) -> CallError | None:
        """Why no further call is admitted; `None` when one is."""
        used, reserved, caps = self.used(), self._reserved, self.caps
        amounts = (
            ("max_calls", caps.max_calls, used.calls, reserved.calls, "calls"),
            ("max_input_tokens", caps.max_input_tokens, used.input_tokens, reserved.input_tokens, "input tokens"),
            ("max_output_tokens", caps.max_output_tokens, used.output_tokens, reserved.output_tokens, "output tokens"),
            ("max_total_tokens", caps.max_total_tokens, _tokens(used), _tokens(reserved), "tokens"),
            ("max_usd", caps.max_usd, used.usd, reserved.usd, "USD"),
        )
        for cap, limit, now, soon, unit in amounts:
            if limit is not None and now + soon >= limit:
                return self._exhausted(cap, limit, now, soon, unit)
        return self._too_fast()

    def reserve(self, amount: Spent) -> Entry | None:
        """Count a call that begins; returns what `settle` needs."""
        self._reserved.add(amount)
        if self._requests is not None:
            self._requests.add(1)
        return self._tokens.add(_tokens(amount)) if self._tokens is not None else None

    def settle(self, reserved: Spent, used: Spent, entry: Entry | None) -> asyncio.Future[None] | None:
        """Count what it has used instead; returns what to wait for until that is on disk."""
        self._reserved.subtract(reserved)
        if self._tokens is not None and entry is not None:
            self._tokens.correct(entry, _tokens(used) - _tokens(reserved))
        if self._ledger is not None:
            return self._ledger.add(self._name, used)
        self._used.add(used)
        return None

    def _exhausted(self, cap: str, limit: float, used: float, reserved: float, unit: str) -> CallError:
        message = f"{self._told} has used {_number(used)} of {_number(limit)} {unit} ({cap})"
        if used >= limit:
            return CallError(
                f"{message}.",
                status=429,
                kind="insufficient_quota",
                param=cap,
                reason="insufficient_quota",
                is_retryable=False,
            )
        return CallError(
            f"{message}, and calls under way have reserved {_number(reserved)} more. Try again when they have ended.",
            status=429,
            kind="insufficient_quota",
            param=cap,
            reason="quota_reserved",
            retry_after_s=1,
        )

    def _too_fast(self) -> CallError | None:
        rates = (
            ("requests_per_minute", self.caps.requests_per_minute, self._requests, "requests"),
            ("tokens_per_minute", self.caps.tokens_per_minute, self._tokens, "tokens"),
        )
        for cap, limit, window, unit in rates:
            if limit is not None and window is not None and window.total() >= limit:
                return CallError(
                    f"{self._told} has used {_number(window.total())} of {_number(limit)} {unit} per minute ({cap}).",
                    status=429,
                    kind=unit,
                    param=cap,
                    reason="rate_limit_exceeded",
                    retry_after_s=window.frees_in_s(limit) if limit else 60.0,
                )
        return None


def _tokens(amount: Spent) -> int:
    return amount.input_tokens + amount.output_tokens


def _number(value: float) -> str:
    return f"{value:.10g}" if isinstance(value, int) else f"{value:.6g}"
