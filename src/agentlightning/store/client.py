"""The store over HTTP, for runners and algorithms in other processes. Knows no database.

Holds an address and nothing else that matters, so it can be pickled and used from several event loops.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import msgspec

from agentlightning.kit.errors import BadInputError, StorageError
from agentlightning.kit.ids import new_id
from agentlightning.schemas import AttemptedRollout, Rollout
from agentlightning.store import verbs, wire
from agentlightning.store.access import store_token
from agentlightning.store.base import LightningStore, LightningStoreCapabilities
from agentlightning.store.channel import Channel, ChannelSettings

logger = logging.getLogger(__name__)

R = TypeVar("R")

_LONGEST_WAIT_S = 20.0
"""One request waits no longer; the client asks again."""
_FEW = 16
"""So many rollouts are asked for at once, before waiting for them."""


class LightningStoreClient(LightningStore):
    """A store behind a `LightningStoreServer` or the gateway.

    Requests that fail for lack of a connection or with a 5xx of something in between are repeated. Repeating is safe:
    rollouts get their id here, claims are named, spans are known by their ids, and a status may be set twice.

    Args:
        server_address: E.g. `http://127.0.0.1:4747`.
        retry_delays: Waits before each further try, seconds; empty for none.
        health_retry_delays: Within such a wait, when to look whether the server is back, seconds; empty for never.
        request_timeout: For one try, seconds.
        connection_timeout: For connecting, seconds.
        token: Bearer token, if the server asks for one; by default `AGL_STORE_TOKEN`.

    Raises:
        StorageError: (every method) The server did not answer in spite of the retries.
        UnauthorizedError: (every method) The server asks for a token.
        ForbiddenError: (every method) It asks for another one.
    """

    def __init__(
        self,
        server_address: str,
        *,
        retry_delays: Sequence[float] = (1.0, 2.0, 5.0),
        health_retry_delays: Sequence[float] = (0.1, 0.2, 0.5),
        request_timeout: float = 30.0,
        connection_timeout: float = 5.0,
        token: str | None = None,
    ) -> None:
        self.server_address_root = server_address.rstrip("/").removesuffix("/v1/agl")
        self._settings = ChannelSettings(
            address=self.server_address_root,
            token=store_token(token),
            retry_delays=tuple(retry_delays),
            health_retry_delays=tuple(health_retry_delays),
            request_timeout=request_timeout,
            connection_timeout=connection_timeout,
        )
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._channels: WeakKeyDictionary[asyncio.AbstractEventLoop, Channel] = WeakKeyDictionary()
        self._releases: set[asyncio.Future[Any]] = set()
        self._unanswered: dict[str | None, list[str]] = {}
        """Claims of each worker whose answer was lost for good."""

    def __getstate__(self) -> dict[str, Any]:
        return {"server_address_root": self.server_address_root, "_settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def server_address(self) -> str:
        """Base URL of the store's REST routes."""
        return f"{self.server_address_root}/v1/agl"

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What this implementation can do."""
        return LightningStoreCapabilities(thread_safe=True, async_safe=True, zero_copy=True, otlp_traces=True)

    def otlp_traces_endpoint(self) -> str:
        """URL to which OpenTelemetry exporters may send traces."""
        return self.server_address_root + wire.OTLP_PATH

    async def close(self) -> None:
        """Give back what nobody took, and close the connections of the running event loop."""
        loop = asyncio.get_running_loop()
        while releases := [release for release in self._releases if release.get_loop() is loop]:
            await asyncio.wait(releases)
        with self._lock:
            channel = self._channels.pop(loop, None)
        if channel is not None:
            await channel.close()

    async def execute(self, verb: verbs.Verb[R]) -> R:
        """Execute one verb on the server."""
        if isinstance(verb, verbs.DequeueManyRollouts):
            return cast(R, await self._dequeue(verb))
        if isinstance(verb, verbs.WaitForRollouts):
            return cast(R, await self._wait(verb))
        if isinstance(verb, verbs.QueryEvents):
            return cast(R, await self._events(verb))
        value = await self._channel().call(_encode(_repeatable(verb)))
        return wire.RESULTS[type(verb)](value)

    def _channel(self) -> Channel:
        loop = asyncio.get_running_loop()
        with self._lock:
            channel = self._channels.get(loop)
            if channel is None:
                channel = self._channels[loop] = Channel(self._settings)
        return channel

    async def _dequeue(self, verb: verbs.DequeueManyRollouts) -> list[AttemptedRollout]:
        # What an unanswered claim took would stay with this worker, whose signs of life renew it: ask for it again.
        unanswered = self._unanswered.get(verb.worker_id)
        claim_id = unanswered.pop() if unanswered else uuid.uuid4().hex
        try:
            return await self._claim(verb, claim_id)
        except StorageError:
            self._unanswered.setdefault(verb.worker_id, []).append(claim_id)
            raise

    async def _claim(self, verb: verbs.DequeueManyRollouts, claim_id: str) -> list[AttemptedRollout]:
        deadline = time.monotonic() + max(0.0, verb.timeout or 0.0)
        verb = msgspec.structs.replace(verb, claim_id=claim_id)
        if deadline <= time.monotonic():
            return await self._claim_at_once(verb, claim_id)
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            slice_s = min(left_s, _LONGEST_WAIT_S)
            request = msgspec.structs.replace(verb, timeout=slice_s or None)
            claimed = await self._long_poll(wire.DEQUEUE_PATH, request, slice_s)
            if claimed or left_s <= _LONGEST_WAIT_S:
                return claimed

    async def _claim_at_once(self, verb: verbs.DequeueManyRollouts, claim_id: str) -> list[AttemptedRollout]:
        """Claim without waiting, in a batch with other calls; what comes when the caller has left is given back."""
        call = asyncio.ensure_future(self._channel().call(_encode(verb)))
        try:
            value = await asyncio.shield(call)
        except asyncio.CancelledError:
            self._releases.add(call)
            call.add_done_callback(lambda done: self._give_back(done, claim_id, verb.worker_id))
            raise
        return wire.RESULTS[verbs.DequeueManyRollouts](value)

    def _give_back(self, call: asyncio.Future[Any], claim_id: str, worker_id: str | None) -> None:
        self._releases.discard(call)
        if call.cancelled():
            return  # the server gives back what is claimed by a request that breaks off
        if call.exception() is not None:
            self._unanswered.setdefault(worker_id, []).append(claim_id)
            return
        if not call.result():
            return
        release = asyncio.ensure_future(self.execute(verbs.ReleaseClaim(claim_id=claim_id)))
        self._releases.add(release)  # the loop keeps only a weak reference
        release.add_done_callback(self._released)

    def _released(self, release: asyncio.Future[int]) -> None:
        self._releases.discard(release)
        if not release.cancelled() and release.exception() is not None:
            logger.warning("A claim that nobody took could not be given back: %s", release.exception())

    async def _wait(self, verb: verbs.WaitForRollouts) -> list[Rollout]:
        deadline = None if verb.timeout is None else time.monotonic() + verb.timeout
        finished: dict[str, Rollout] = {}
        # Often they have ended: to ask costs little in a batch, a long poll is a request of its own.
        at_once = len(verb.rollout_ids) <= _FEW
        while True:
            open_ids = [i for i in verb.rollout_ids if i not in finished]
            left_s = _LONGEST_WAIT_S if deadline is None else max(0.0, deadline - time.monotonic())
            slice_s = 0.0 if at_once else min(left_s, _LONGEST_WAIT_S)
            request = verbs.WaitForRollouts(rollout_ids=open_ids, timeout=slice_s)
            if at_once:
                ended = wire.RESULTS[verbs.WaitForRollouts](await self._channel().call(_encode(request)))
            else:
                ended = await self._long_poll(wire.WAIT_PATH, request, slice_s)
            at_once = False
            finished |= {rollout.rollout_id: rollout for rollout in ended}
            out_of_time = deadline is not None and time.monotonic() >= deadline
            if out_of_time or all(i in finished for i in verb.rollout_ids):
                return [finished[i] for i in verb.rollout_ids if i in finished]

    async def _events(self, verb: verbs.QueryEvents) -> verbs.EventPage:
        timeout = verb.timeout or 0.0
        deadline = time.monotonic() + (timeout if timeout > 0 and math.isfinite(timeout) else 0.0)
        after = verb.after
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            slice_s = min(left_s, _LONGEST_WAIT_S)
            wait_s = verb.timeout if not math.isfinite(timeout) else slice_s or None
            request = msgspec.structs.replace(verb, after=after, timeout=wait_s)
            page = await self._long_poll(wire.EVENTS_PATH, request, slice_s)
            if page.items or left_s <= _LONGEST_WAIT_S or verb.limit == 0:
                return page
            after = page.last

    async def _long_poll(self, path: str, verb: verbs.Verb[R], wait_s: float) -> R:
        answer = await self._channel().post(path, _encode(verb), extra_s=wait_s)
        return wire.RESULTS[type(verb)](msgspec.msgpack.decode(answer))


_OWN_IDS: tuple[tuple[type[verbs.Verb[Any]], str, str], ...] = (
    (verbs.AddFeedback, "feedback_id", "fb"),
    (verbs.AddPreference, "preference_id", "pf"),
    (verbs.CreateLineageSession, "session_id", "ls"),
)
"""What else is idempotent with an id of the caller's."""


def _repeatable(verb: verbs.Verb[Any]) -> verbs.Verb[Any]:
    """The verb with the ids that make a second execution harmless."""
    if isinstance(verb, verbs.EnqueueManyRollouts):
        rollouts = [
            r if r.rollout_id or r.idempotency_key else r.model_copy(update={"rollout_id": new_id("ro")})
            for r in verb.rollouts
        ]
        return msgspec.structs.replace(verb, rollouts=rollouts)
    if isinstance(verb, verbs.StartRollout) and not verb.rollout_id:
        return msgspec.structs.replace(verb, rollout_id=new_id("ro"))
    if isinstance(verb, verbs.StartAttempt):
        return msgspec.structs.replace(verb, claim_id=uuid.uuid4().hex)
    for kind, name, prefix in _OWN_IDS:
        if isinstance(verb, kind) and getattr(verb, name) is None:
            return msgspec.structs.replace(verb, **{name: new_id(prefix)})
    return verb


def _encode(verb: verbs.Verb[Any]) -> bytes:
    try:
        return wire.msgpack_encoder.encode(verb)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadInputError(
            f"The arguments cannot be sent: {error}.",
            hint="Use plain data: numbers, strings, lists, dicts, pydantic models, dataclasses.",
        ) from error
