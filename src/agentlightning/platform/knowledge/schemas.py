"""What knowledge's endpoints take and give. Fields that are not named here are refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from agentlightning.schemas.plain import stripped

_NAME = r"^\s*[^\x00-\x1f\x7f]*\s*$"  # what is stripped is allowed
_MAX_METADATA = 16_384


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    """Only what both databases keep and JSON can say again."""
    try:
        raw = orjson.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("is not plain JSON") from error
    if len(raw) > _MAX_METADATA:
        raise ValueError(f"is larger than {_MAX_METADATA} bytes")
    if b"\\u0000" in raw:
        raise ValueError("holds a NUL")
    return orjson.loads(raw)


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL")
    if not value.strip():
        raise ValueError("is empty")
    return value


def _different(value: list[str]) -> list[str]:
    return list(dict.fromkeys(value))


Title = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=_NAME), AfterValidator(stripped)]
Content = Annotated[str, StringConstraints(min_length=1, max_length=100_000), AfterValidator(_without_nul)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=_NAME), AfterValidator(stripped)]
Tags = Annotated[list[Name], Field(max_length=32), AfterValidator(_different)]
Metadata = Annotated[dict[str, Any], AfterValidator(_checked)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]
FileName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^\s*[^\x00-\x1f\x7f/\\]*\s*$"),
    AfterValidator(stripped),
]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ItemIn(_In):
    """A new item."""

    title: Title
    content: Content
    category: Name | None = None
    tags: Tags = []
    metadata: Metadata = {}


class ItemChange(_In):
    """What to change; what is left out stays. `version`: the one that the change was made for."""

    title: Title | None = None
    content: Content | None = None
    category: Name | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None
    version: Version | None = None


class DocumentIn(_In):
    """A document as text; its name says what it is (`guide.md`, `page.html`, `notes.txt`)."""

    name: FileName
    content: Annotated[str, StringConstraints(min_length=1, max_length=1_000_000)]


class ImportIn(_In):
    """Documents, or the documentation of packages that are installed on the server (an empty list is all of them)."""

    documents: Annotated[list[DocumentIn], Field(min_length=1, max_length=500)] | None = None
    packages: Annotated[list[Name], Field(max_length=200)] | None = None
    category: Name | None = None
    tags: Tags = []


class ItemOut(BaseModel):
    """An item. Times are Unix seconds; `truncated` says that `content` goes on."""

    id: int
    title: str
    content: str
    truncated: bool
    category: str | None
    tags: list[str]
    metadata: dict[str, Any]
    source: str | None
    version: int
    created_at: float
    updated_at: float
    created_by: str


class ItemsPage(BaseModel):
    """Items by number; `next` is the next page's `after`."""

    next: int | None
    items: list[ItemOut]


class VersionOut(BaseModel):
    """What an item was."""

    version: int
    title: str
    content: str
    category: str | None
    tags: list[str]
    metadata: dict[str, Any]
    created_at: float
    created_by: str


class VersionsPage(BaseModel):
    """Newest first; `next` is the next page's `before`."""

    next: int | None
    versions: list[VersionOut]


class Highlight(BaseModel):
    """A part of the content, and where in it words of the query stand."""

    text: str
    marks: list[tuple[int, int]]


class HitOut(BaseModel):
    """An item that was found, why, and where."""

    item: ItemOut
    score: float
    text_rank: int | None
    semantic_rank: int | None
    similarity: float | None
    highlights: list[Highlight]


class SearchOut(BaseModel):
    """What was found, best first; `total` is how many were ranked, `next` the next page's `offset`."""

    items: list[HitOut]
    total: int
    next: int | None
    mode: Literal["hybrid", "text", "semantic"]
    cached: bool


class ImportOut(BaseModel):
    """An import: `running`, `done`, `failed` or `interrupted`; of a background one `id` says where to look."""

    id: int | None
    status: str
    report: dict[str, Any]
