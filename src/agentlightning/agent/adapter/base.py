"""The adapter interface: one conversion, called like a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from agentlightning.schemas import Span

SourceT = TypeVar("SourceT")
TargetT = TypeVar("TargetT")


class Adapter(Generic[SourceT, TargetT]):
    """Converts one kind of data into another.

    As in 0.3 it is not abstract: what a subclass leaves out raises `NotImplementedError` when it is called.
    """

    def __call__(self, source: SourceT, /) -> TargetT:
        return self.adapt(source)

    def adapt(self, source: SourceT, /) -> TargetT:
        """Convert."""
        raise NotImplementedError


class TraceAdapter(Adapter[Sequence[Span], TargetT], Generic[TargetT]):
    """Converts the spans of one attempt."""
