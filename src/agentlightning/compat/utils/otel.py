"""0.3's `agentlightning.utils.otel`: tags, links and nested data on spans."""

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from agentlightning.agent.emit.attributes import (
    extract_links_from_attributes,
    extract_tags_from_attributes,
    flatten_attributes,
    make_link_attributes,
    make_tag_attributes,
    query_linked_spans,
    sanitize_attributes,
    unflatten_attributes,
)


def filter_attributes(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The attributes named `prefix`, or beginning with `prefix.`."""
    return {k: v for k, v in attributes.items() if k == prefix or k.startswith(f"{prefix}.")}


def filter_and_unflatten_attributes(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any] | list[Any]:
    """The attributes below `prefix.`, without it, as nested data.

    Raises:
        ValueError: There is one named `prefix` itself, which has no place in nested data.
    """
    if prefix in attributes:
        raise ValueError(f"the attribute {prefix!r} itself has a value, so what is below it cannot be nested")
    below = filter_attributes(attributes, prefix)
    return unflatten_attributes({name[len(prefix) + 1 :]: value for name, value in below.items()})


def get_tracer_provider(inspect: bool = True) -> TracerProvider:
    """OpenTelemetry's provider of this process.

    Args:
        inspect: Has no effect.

    Raises:
        RuntimeError: No tracer is initialised.
    """
    del inspect
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        raise RuntimeError("no tracer is initialised; use OtelTracer().lifespan() or a runner")
    return provider


def get_tracer(use_active_span_processor: bool = True) -> trace.Tracer:
    """OpenTelemetry's tracer; what it records belongs to the rollout that runs.

    Args:
        use_active_span_processor: Has no effect.
    """
    return get_tracer_provider(use_active_span_processor).get_tracer("agentlightning")


__all__ = [
    "extract_links_from_attributes",
    "extract_tags_from_attributes",
    "filter_and_unflatten_attributes",
    "filter_attributes",
    "flatten_attributes",
    "get_tracer",
    "get_tracer_provider",
    "make_link_attributes",
    "make_tag_attributes",
    "query_linked_spans",
    "sanitize_attributes",
    "unflatten_attributes",
]
