"""One model call from arrival to recorded answer. Knows nothing of HTTP: it is given bytes and a way to send some."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol, TypeVar

import msgspec

from agentlightning.gateway.cache import CallCache, NoCache
from agentlightning.gateway.call import CallScope, Capture, UpstreamCall
from agentlightning.gateway.capture import MODE_UNKNOWN, StreamCapture
from agentlightning.gateway.dialects.base import Dialect, ParsedCall
from agentlightning.gateway.dialects.openai import parse_json_object
from agentlightning.gateway.errors import CallError, ClientGoneError, as_call_error, invalid, timed_out
from agentlightning.gateway.history import SpanReader, put_before
from agentlightning.gateway.limits import ConcurrencyLimit, PauseGate
from agentlightning.gateway.meter import GatewayStats, Meter
from agentlightning.gateway.recorder import Recorder, SpanStore
from agentlightning.gateway.routing import RoutingTable
from agentlightning.gateway.sampling import SamplingPolicy
from agentlightning.gateway.spans import API, UPSTREAM_RESPONSE_ID, SpanMaker
from agentlightning.gateway.spooling import is_outage
from agentlightning.gateway.upstream.base import Upstream

_log = logging.getLogger(__name__)
_REMEMBERED_MODES = 65_536
_MODE_TIMEOUT_S = 2.0

_T = TypeVar("_T")

Emit = Callable[[bytes], Awaitable[None]]


class CallStore(SpanStore, SpanReader, Protocol):
    """The part of `LightningStore` that calls need."""


class Reply(msgspec.Struct):
    """What remains to be sent once the call is recorded: the whole answer, or the end of a streamed one."""

    data: bytes
    is_streamed: bool


class _Ongoing(msgspec.Struct):
    call: UpstreamCall
    partial: StreamCapture
    is_recorded: bool = False


class CallLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how many."""

    call_timeout_s: float = 600.0
    """Longest time for one answer, waiting for a place included, pauses excluded."""
    pause_timeout_s: float = 900.0
    """Longest time a call is held by a pause."""
    queue_timeout_s: float = 300.0
    """Longest wait for a free place at the upstream."""
    max_in_flight: int = 1024
    """Calls at one upstream at the same time."""


