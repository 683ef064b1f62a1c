"""The tracer interface (names and signatures of the public 0.3 API), and which tracer is active.

A tracer collects; who owns the rollout (a runner, or `trace_context` when a store is given) sends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Any, Protocol

from agentlightning.agent.scope import current_scope
from agentlightning.schemas import Attributes, Span, SpanCoreFields, StatusCode, TraceStatus


class SpanSink(Protocol):
    """The one method of a store that a tracer uses."""

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Append spans."""
        ...


class SpanRecordingContext(Protocol):
    """A span while it is being recorded."""

    def record_exception(self, exception: BaseException) -> None:
        """Note an exception and mark the span as failed."""
        ...

    def record_attributes(self, attributes: Attributes) -> None:
        """Set attributes."""
        ...

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Set the outcome."""
        ...

    def get_recorded_span(self) -> SpanCoreFields:
        """The span as recorded so far."""
        ...


class Tracer:
    """Base of tracers.

    As in 0.3 it is not abstract: what a subclass leaves out raises `NotImplementedError` when it is called.
    """

    def __init__(self) -> None:
        self.worker_id: int | None = None
        self._store: SpanSink | None = None

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Prepare once per process, before `init_worker`."""

    def init_worker(self, worker_id: int, store: SpanSink | None = None) -> None:
        """Prepare for one worker; `store` receives the spans of `trace_context` blocks that nobody else collects."""
        self.worker_id = worker_id
        self._store = store

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Undo `init_worker`."""
        self.worker_id = None
        self._store = None

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undo `init`."""

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: SpanSink | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> AbstractAsyncContextManager[Any]:
        """Collect the spans of the block.

        Args:
            name: Name of the trace.
            store: Receives the spans when the block ends; overrides that of `init_worker`.
            rollout_id: Rollout the spans belong to; given together with `attempt_id`.
            attempt_id: Attempt the spans belong to.

        Raises:
            ValueError: Only one of the two ids is given.
        """
        raise NotImplementedError

    def trace_context_sync(
        self, name: str | None = None, *, rollout_id: str | None = None, attempt_id: str | None = None
    ) -> AbstractContextManager[Any]:
        """As `trace_context` for synchronous code; the spans stay here, see `get_last_trace`."""
        raise NotImplementedError

    def get_last_trace(self) -> list[Span]:
        """Spans of the running trace of this task or thread, else of the one that ended last."""
        raise NotImplementedError

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Record a span that starts and ends at `timestamp` (Unix seconds; now when not given)."""
        raise NotImplementedError

    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> AbstractContextManager[SpanRecordingContext]:
        """Record the block as a span."""
        raise NotImplementedError

    def trace_run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `func` inside a trace."""
        with self.trace_context_sync(name=getattr(func, "__name__", None)):
            return func(*args, **kwargs)

    async def trace_run_async(self, func: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Await `func` inside a trace."""
        async with self.trace_context(name=getattr(func, "__name__", None)):
            return await func(*args, **kwargs)

    def get_langchain_handler(self) -> Any:
        """A LangChain callback handler, or `None`: model calls are captured at the gateway without one."""
        return None

    @contextmanager
    def lifespan(self, store: SpanSink | None = None) -> Generator[None]:
        """Initialise and tear down around the block; meant for trying things out."""
        self.init()
        try:
            self.init_worker(0, store)
            try:
                yield
            finally:
                self.teardown_worker(0)
        finally:
            self.teardown()


_active: Tracer | None = None


def set_active_tracer(tracer: Tracer) -> None:
    """Make `tracer` the one that code outside of any rollout emits to.

    Raises:
        ValueError: Another one is active.
    """
    global _active
    if _active is not None and _active is not tracer:
        raise ValueError("another tracer is active; call clear_active_tracer() first")
    _active = tracer


def clear_active_tracer() -> None:
    """Undo `set_active_tracer`."""
    global _active
    _active = None


def get_active_tracer() -> Tracer | None:
    """The tracer of the running rollout, else the one set for the process, else `None`."""
    scope = current_scope()
    if scope is not None and scope.tracer is not None:
        return scope.tracer
    return _active
