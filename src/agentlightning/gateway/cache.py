"""Where calls are answered from: the upstream, or what it answered to the very same call before.

A hit needs the same weights and the same request, byte for byte of its canonical form. What is kept is the upstream's
answer as it was, streamed ones piece by piece, so a hit is indistinguishable but for its speed. Knows no storage.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypedDict, TypeVar
from weakref import WeakKeyDictionary

import msgspec
import orjson

from agentlightning.gateway.cache_stores import CacheStore, open_cache
from agentlightning.gateway.call import Answer, Capture, StreamPiece, UpstreamCall
from agentlightning.gateway.capture import FROM_CACHE, StreamCapture
from agentlightning.gateway.upstream.base import Upstream, Weighted

_log = logging.getLogger(__name__)

_FORMAT = 1
_ANY = "*"

T = TypeVar("T")

_nonces: WeakKeyDictionary[Upstream, str] = WeakKeyDictionary()


class CacheStats(TypedDict):
    """Counts are since the start of the gateway."""

    hits: int
    misses: int
    stored: int
    joined: int
    """Hits that waited for the same call already under way."""
    not_cacheable: dict[str, int]
    """Calls that went past the cache, by reason."""
    saved_tokens: int
    """Response tokens that did not have to be sampled."""
    errors: int
    """Times that the storage failed; such calls go to the upstream."""
    entries: int | None
    bytes: int | None


class CallCache(Protocol):
    """Stands between calls and upstreams."""

    @property
    def needs_mode(self) -> bool:
        """Whether it has to know the mode of a call's rollout."""
        ...

    @property
    def keeps_text_unmasked(self) -> bool:
        """Whether it keeps what was said outside this process, and nobody has said that it may."""
        ...

    async def complete(self, upstream: Upstream, call: UpstreamCall) -> Answer:
        """As `Upstream.complete`."""
        ...

    def stream(self, upstream: Upstream, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """As `Upstream.stream`."""
        ...

    def stats(self) -> CacheStats | None:
        """What it did so far; `None` when there is no cache."""
        ...

    async def aclose(self) -> None:
        """Free connections."""
        ...


class NoCache:
    """Asks the upstream every time."""

    needs_mode = False
    keeps_text_unmasked = False

    async def complete(self, upstream: Upstream, call: UpstreamCall) -> Answer:
        """As `Upstream.complete`."""
        return await upstream.complete(call)

    def stream(self, upstream: Upstream, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """As `Upstream.stream`."""
        return upstream.stream(call)

    def stats(self) -> CacheStats | None:
        """Nothing to tell."""
        return None

    async def aclose(self) -> None:
        """Nothing to free."""


class ResponseCache:
    """Answers repeated calls without asking again. Give it to `Gateway(cache=...)`.

    Args:
        store: `"memory"`, a `redis://` URL, or a `CacheStore`.
        modes: Rollouts whose calls are cached, by mode.
        unattributed: Cache calls on URLs that name no rollout too.
        unseeded: Cache calls that sample (temperature other than 0) without a seed. Then repeating a call gives the
            first sample again instead of a new one.
        model_versions: Versions of models whose upstream cannot tell, by model name, `"*"` for all others. A new
            version starts afresh. Without an entry such a model's calls are not cached: its server may have been given
            other weights.
        ttl_s: How long an answer is kept, seconds.
        max_entry_bytes: Largest answer that is kept.

    Raises:
        ConfigError: The URL cannot be used.
        MissingExtraError: Redis's client is not installed.
    """

    def __init__(
        self,
        store: str | CacheStore = "memory",
        *,
        modes: Iterable[str] = ("val", "test"),
        unattributed: bool = False,
        unseeded: bool = False,
        model_versions: Mapping[str, str] | None = None,
        ttl_s: float = 24 * 3600.0,
        max_entry_bytes: int = 4 << 20,
    ) -> None:
        self.store: CacheStore = open_cache(store) if isinstance(store, str) else store
        self._modes = frozenset(modes)
        self._unattributed = unattributed
        self._unseeded = unseeded
        self._versions = dict(model_versions or {})
        self._ttl_s = ttl_s
        self._max_entry_bytes = max_entry_bytes
        self._under_way: dict[bytes, asyncio.Future[bytes | None]] = {}
        self._hits = self._misses = self._stored = self._joined = self._saved_tokens = 0
        self._past: Counter[str] = Counter()
        self._answered_as: dict[str, str] = {}

    @property
    def needs_mode(self) -> bool:
        """Whether it has to know the mode of a call's rollout."""
        return bool(self._modes)

    @property
    def keeps_text_unmasked(self) -> bool:
        """Whether it keeps what was said outside this process, and nobody has said that it may."""
        return self.store.keeps_text_unmasked

    async def complete(self, upstream: Upstream, call: UpstreamCall) -> Answer:
        """From the cache, or from the upstream; the same call twice at a time is asked once."""
        version = self._version(upstream, call)
        if version is None:
            return await upstream.complete(call)
        key = _key(upstream, call, version)
        answer = self._hit(await self.store.get(key), Answer) or await self._join(key)
        if answer is not None:
            return answer
        self._misses += 1
        leading = key not in self._under_way
        waiting: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        if leading:
            self._under_way[key] = waiting
        try:
            answer = await upstream.complete(call)
            data = self._encoded(answer, answer.capture, upstream, call, version)
            if leading:
                waiting.set_result(data)
            if data is not None:
                await self._keep(key, data)
        finally:
            if leading:
                del self._under_way[key]
                waiting.cancel()  # where there is no answer, those who wait ask for themselves
        return answer

    async def stream(self, upstream: Upstream, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """From the cache in the pieces that the upstream sent, or from the upstream."""
        version = self._version(upstream, call)
        key = None if version is None else _key(upstream, call, version)
        if key is not None:
            pieces = self._hit(await self.store.get(key), list[StreamPiece])
            if pieces is not None:
                for piece in pieces:
                    yield piece
                return
            self._misses += 1
        kept: list[StreamPiece] = []
        async with aclosing(upstream.stream(call)) as source:
            async for piece in source:
                if key is not None:
                    kept.append(piece)
                yield piece
        if key is None or version is None:
            return
        capture = _capture_of(kept, call)
        data = self._encoded(kept, capture, upstream, call, version)
        if data is not None:
            await self._keep(key, data)

    def stats(self) -> CacheStats | None:
        """What it did so far."""
        entries, size = self.store.size()
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            stored=self._stored,
            joined=self._joined,
            not_cacheable=dict(self._past),
            saved_tokens=self._saved_tokens,
            errors=self.store.errors,
            entries=entries,
            bytes=size,
        )

    async def aclose(self) -> None:
        """Free connections."""
        await self.store.aclose()

    def _version(self, upstream: Upstream, call: UpstreamCall) -> str | None:
        """The version of the weights where the call may be cached."""
        if call.scope is None:
            reason = None if self._unattributed else "unattributed"
        else:
            reason = None if call.mode in self._modes else "mode"
        if reason is None and not (self._unseeded or _is_repeatable(call.body)):
            reason = "unseeded"
        version = None
        if reason is None:
            version = self._declared(call.model) or _told(upstream, call.model)
            reason = None if version is not None else "no_version"
        if reason is not None:
            self._past[reason] += 1
        return version

    def _declared(self, model: str) -> str | None:
        version = self._versions.get(model) or self._versions.get(_ANY)
        return None if version is None else f"declared {version}"

    async def _join(self, key: bytes) -> Answer | None:
        """The answer to the same call that is under way, if there is one and it can be shared."""
        waiting = self._under_way.get(key)
        if waiting is None:
            return None
        try:
            data = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not waiting.cancelled():
                raise
            return None
        answer = self._hit(data, Answer)
        self._joined += answer is not None
        return answer

    def _hit(self, data: bytes | None, kind: type[T]) -> T | None:
        if data is None:
            return None
        try:
            found = msgspec.msgpack.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            _log.warning("An entry of the response cache cannot be read and is ignored: %s", error)
            return None
        pieces: list[Any] = found if isinstance(found, list) else [found]
        for piece in pieces:
            if piece.capture is not None:
                self._saved_tokens += piece.capture.completion_tokens or 0
                _mark(piece.capture)
        self._hits += 1
        return found

    def _encoded(
        self, value: Any, capture: Capture, upstream: Upstream, call: UpstreamCall, version: str
    ) -> bytes | None:
        if not self._is_still(version, capture, upstream, call):
            self._past["version_changed"] += 1
            return None
        data = msgspec.msgpack.encode(value)
        if len(data) > self._max_entry_bytes:
            self._past["too_large"] += 1
            return None
        return data if capture.choices else None

    def _is_still(self, version: str, capture: Capture, upstream: Upstream, call: UpstreamCall) -> bool:
        """Whether the answer surely comes from the weights that the key names: they may change under a call."""
        if self._declared(call.model) is not None:
            return True
        answered_as = self._answered_as.setdefault(version, capture.model_version)
        return _told(upstream, call.model) == version and capture.model_version == answered_as

    async def _keep(self, key: bytes, data: bytes) -> None:
        if await self.store.put(key, data, self._ttl_s):
            self._stored += 1


def _is_repeatable(body: Mapping[str, Any]) -> bool:
    return body.get("temperature") == 0 or body.get("seed") is not None


def _told(upstream: Upstream, model: str) -> str | None:
    return upstream.weights_id(model) if isinstance(upstream, Weighted) else None


def _identity(upstream: Upstream) -> str:
    """Tells upstreams apart; those that have a representation, in other processes too."""
    if type(upstream).__repr__ is not object.__repr__:
        return repr(upstream)
    nonce = _nonces.get(upstream)
    if nonce is None:  # not id(): that of an object that is gone may be given to another
        nonce = _nonces[upstream] = uuid.uuid4().hex
    return nonce


def _key(upstream: Upstream, call: UpstreamCall, version: str) -> bytes:
    body = call.body
    if body.get("temperature") == 0 and "seed" in body:  # greedy: the seed decides nothing
        body = {name: value for name, value in body.items() if name != "seed"}
    identity = [_FORMAT, call.api, call.kind, _identity(upstream), version, body, call.native, call.headers]
    identity.append(call.samples_freely)
    return hashlib.blake2b(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS), digest_size=32).digest()


def _capture_of(pieces: list[StreamPiece], call: UpstreamCall) -> Capture:
    """What a streamed answer was; put on its last piece where the upstream did not, so that a hit can be marked."""
    for piece in reversed(pieces):
        if piece.capture is not None:
            return piece.capture
    progress = StreamCapture(call.kind)
    for piece in pieces:
        for event in piece.events:
            progress.feed(event)
    capture = progress.capture()
    if pieces:
        pieces[-1] = msgspec.structs.replace(pieces[-1], capture=capture)
    return capture


def _mark(capture: Capture) -> None:
    capture.from_cache = True
    for choice in capture.choices:
        choice.not_trainable_because = choice.not_trainable_because or FROM_CACHE