class CallService:
    """Routes, samples, limits, answers and records calls."""

    def __init__(
        self,
        *,
        store: CallStore,
        routes: RoutingTable,
        recorder: Recorder,
        sampling: SamplingPolicy,
        limits: CallLimits,
        cache: CallCache | None = None,
        spans: SpanMaker | None = None,
    ) -> None:
        self.gate = PauseGate()
        self.meter = Meter()
        self._store = store
        self._routes = routes
        self._recorder = recorder
        self._sampling = sampling
        self._limits = limits
        self._cache = cache or NoCache()
        self._spans = spans or SpanMaker()
        self._slots: dict[int, ConcurrencyLimit] = {}
        self._modes: OrderedDict[str, str | None] = OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()

    def stats(self) -> GatewayStats:
        """The counters as they are now."""
        waiting = self.gate.waiting + sum(limit.waiting for limit in self._slots.values())
        recording = self._recorder.stats()
        return self.meter.snapshot(waiting=waiting, paused=self.gate.is_paused, recording=recording)

    async def drain(self) -> None:
        """Return when no call is in flight; calls held by a pause do not count."""
        await self._idle.wait()

    async def handle(
        self,
        dialect: Dialect,
        raw: bytes,
        scope: CallScope | None,
        emit: Emit,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Answer one call and commit its record; cancelling it cancels the generation.

        Args:
            dialect: What the client speaks.
            raw: The request body.
            scope: The rollout and attempt it belongs to, if its URL says so.
            emit: Sends a piece of a streamed answer; awaited, so a slow client slows the upstream down.
            headers: The request headers that the dialect asks for.

        Raises:
            CallError: The call failed; it is recorded as failed.
        """
        call = _new_call(dialect, scope, headers)
        ongoing = _Ongoing(call, StreamCapture(dialect.kind))
        try:
            parsed = _read(call, dialect, raw)
            if parsed.continues is not None:
                await put_before(call, parsed.continues, self._store)
            await self.gate.wait(self._limits.pause_timeout_s)
            async with self._in_flight():
                return await self._answer(dialect, ongoing, parsed.refusal, emit)
        except asyncio.CancelledError:
            self._keep_failure(ongoing, ClientGoneError())
            raise
        except Exception as error:  # noqa: BLE001 - every failure becomes the answer of the call
            failure = as_call_error(error)
            if failure.is_unexpected:
                _log.exception("A model call failed unexpectedly")
            await self._record_failure(ongoing, failure)
            raise failure from failure.__cause__

    async def count_tokens(self, dialect: Dialect, raw: bytes, headers: dict[str, str] | None = None) -> int:
        """The number of tokens of a call's prompt; nothing is recorded.

        Raises:
            CallError: The request or its model is wrong, or the upstream cannot count.
        """
        call = _new_call(dialect, None, headers)
        parsed = _read(call, dialect, raw)
        upstream = self._upstream_for(call, parsed.refusal)
        return await self._ask(upstream, lambda: upstream.count_tokens(call))

    async def embed(self, raw: bytes) -> bytes:
        """Answer an embeddings request with the upstream's own bytes; nothing is recorded.

        Raises:
            CallError: The request or its model is wrong, or the upstream makes no embeddings.
        """
        body = parse_json_object(raw)
        for name in ("model", "input"):
            if not body.get(name):
                raise invalid(f"You must provide the parameter '{name}'.", name, "missing_required_parameter")
        upstream = self._routes.resolve(str(body["model"]))
        return await self._ask(upstream, lambda: upstream.embed(body))

    async def _ask(self, upstream: Upstream, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask for something that is not recorded, within the limits of calls."""
        try:
            await self.gate.wait(self._limits.pause_timeout_s)
            async with self._in_flight(), asyncio.timeout(self._limits.call_timeout_s), self._slot(upstream):
                return await ask()
        except TimeoutError as error:
            raise timed_out(self._limits.call_timeout_s) from error
        except Exception as error:  # noqa: BLE001 - every failure becomes the answer of the call
            failure = as_call_error(error)
            if failure.is_unexpected:
                _log.exception("A request failed unexpectedly")
            raise failure from failure.__cause__

    def _upstream_for(self, call: UpstreamCall, refusal: CallError | None) -> Upstream:
        upstream = self._routes.resolve(call.model)
        if refusal is not None and upstream.api != call.api:
            raise refusal
        return upstream

    async def _answer(self, dialect: Dialect, ongoing: _Ongoing, refusal: CallError | None, emit: Emit) -> Reply:
        call = ongoing.call
        upstream = self._upstream_for(call, refusal)
        if call.scope is not None:
            call.mode = call.scope.mode or await self._mode_of(call)
            call.replaced = self._sampling.apply(call.body, call.scope, call.mode)
        try:
            async with asyncio.timeout(self._limits.call_timeout_s), self._slot(upstream):
                if call.is_streamed:
                    capture, data = await self._stream(dialect, ongoing, upstream, emit)
                else:
                    answer = await self._cache.complete(upstream, call)
                    capture, data = answer.capture, dialect.encode(call, answer)
        except TimeoutError as error:
            raise timed_out(self._limits.call_timeout_s) from error
        if call.api not in ("openai", upstream.api):
            _rename(call, capture)
        if call.scope is not None:
            ongoing.is_recorded = True
            await self._recorder.record(self._spans.of_answer(call, capture))
        self.meter.calls += 1
        self.meter.count_answer(capture, is_attributed=call.scope is not None)
        return Reply(data, call.is_streamed)

    async def _stream(
        self, dialect: Dialect, ongoing: _Ongoing, upstream: Upstream, emit: Emit
    ) -> tuple[Capture, bytes]:
        call, partial = ongoing.call, ongoing.partial
        encoder = dialect.open_stream(call)
        exact: Capture | None = None
        held: list[bytes] = []
        async with aclosing(self._cache.stream(upstream, call)) as pieces:
            async for piece in pieces:
                for event in piece.events:
                    partial.feed(event)
                exact = piece.capture or exact
                data = encoder.encode(piece)
                if held or piece.finishes:
                    held.append(data)
                elif data:
                    await emit(data)
        held.append(encoder.end())
        return exact or partial.capture(), b"".join(held)

    def _slot(self, upstream: Upstream) -> Any:
        limit = self._slots.get(id(upstream))
        if limit is None:
            limit = ConcurrencyLimit(self._limits.max_in_flight, self._limits.queue_timeout_s)
            self._slots[id(upstream)] = limit
        return limit.slot()

    @asynccontextmanager
    async def _in_flight(self) -> AsyncGenerator[None]:
        self.meter.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.meter.in_flight -= 1
            if self.meter.in_flight == 0:
                self._idle.set()

    async def _mode_of(self, call: UpstreamCall) -> str | None:
        assert call.scope is not None
        rollout_id = call.scope.rollout_id
        if not (self._cache.needs_mode or self._sampling.needs_mode(rollout_id)):
            return None
        if rollout_id not in self._modes:
            try:
                async with asyncio.timeout(_MODE_TIMEOUT_S):
                    rollout = await self._store.get_rollout_by_id(rollout_id)
            except Exception as error:
                if not is_outage(error):
                    raise
                # The call goes on as if its rollout had no mode; whoever trains shall know that.
                call.not_trainable_because = MODE_UNKNOWN
                return None
            self._modes[rollout_id] = getattr(rollout, "mode", None)
            if len(self._modes) > _REMEMBERED_MODES:
                self._modes.popitem(last=False)
        return self._modes[rollout_id]

    async def _record_failure(self, ongoing: _Ongoing, error: CallError) -> None:
        written = self._keep_failure(ongoing, error)
        if written is None:
            return
        try:
            await written
        except CallError as unwritten:
            # The client gets the first error, which is the cause; this one is counted by the recorder.
            _log.debug("The failure of a call could not be recorded: %s", unwritten)

    def _keep_failure(self, ongoing: _Ongoing, error: CallError) -> asyncio.Future[None] | None:
        self.meter.calls += 1
        self.meter.errors[error.reason or error.kind] += 1
        if ongoing.call.scope is None or ongoing.is_recorded:
            return None
        ongoing.is_recorded = True
        partial = None if ongoing.partial.is_empty else ongoing.partial.capture()
        return self._recorder.enqueue(self._spans.of_failure(ongoing.call, error, partial))


def _new_call(dialect: Dialect, scope: CallScope | None, headers: dict[str, str] | None) -> UpstreamCall:
    return UpstreamCall(
        call_id=dialect.new_id(),
        kind=dialect.kind,
        body={},
        scope=scope,
        started_at=time.time(),
        api=dialect.api,
        headers=headers or {},
        attributes={API: dialect.name},
    )


def _read(call: UpstreamCall, dialect: Dialect, raw: bytes) -> ParsedCall:
    parsed = dialect.parse(raw)
    call.body, call.native = parsed.body, parsed.native
    if parsed.attributes:
        call.attributes = call.attributes | parsed.attributes
    return parsed


def _rename(call: UpstreamCall, capture: Capture) -> None:
    """Record an answer under the id that a translated one has on the wire."""
    if capture.response_id and capture.response_id != call.call_id:
        call.attributes[UPSTREAM_RESPONSE_ID] = capture.response_id
    capture.response_id = call.call_id
