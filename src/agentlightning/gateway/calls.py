"""One model call from arrival to recorded answer. Knows nothing of HTTP: it is given bytes and a way to send some."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import msgspec

from agentlightning.gateway.answering import Answering, Emit, Ongoing
from agentlightning.gateway.budgets import Budgets, Usage
from agentlightning.gateway.cache import CallCache, NoCache
from agentlightning.gateway.call import CallScope, UpstreamCall
from agentlightning.gateway.capture import MODE_UNKNOWN, StreamCapture
from agentlightning.gateway.dialects.base import Dialect, ParsedCall
from agentlightning.gateway.dialects.openai import parse_json_object
from agentlightning.gateway.dispatch import CallLimits, Patience
from agentlightning.gateway.errors import CallError, ClientGoneError, as_call_error, invalid
from agentlightning.gateway.history import Conversations, SpanReader, put_before
from agentlightning.gateway.limits import PauseGate
from agentlightning.gateway.meter import GatewayStats, Meter
from agentlightning.gateway.recorder import Recorder, SpanStore
from agentlightning.gateway.routing import RoutingTable
from agentlightning.gateway.sampling import SamplingPolicy
from agentlightning.gateway.spans import API, KEY, SpanMaker
from agentlightning.gateway.spooling import is_outage
from agentlightning.gateway.target import Target
from agentlightning.gateway.upstream.connection import json_object

_log = logging.getLogger(__name__)
_REMEMBERED_MODES = 65_536
_MODE_TIMEOUT_S = 2.0

_T = TypeVar("_T")


class CallStore(SpanStore, SpanReader, Protocol):
    """The part of `LightningStore` that calls need."""


class Reply(msgspec.Struct):
    """What remains to be sent once the call is recorded: the whole answer, or the end of a streamed one."""

    data: bytes
    is_streamed: bool


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
        budgets: Budgets | None = None,
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
        self._budgets = budgets
        self._answering = Answering(routes, limits, self._cache, budgets)
        self._spans = spans or SpanMaker()
        self.meter.histories = self._spans.histories
        self._conversations = Conversations()
        self._modes: OrderedDict[str, str | None] = OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()

    def stats(self) -> GatewayStats:
        """The counters as they are now."""
        targets = self._routes.targets
        waiting = self.gate.waiting + sum(target.places.waiting for target in targets)
        return self.meter.snapshot(
            waiting=waiting,
            paused=self.gate.is_paused,
            recording=self._recorder.stats(),
            cache=self._cache.stats(),
            targets={target.name: target.breaker.state for target in targets},
        )

    def spending(self) -> dict[str, dict[str, float]] | None:
        """What keys and the gateway as a whole have used; `None` where nothing is capped."""
        return None if self._budgets is None else self._budgets.states()

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
        key: str | None = None,
    ) -> Reply:
        """Answer one call and commit its record; cancelling it cancels the generation.

        Args:
            dialect: What the client speaks.
            raw: The request body.
            scope: The rollout and attempt it belongs to, if its URL says so.
            emit: Sends a piece of a streamed answer; awaited, so a slow client slows the upstream down.
            headers: The request headers that the dialect asks for.
            key: Name of the gateway's key that it came with.

        Raises:
            CallError: The call failed; it is recorded as failed.
        """
        call = _new_call(dialect, scope, headers, key)
        ongoing = Ongoing(call, StreamCapture(dialect.kind), len(raw))
        try:
            parsed = _read(call, dialect, raw)
            if parsed.continues is not None:
                await put_before(call, parsed.continues, self._store, self._conversations)
            await self.gate.wait(self._limits.pause_timeout_s)
            with self._in_flight():
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

    async def count_tokens(
        self, dialect: Dialect, raw: bytes, headers: dict[str, str] | None = None, key: str | None = None
    ) -> int:
        """The number of tokens of a call's prompt; nothing is recorded.

        Raises:
            CallError: The request or its model is wrong, or the upstream cannot count.
        """
        call = _new_call(dialect, None, headers, key)
        parsed = _read(call, dialect, raw)

        async def ask(target: Target, star: str | None, patience: Patience) -> int:
            return await target.upstream.count_tokens(target.request(call, star))

        def used(count: int) -> Usage:
            return Usage(input_tokens=count, output_tokens=0)

        return await self._ask_unrecorded(Ongoing(call, StreamCapture("chat"), len(raw)), parsed.refusal, ask, used)

    async def embed(self, raw: bytes, key: str | None = None) -> bytes:
        """Answer an embeddings request with the upstream's own bytes; nothing is recorded.

        Raises:
            CallError: The request or its model is wrong, or the upstream makes no embeddings.
        """
        body = parse_json_object(raw)
        for name in ("model", "input"):
            if not body.get(name):
                raise invalid(f"You must provide the parameter '{name}'.", name, "missing_required_parameter")
        call = UpstreamCall(call_id="", kind="text", body=body | {"model": str(body["model"])}, key=key)

        async def ask(target: Target, star: str | None, patience: Patience) -> bytes:
            return await target.upstream.embed(target.request_body(call.body, star))

        def used(answer: bytes) -> Usage:
            usage = (json_object(answer) or {}).get("usage") or {}
            return Usage(input_tokens=usage.get("prompt_tokens"), output_tokens=0)

        return await self._ask_unrecorded(Ongoing(call, StreamCapture("text"), len(raw)), None, ask, used)

    async def _ask_unrecorded(
        self,
        ongoing: Ongoing,
        refusal: CallError | None,
        ask: Callable[[Target, str | None, Patience], Awaitable[_T]],
        used: Callable[[_T], Usage],
    ) -> _T:
        """Ask for something that is not recorded, within the limits of calls."""
        try:
            await self.gate.wait(self._limits.pause_timeout_s)
            with self._in_flight():
                answer = await self._answering.ask(ongoing, refusal, ask, used)
                for written in ongoing.spending:
                    await written
                return answer
        except Exception as error:  # noqa: BLE001 - every failure becomes the answer of the call
            failure = as_call_error(error)
            if failure.is_unexpected:
                _log.exception("A request failed unexpectedly")
            raise failure from failure.__cause__

    async def _answer(self, dialect: Dialect, ongoing: Ongoing, refusal: CallError | None, emit: Emit) -> Reply:
        call = ongoing.call
        self._answering.check(call, refusal)  # before anything counts the call
        if call.scope is not None:
            call.mode = call.scope.mode or await self._mode_of(call)
            call.samples_freely = self._sampling.samples_freely(call.scope, call.mode)
            call.replaced = self._sampling.apply(call.body, call.scope, call.mode)
        capture, data = await self._answering.answer(dialect, ongoing, refusal, emit)
        if call.scope is not None:
            ongoing.is_recorded = True
            await self._recorder.record(self._spans.of_answer(call, capture))
            if call.api == "responses":
                self._conversations.remember(call, capture)
        for written in ongoing.spending:
            await written
        self.meter.calls += 1
        self.meter.count_answer(capture, is_attributed=call.scope is not None)
        return Reply(data, call.is_streamed)

    @contextmanager
    def _in_flight(self) -> Generator[None]:
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
            except Exception as error:  # stores fail in their own ways; what is no outage goes on as it is
                if not is_outage(error):
                    raise
                # The call goes on as if its rollout had no mode; whoever trains shall know that.
                if self._sampling.needs_mode(rollout_id):
                    call.not_trainable_because = MODE_UNKNOWN
                return None
            self._modes[rollout_id] = getattr(rollout, "mode", None)
            if len(self._modes) > _REMEMBERED_MODES:
                self._modes.popitem(last=False)
        return self._modes[rollout_id]

    async def _record_failure(self, ongoing: Ongoing, error: CallError) -> None:
        written = self._keep_failure(ongoing, error)
        if written is None:
            return
        try:
            await written
        except CallError as unwritten:
            # The client gets the first error, which is the cause; this one is counted by the recorder.
            _log.debug("The failure of a call could not be recorded: %s", unwritten)

    def _keep_failure(self, ongoing: Ongoing, error: CallError) -> asyncio.Future[None] | None:
        self.meter.calls += 1
        self.meter.errors[error.reason or error.kind] += 1
        if ongoing.call.scope is None or ongoing.is_recorded:
            return None
        ongoing.is_recorded = True
        partial = None if ongoing.partial.is_empty else ongoing.partial.capture()
        return self._recorder.enqueue(self._spans.of_failure(ongoing.call, error, partial))


def _new_call(
    dialect: Dialect, scope: CallScope | None, headers: dict[str, str] | None, key: str | None
) -> UpstreamCall:
    return UpstreamCall(
        call_id=dialect.new_id(),
        kind=dialect.kind,
        body={},
        scope=scope,
        started_at=time.time(),
        api=dialect.api,
        headers=headers or {},
        attributes={API: dialect.name} if key is None else {API: dialect.name, KEY: key},
        key=key,
    )


def _read(call: UpstreamCall, dialect: Dialect, raw: bytes) -> ParsedCall:
    parsed = dialect.parse(raw)
    call.body, call.native = parsed.body, parsed.native
    if parsed.attributes:
        call.attributes = call.attributes | parsed.attributes
    return parsed
