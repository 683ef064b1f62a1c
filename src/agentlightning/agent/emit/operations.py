"""Operations: functions and blocks of an agent as spans with inputs and outputs."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, TypeVar, cast, overload

from agentlightning.agent.emit.attributes import encode_attributes, exception_attributes
from agentlightning.agent.emit.spans import find_tracer
from agentlightning.agent.errors import BadResultError
from agentlightning.agent.tracer.base import SpanRecordingContext
from agentlightning.schemas import Attributes, SpanCoreFields, StatusCode, TraceStatus
from agentlightning.schemas.semconv import AGL_OPERATION, OPERATION_INPUT, OPERATION_NAME, OPERATION_OUTPUT

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class OperationContext:
    """A block or a function that is recorded as a span; made by `operation()`.

    As a decorator it may be applied before any rollout runs: the tracer is looked up at each call. Outside of a rollout
    the code runs all the same and is not recorded.
    """

    def __init__(self, attributes: Mapping[str, Any], *, name: str | None = None, propagate: bool = True) -> None:
        self.name = AGL_OPERATION
        self.operation_name = name
        self.initial_attributes = encode_attributes(attributes)
        self.propagate = propagate
        self._block: AbstractContextManager[SpanRecordingContext] | None = None
        self._recording: SpanRecordingContext | None = None
        self._span: SpanCoreFields | None = None

    def _open(self, function_name: str | None = None) -> AbstractContextManager[SpanRecordingContext]:
        attributes = dict(self.initial_attributes)
        name = self.operation_name or function_name
        if name is not None:
            attributes[OPERATION_NAME] = name
        tracer = find_tracer() if self.propagate else None
        if tracer is None:
            return _unrecorded(self.name, attributes)
        return tracer.operation_context(self.name, attributes=attributes)

    def __enter__(self) -> OperationContext:
        self._block = self._open()
        self._recording = self._block.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        block, recording = self._block, self._recording
        self._block = self._recording = None
        if block is None or recording is None:
            return
        try:
            block.__exit__(kind, error, trace)
        finally:
            self._span = recording.get_recorded_span()

    def span(self) -> SpanCoreFields:
        """The span, once the block has ended.

        Raises:
            RuntimeError: The block has not ended.
        """
        if self._span is None:
            raise RuntimeError("the operation has not ended yet")
        return self._span

    def set_input(self, *args: Any, **kwargs: Any) -> None:
        """Record what the block works on: positional values as `input.args.<i>`, others as `input.<name>`.

        Raises:
            RuntimeError: Called outside of the block.
        """
        given: dict[str, Any] = dict(kwargs)
        if args:
            given["args"] = {str(index): value for index, value in enumerate(args)}
        self._running().record_attributes(_encode(OPERATION_INPUT, given))

    def set_output(self, output: Any) -> None:
        """Record what the block has produced.

        Raises:
            RuntimeError: Called outside of the block.
        """
        self._running().record_attributes(_encode(OPERATION_OUTPUT, output))

    def _running(self) -> SpanRecordingContext:
        if self._recording is None:
            raise RuntimeError("set_input and set_output belong inside the `with operation()` block")
        return self._recording

    def __call__(self, fn: FunctionT) -> FunctionT:
        """Record each call of `fn`: bound arguments, return value, exception."""
        signature = inspect.signature(fn)
        name = getattr(fn, "__name__", type(fn).__name__)

        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def asynchronous(*args: Any, **kwargs: Any) -> Any:
                with self._open(name) as recording:
                    recording.record_attributes(_inputs(signature, args, kwargs))
                    result = await fn(*args, **kwargs)
                    recording.record_attributes(_encode(OPERATION_OUTPUT, result))
                    return result

            return cast("FunctionT", asynchronous)

        @functools.wraps(fn)
        def synchronous(*args: Any, **kwargs: Any) -> Any:
            with self._open(name) as recording:
                recording.record_attributes(_inputs(signature, args, kwargs))
                result = fn(*args, **kwargs)
                recording.record_attributes(_encode(OPERATION_OUTPUT, result))
                return result

        return cast("FunctionT", synchronous)


def _inputs(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # the call itself will raise it, with the better message
        return {}
    bound.apply_defaults()
    return _encode(OPERATION_INPUT, bound.arguments)


def _encode(path: str, value: Any) -> dict[str, Any]:
    try:
        return encode_attributes({path: value})
    except BadResultError:  # keys that are no strings: recording must not break the function it records
        return {path: repr(value)}


@contextmanager
def _unrecorded(name: str, attributes: dict[str, Any]) -> Generator[SpanRecordingContext]:
    recording = _LocalRecording(name, attributes)
    try:
        yield recording
    except Exception as error:  # whatever the block raises is noted and goes on
        recording.record_exception(error)
        raise
    finally:
        recording.end_time = time.time()


class _LocalRecording(SpanRecordingContext):
    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        self.name = name
        self.attributes = attributes
        self.status = TraceStatus()
        self.start_time = time.time()
        self.end_time: float | None = None

    def record_exception(self, exception: BaseException) -> None:
        self.attributes.update(exception_attributes(exception))
        self.record_status("ERROR", str(exception))

    def record_attributes(self, attributes: Attributes) -> None:
        self.attributes.update(attributes)

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        self.status = TraceStatus(status_code=status_code, description=description)

    def get_recorded_span(self) -> SpanCoreFields:
        return SpanCoreFields(
            name=self.name,
            status=self.status,
            attributes=self.attributes,
            start_time=self.start_time,
            end_time=self.end_time,
        )


@overload
def operation(fn: FunctionT, *, propagate: bool = True, name: str | None = None, **attributes: Any) -> FunctionT: ...


@overload
def operation(
    fn: None = None, *, propagate: bool = True, name: str | None = None, **attributes: Any
) -> OperationContext: ...


def operation(
    fn: FunctionT | None = None, *, propagate: bool = True, name: str | None = None, **attributes: Any
) -> FunctionT | OperationContext:
    """Record as a span: a function by `@operation` or `@operation(kind="search")`, a block by `with`.

    Outside of a rollout the code runs without being recorded.

    Args:
        fn: The function, when used as a plain decorator.
        propagate: `False` records nothing in the trace.
        name: Name of the operation; the function's by default.
        **attributes: Attributes of the span.
    """
    context = OperationContext(attributes, name=name, propagate=propagate)
    return context if fn is None else context(fn)
