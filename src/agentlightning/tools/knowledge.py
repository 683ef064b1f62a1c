"""The tool `knowledge`: searches what the program around it knows, by a protocol. Has no storage of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict, cast

from pydantic import BaseModel, Field

from agentlightning.tools.base import Tool, ToolArguments, ToolContext, ToolResult, ToolUnavailableError, cut

_CONTENT_CHARS = 2_000


class KnowledgeItem(TypedDict):
    """One item found."""

    id: str
    title: str
    content: str
    score: float


class KnowledgeSearch(Protocol):
    """What `ToolContext.services["knowledge"]` has to be."""

    async def search(self, query: str, limit: int) -> Sequence[KnowledgeItem]:
        """The items nearest to a query, best first, of those that the caller may read."""
        ...


class KnowledgeArguments(ToolArguments):
    query: str = Field(min_length=1, max_length=1000, description="What to look for, in words.")
    limit: int = Field(default=5, ge=1, le=20)


class KnowledgeTool(Tool):
    """Look things up."""

    name = "knowledge"
    description = (
        "Search the knowledge base by meaning and words. Gives items with their ids; name the ids you rely on."
    )
    Arguments = KnowledgeArguments
    permission = "knowledge:read"

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        wanted = cast("KnowledgeArguments", arguments)
        service: Any = context.services.get("knowledge")
        if service is None:
            raise ToolUnavailableError("There is no knowledge base here.", hint="It comes with `agl up`.")
        found = list(await cast("KnowledgeSearch", service).search(wanted.query, wanted.limit))[: wanted.limit]
        lines = [f"[{item['id']}] {item['title']}\n{cut(item['content'], _CONTENT_CHARS)}" for item in found]
        return ToolResult("\n\n".join(lines) or "Nothing found.", [dict(item) for item in found])
