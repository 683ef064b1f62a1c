"""0.3's `agentlightning.types`: the data that goes through the loop."""

from collections.abc import Sequence
from enum import Enum

from opentelemetry.sdk.trace import ReadableSpan

from agentlightning.agent.hook import Hook
from agentlightning.agent.tracer.base import SpanRecordingContext
from agentlightning.algorithm.base import Dataset
from agentlightning.schemas import (
    LLM,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    Attributes,
    EnqueueRolloutRequest,
    Event,
    FilterField,
    FilterOptions,
    Link,
    NamedResources,
    OtelResource,
    PaginatedResult,
    PromptTemplate,
    ProxyLLM,
    Resource,
    ResourcesUpdate,
    ResourceUnion,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    SortOptions,
    Span,
    SpanContext,
    SpanCoreFields,
    StatusCode,
    TaskInput,
    TraceStatus,
    Triplet,
    Worker,
    WorkerStatus,
    semconv,
)
from agentlightning.schemas.span import AttributeValue

RolloutRawResult = float | Sequence[ReadableSpan] | Sequence[Span] | Sequence[SpanCoreFields] | None
"""What an agent may return: nothing, the reward, or spans of its own making."""
SpanLike = ReadableSpan | Span
TraceState = dict[str, str]


class SpanNames(str, Enum):  # noqa: UP042 - a str, as in 0.3
    """Names of spans; `agentlightning.semconv` has them, too."""

    REWARD = semconv.AGL_REWARD
    MESSAGE = semconv.AGL_MESSAGE
    OBJECT = semconv.AGL_OBJECT
    EXCEPTION = semconv.AGL_EXCEPTION
    VIRTUAL = semconv.AGL_VIRTUAL
    ROLLOUT_ID = semconv.ROLLOUT_ID
    ATTEMPT_ID = semconv.ATTEMPT_ID
    SPAN_SEQUENCE_ID = semconv.SPAN_SEQUENCE_ID


__all__ = [
    "LLM",
    "Attempt",
    "AttemptStatus",
    "AttemptedRollout",
    "AttributeValue",
    "Attributes",
    "Dataset",
    "EnqueueRolloutRequest",
    "Event",
    "FilterField",
    "FilterOptions",
    "Hook",
    "Link",
    "NamedResources",
    "OtelResource",
    "PaginatedResult",
    "PromptTemplate",
    "ProxyLLM",
    "Resource",
    "ResourceUnion",
    "ResourcesUpdate",
    "Rollout",
    "RolloutConfig",
    "RolloutMode",
    "RolloutRawResult",
    "RolloutStatus",
    "SortOptions",
    "Span",
    "SpanContext",
    "SpanCoreFields",
    "SpanLike",
    "SpanNames",
    "SpanRecordingContext",
    "StatusCode",
    "TaskInput",
    "TraceState",
    "TraceStatus",
    "Triplet",
    "Worker",
    "WorkerStatus",
]
