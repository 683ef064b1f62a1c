"""A call, sampled as it shall be, to its answer: which targets may be asked, what it may use, what each is sent.

Knows neither pauses nor recording.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec

from agentlightning.gateway.budgets import Budgets, Offer, Reservation, Usage
from agentlightning.gateway.cache import CallCache
from agentlightning.gateway.call import Capture, UpstreamCall
from agentlightning.gateway.capture import StreamCapture
from agentlightning.gateway.dialects.base import Dialect
from agentlightning.gateway.dispatch import CallLimits, Dispatcher, Enquiry, Patience
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.routing import RoutingTable
from agentlightning.gateway.spans import FAILED_TARGETS, TARGET, UPSTREAM_RESPONSE_ID
from agentlightning.gateway.target import Target

T = TypeVar("T")

Emit = Callable[[bytes], Awaitable[None]]


class Ongoing(msgspec.Struct):
    """A call under way."""

    call: UpstreamCall
    partial: StreamCapture
    """What has been streamed so far."""
    request_bytes: int = 0
    is_recorded: bool = False
    has_emitted: bool = False
    """Something has been sent to the client."""
    spending: Sequence[asyncio.Future[None]] = ()
    """What to wait for until what it used is on disk."""


class Answering:
    """Gets calls answered."""

    def __init__(self, routes: RoutingTable, limits: CallLimits, cache: CallCache, budgets: Budgets | None) -> None:
        self._routes = routes
        self._limits = limits
        self._cache = cache
        self._budgets = budgets
        self._dispatcher = Dispatcher(limits)

    def check(self, call: UpstreamCall, refusal: CallError | None) -> None:
        """Look for a target.

        Raises:
            CallError: The model does not exist, or nobody there can read the call.
        """
        _able(self._routes.find(call.model).targets, call, refusal)

    async def answer(
        self, dialect: Dialect, ongoing: Ongoing, refusal: CallError | None, emit: Emit
    ) -> tuple[Capture, bytes]:
        """The answer of the first target that has one: what to record, and what is still to be sent.

        Raises:
            CallError: There is none.
        """
        call = ongoing.call
        body, replaced = call.body, call.replaced

        async def ask(target: Target, star: str | None, patience: Patience) -> Capture:
            nonlocal data
            call.body, call.replaced = body, replaced  # another target may have been asked before, with its parameters
            sent = target.request(call, star)
            if call.is_streamed:
                capture, data = await self._stream(dialect, ongoing, target, sent, patience, emit)
            else:
                answer = await self._cache.complete(target.upstream, sent)
                capture, data = answer.capture, dialect.encode(call, answer)
            if call.api not in ("openai", target.upstream.api):
                _rename(call, capture)
            return capture

        data = b""
        return await self.ask(ongoing, refusal, ask, _used), data

    async def ask(
        self,
        ongoing: Ongoing,
        refusal: CallError | None,
        ask: Callable[[Target, str | None, Patience], Awaitable[T]],
        used: Callable[[T], Usage | None],
    ) -> T:
        """The first good answer, within the caller's means.

        Args:
            ongoing: The call.
            refusal: Why it has no translation, if it has none.
            ask: Asks one target; its second argument is what the `*` of the route stands for.
            used: What an answer has used; `None`: nothing.

        Raises:
            CallError: A cap is reached, or what the last target raised.
        """
        call = ongoing.call
        # Found here and used at once: a route may be swapped whenever something is awaited.
        route = self._routes.find(call.model)
        rollout_id = call.scope.rollout_id if call.scope is not None else None
        targets = _able(route.order(self._routes.seed, rollout_id), call, refusal)
        star = route.star(call.model) if route.is_pattern else None
        reservation = None if self._budgets is None else self._reserve(self._budgets, ongoing, targets, star)
        caller = call.key or rollout_id or ""
        enquiry = Enquiry(caller, asyncio.get_running_loop().time() + self._limits.call_timeout_s)

        async def ask_one(target: Target, patience: Patience) -> T:
            call.deadline = patience.deadline
            try:
                return await ask(target, star, patience)
            finally:
                enquiry.has_emitted = ongoing.has_emitted

        try:
            answer = await self._dispatcher.ask(route, targets, enquiry, ask_one)
            if reservation is not None and enquiry.target is not None:
                offer = Offer(enquiry.target, enquiry.target.model_for(call.model, star))
                ongoing.spending = reservation.settle(used(answer), offer)
            return answer
        finally:
            if reservation is not None:  # without effect if it was settled
                reservation.release(may_have_worked=enquiry.may_have_worked or not ongoing.partial.is_empty)
            _name_targets(call, enquiry)

    def _reserve(
        self, budgets: Budgets, ongoing: Ongoing, targets: Sequence[Target], star: str | None
    ) -> Reservation | None:
        offers = [Offer(target, target.model_for(ongoing.call.model, star)) for target in targets]
        return budgets.reserve(ongoing.call, offers, ongoing.request_bytes)

    async def _stream(
        self,
        dialect: Dialect,
        ongoing: Ongoing,
        target: Target,
        sent: UpstreamCall,
        patience: Patience,
        emit: Emit,
    ) -> tuple[Capture, bytes]:
        partial = ongoing.partial = StreamCapture(dialect.kind)
        encoder = dialect.open_stream(ongoing.call)
        exact: Capture | None = None
        held: list[bytes] = []
        patience.expect_first(target.settings.first_token_timeout_s)
        async with aclosing(self._cache.stream(target.upstream, sent)) as pieces:
            async for piece in pieces:
                if piece.events:
                    patience.has_begun()
                for event in piece.events:
                    partial.feed(event)
                exact = piece.capture or exact
                data = encoder.encode(piece)
                if held or piece.finishes:
                    held.append(data)
                elif data:
                    ongoing.has_emitted = True
                    await emit(data)
        held.append(encoder.end())
        return exact or partial.capture(), b"".join(held)


def _able(targets: Sequence[Target], call: UpstreamCall, refusal: CallError | None) -> Sequence[Target]:
    """Those that can read the call: those that speak its dialect, and if it has a translation those that speak that.

    Raises:
        CallError: Why there is none.
    """
    able = [
        target
        for target in targets
        if target.upstream.api == call.api or (target.upstream.api == "openai" and refusal is None)
    ]
    if not able and refusal is not None:
        raise refusal
    return able or targets  # if none is able, the first says why


def _used(capture: Capture) -> Usage | None:
    if capture.from_cache:
        return None
    return Usage(
        input_tokens=capture.prompt_tokens,
        output_tokens=capture.completion_tokens,
        cached_tokens=capture.cached_tokens,
    )


def _name_targets(call: UpstreamCall, enquiry: Enquiry) -> None:
    if enquiry.asked:
        call.attributes[TARGET] = enquiry.asked[-1]
    if len(enquiry.asked) > 1:
        call.attributes[FAILED_TARGETS] = enquiry.asked[:-1]


def _rename(call: UpstreamCall, capture: Capture) -> None:
    """Record an answer under the id that a translated one has on the wire."""
    if capture.response_id and capture.response_id != call.call_id:
        call.attributes[UPSTREAM_RESPONSE_ID] = capture.response_id
    capture.response_id = call.call_id
