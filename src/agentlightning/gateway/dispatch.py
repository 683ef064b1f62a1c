"""Gets a call answered by one of a route's targets: places, time limits, circuit breakers, and who is asked next.

Knows neither dialects nor what an answer is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from agentlightning.gateway.errors import CallError, as_call_error, timed_out
from agentlightning.gateway.routing import Route
from agentlightning.gateway.target import FAULTS_OF_THE_SERVER, Target, fault_of

_log = logging.getLogger(__name__)

T = TypeVar("T")


class CallLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how many."""

    call_timeout_s: float = 600.0
    """Longest time for one answer, waiting for a place and other targets' failures included, pauses excluded."""
    pause_timeout_s: float = 900.0
    """Longest time a call is held by a pause."""
    queue_timeout_s: float = 300.0
    """Longest wait for a free place at the upstream."""
    max_in_flight: int = 1024
    """Calls at one upstream at the same time."""


class Patience:
    """How long one target may still take; the one who reads its answer says when it has begun."""

    def __init__(self, deadline: float, timeout_s: float) -> None:
        self.deadline = deadline
        """On the event loop's clock."""
        self._timeout = asyncio.timeout_at(deadline)
        self._timeout_s = timeout_s
        self._first_within_s: float | None = None

    def within(self) -> asyncio.Timeout:
        """The context that ends when patience does."""
        return self._timeout

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._timeout.expired()

    def expect_first(self, timeout_s: float | None) -> None:
        """From now on the first piece has to come within `timeout_s`."""
        if timeout_s is None:
            return
        when = asyncio.get_running_loop().time() + timeout_s
        if when < self.deadline:
            self._first_within_s = timeout_s
            self._timeout.reschedule(when)

    def has_begun(self) -> None:
        """The first piece is there."""
        if self._first_within_s is not None:
            self._first_within_s = None
            self._timeout.reschedule(self.deadline)

    def lost(self, name: str) -> CallError:
        """The error for a target that was too slow."""
        if self._first_within_s is not None:
            return timed_out(self._first_within_s, f"{name} did not begin to answer")
        return timed_out(self._timeout_s)


class Enquiry(msgspec.Struct):
    """One call on its way through the targets."""

    caller: str
    """Whose line it queues in."""
    deadline: float
    """On the event loop's clock."""
    has_emitted: bool = False
    """Something has been sent to the client, so no other target can be asked any more."""
    asked: list[str] = []
    """Names of the targets that were asked, in order."""
    target: Target | None = None
    """The last of them."""
    may_have_worked: bool = False
    """A target was given it and did not say that it failed: it may have worked on it, and ask to be paid."""


class Dispatcher:
    """Asks targets, one after the other."""

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits

    async def ask(
        self,
        route: Route,
        targets: Sequence[Target],
        enquiry: Enquiry,
        ask: Callable[[Target, Patience], Awaitable[T]],
    ) -> T:
        """The first good answer.

        Args:
            route: Says which errors lead on to the next target.
            targets: Who may be asked, in order.
            enquiry: Is brought up to date on the way.
            ask: Asks one.

        Raises:
            CallError: The last target's error; 503 when all are left alone because they have kept failing.
        """
        failure: CallError | None = None
        for target in targets:
            try:
                return await self._ask_one(target, enquiry, ask)
            except _ResignedError:
                continue
            except Exception as error:  # noqa: BLE001 - becomes a CallError
                failure = as_call_error(error)
                is_over = asyncio.get_running_loop().time() >= enquiry.deadline
                if enquiry.has_emitted or is_over or target is targets[-1] or not route.falls_back_on(failure):
                    raise failure from failure.__cause__
                level = logging.ERROR if failure.is_unexpected else logging.WARNING
                _log.log(level, "%s failed, the next target is asked: %s", target.name, failure, exc_info=level > 30)
        raise failure or _all_open(targets)

    async def _ask_one(self, target: Target, enquiry: Enquiry, ask: Callable[[Target, Patience], Awaitable[T]]) -> T:
        if target.is_retired or target.breaker.retry_after_s() > 0:
            raise _ResignedError
        patience = self._patience(target, enquiry)
        try:
            async with patience.within():
                limit = target.settings.max_in_flight or self._limits.max_in_flight
                await target.places.take(limit, enquiry.caller, self._limits.queue_timeout_s)
                try:
                    return await self._ask_in_place(target, enquiry, ask, patience)
                finally:
                    target.places.leave()
        except TimeoutError as error:
            raise patience.lost(target.name) from error

    def _patience(self, target: Target, enquiry: Enquiry) -> Patience:
        timeout_s = target.settings.timeout_s
        if timeout_s is not None:
            own = asyncio.get_running_loop().time() + timeout_s
            if own < enquiry.deadline:
                return Patience(own, timeout_s)
        return Patience(enquiry.deadline, self._limits.call_timeout_s)

    async def _ask_in_place(
        self, target: Target, enquiry: Enquiry, ask: Callable[[Target, Patience], Awaitable[T]], patience: Patience
    ) -> T:
        breaker = target.breaker
        ticket = breaker.enter()
        if ticket is None:  # it opened while the call queued
            raise _ResignedError
        enquiry.asked.append(target.name)
        enquiry.target = target
        target.calls += 1
        try:
            answer = await ask(target, patience)
        except asyncio.CancelledError:
            # Either the client left, which says nothing about the target, or its time is over, which does.
            enquiry.may_have_worked = True
            if patience.is_over:
                target.failures += 1
                breaker.fail(ticket, patience.lost(target.name).message)
            else:
                breaker.forget(ticket)
            raise
        except Exception as error:  # noqa: BLE001 - becomes a CallError
            failure = as_call_error(error)
            fault = fault_of(failure)
            if fault in FAULTS_OF_THE_SERVER:
                target.failures += 1
                breaker.fail(ticket, failure.message)
            else:
                breaker.succeed(ticket)
            enquiry.may_have_worked = enquiry.may_have_worked or fault == "timeout"
            raise failure from failure.__cause__
        breaker.succeed(ticket)
        return answer


class _ResignedError(Exception):
    """This target is not asked."""


def _all_open(targets: Sequence[Target]) -> CallError:
    wait_s = min((target.breaker.retry_after_s() for target in targets), default=1.0)
    told = "; ".join(f"{target.name}: {target.breaker.last_failure}" for target in targets)
    return CallError(
        f"No target takes calls at the moment, they kept failing. {told}"[:1000],
        status=503,
        reason="circuit_open",
        retry_after_s=max(1.0, wait_s),
    )
