"""The rollout that the running code belongs to, carried by a context variable.

Many rollouts run at once in one process, so there is no "current rollout" of the process; there is one of each task and
thread. Knows nothing of stores or HTTP.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from opentelemetry import context as otel_context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from agentlightning.kit.ids import new_span_id, new_trace_id
from agentlightning.schemas import Span, semconv

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_REWARD = f"{semconv.REWARD_PREFIX}.0.value"


class GatewayAddress(NamedTuple):
    """Where the gateway listens: model calls that go there are bound to their rollout."""

    host: str
    port: int
    prefix: str = ""
    """Path before `/v1`, without a slash at its end."""
    key: str = ""
    """What the gateway asks for; replaces whatever key a request to it has."""

    def __repr__(self) -> str:
        return f"GatewayAddress({self.host}:{self.port}{self.prefix})"

    @classmethod
    def parse(cls, url: str, key: str = "") -> GatewayAddress:
        """From a base URL such as `http://127.0.0.1:8000/v1`.

        Raises:
            ValueError: The URL has no host.
        """
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a gateway")
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        return cls(_canonical(parts.hostname), port, parts.path.rstrip("/").removesuffix("/v1").rstrip("/"), key)

    def serves(self, host: str, port: int) -> bool:
        """Whether a request to `host:port` reaches this gateway; all names of the loopback interface are one."""
        return port == self.port and _canonical(host) == self.host


def trace_id_of(rollout_id: str, attempt_id: str) -> str:
    """The trace id of an attempt, as hex: the same whoever computes it, so the gateway's spans share the trace."""
    return hashlib.blake2b(f"{rollout_id}/{attempt_id}".encode(), digest_size=16).hexdigest()


def _canonical(host: str) -> str:
    host = host.lower().strip("[]")
    return "127.0.0.1" if host in _LOOPBACK else host


class RolloutScope:
    """One attempt while it runs: its ids, and the spans it has produced so far."""

    __slots__ = (
        "_kept",
        "_waiting",
        "attempt_id",
        "gateways",
        "has_reward",
        "name",
        "open",
        "rollout_id",
        "root_span_id",
        "trace_id",
        "tracer",
        "traces",
    )

    def __init__(
        self,
        rollout_id: str = "",
        attempt_id: str = "",
        *,
        name: str = "",
        gateways: frozenset[GatewayAddress] = frozenset(),
        tracer: Any = None,
    ) -> None:
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.name = name or rollout_id
        self.gateways = gateways
        self.tracer = tracer  # a `Tracer`; those are built on scopes, so the type is not known here
        self.trace_id = int(trace_id_of(rollout_id, attempt_id) if attempt_id else new_trace_id(), 16)
        self.root_span_id = int(new_span_id(), 16)
        self.traces = [self.trace_id]
        """Trace ids that belong to it; user code may start traces of its own."""
        self.open = False
        self.has_reward = False
        # A deque: appended to by any thread, emptied by one, without a lock.
        self._waiting: deque[ReadableSpan | Span] = deque()
        self._kept: list[Span] = []

    def add(self, span: ReadableSpan | Span) -> None:
        """Take a finished span; callable from any thread."""
        if span.attributes and _FIRST_REWARD in span.attributes:
            self.has_reward = True
        self._waiting.append(span)

    def drain(self) -> list[Span]:
        """The spans finished since the last call; `sequence_id` 0 leaves numbering to the store."""
        taken: list[Span] = []
        while self._waiting:
            span = self._waiting.popleft()
            taken.append(span if isinstance(span, Span) else self._convert(span))
        self._kept.extend(taken)
        return taken

    def spans(self) -> list[Span]:
        """All spans so far, drained or not, in the order they ended."""
        return [*self._kept, *(s if isinstance(s, Span) else self._convert(s) for s in tuple(self._waiting))]

    def _convert(self, span: ReadableSpan) -> Span:
        return Span.from_opentelemetry(span, self.rollout_id, self.attempt_id, 0)

    def traceparent(self) -> str:
        """W3C trace context of the innermost span, or of the rollout itself."""
        from opentelemetry.trace import get_current_span

        context = get_current_span().get_span_context()
        if context.is_valid:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        return f"00-{self.trace_id:032x}-{self.root_span_id:016x}-01"


class Unattributed:
    """What could not be assigned to a rollout, counted so that nothing vanishes silently."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, what: str) -> int:
        """Note one more; returns how many there are of this kind."""
        with self._lock:
            self._counts[what] += 1
            return self._counts[what]

    def snapshot(self) -> dict[str, int]:
        """Counts by kind, e.g. `{"span:search": 3, "model call": 1}`."""
        with self._lock:
            return dict(self._counts)

    def since(self, earlier: dict[str, int]) -> dict[str, int]:
        """What has come since a `snapshot()`, by kind; kinds without news are left out."""
        news = {what: count - earlier.get(what, 0) for what, count in self.snapshot().items()}
        return {what: count for what, count in news.items() if count > 0}

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._counts.clear()


unattributed = Unattributed()
_current: ContextVar[RolloutScope | None] = ContextVar("agentlightning_rollout", default=None)
_open_scopes: dict[int, RolloutScope] = {}


def own_scope() -> RolloutScope | None:
    """The scope this code was started in, open or not."""
    return _current.get()


def current_scope() -> RolloutScope | None:
    """The open scope that this code belongs to.

    Code without a context (a thread of a library) belongs to the only open rollout, if there is exactly one. What is
    left over from an ended rollout belongs to none.
    """
    scope = _current.get()
    if scope is not None:
        return scope if scope.open else None
    scopes = tuple(_open_scopes.values())  # a copy: other threads open and close rollouts meanwhile
    return scopes[0] if len(scopes) == 1 else None


def open_scope_count() -> int:
    """How many rollouts are running in this process."""
    return len(_open_scopes)


@contextmanager
def bound_to(scope: RolloutScope | None) -> Generator[None]:
    """Let the code of the block belong to `scope`, without opening or closing it."""
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def enter_scope(scope: RolloutScope) -> Generator[RolloutScope]:
    """Open `scope` for the block; OpenTelemetry spans inside share its trace id."""
    root = SpanContext(scope.trace_id, scope.root_span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    scope.open = True
    _open_scopes[id(scope)] = scope
    scope_token = _current.set(scope)
    otel_token = otel_context.attach(set_span_in_context(NonRecordingSpan(root)))
    try:
        yield scope
    finally:
        scope.open = False
        _open_scopes.pop(id(scope), None)
        otel_context.detach(otel_token)
        _current.reset(scope_token)


def add_core_span(
    scope: RolloutScope, name: str, attributes: dict[str, Any], timestamp: float | None = None, ok: bool = True
) -> Span:
    """Append a span without OpenTelemetry, for runners that work outside of the traced block."""
    moment = timestamp if timestamp is not None else time.time()
    span = Span.from_attributes(
        attributes=attributes,
        rollout_id=scope.rollout_id,
        attempt_id=scope.attempt_id,
        name=name,
        trace_id=f"{scope.trace_id:032x}",
        parent_id=f"{scope.root_span_id:016x}",
        start_time=moment,
        end_time=moment,
    )
    if not ok:
        span.status.status_code = "ERROR"
    scope.add(span)
    return span
