"""Shapes of a query: filters, sorting, pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypedDict, TypeVar, overload

from pydantic import BaseModel

T = TypeVar("T")


class FilterField(TypedDict, total=False):
    """Conditions on one field."""

    exact: Any
    within: Sequence[Any]
    contains: str


FilterOptions = Mapping[str, Any]
"""Field name -> `FilterField`; `_aggregate` is "and" or "or", `_must` a mapping that always has to hold."""


class SortOptions(TypedDict):
    """Which field, which way."""

    name: str
    order: Literal["asc", "desc"]


class PaginatedResult(BaseModel, Sequence[T], Generic[T]):
    """A page that behaves like a sequence; `total` counts all matches, `limit == -1` means no limit."""

    items: Sequence[T]
    limit: int
    offset: int
    total: int

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.items[index]

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self.items)
