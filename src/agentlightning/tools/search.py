"""The tool `web_search`: asks a search engine that an operator has configured. Knows no pages."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode

import httpx
from pydantic import BaseModel, Field

from agentlightning.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from agentlightning.tools.settings import SearchSettings, ToolSettings
from agentlightning.tools.web import GuardedClient, WebError

_SNIPPET_CHARS = 500
HOW_TO = (
    "no search engine is configured. Set SEARXNG_URL, BRAVE_API_KEY or TAVILY_API_KEY, or write [search] into the "
    "tools' settings."
)


class SearchArguments(ToolArguments):
    query: str = Field(min_length=1, max_length=400, description="What to look for.")
    count: int | None = Field(default=None, ge=1, le=20, description="How many results.")


@dataclass(frozen=True)
class _Asked:
    """A request to an engine."""

    method: str
    url: str
    headers: dict[str, str]
    secrets: dict[str, str]
    body: bytes | None = None


class WebSearchTool(Tool):
    """Search."""

    name = "web_search"
    description = "Search the web. Gives titles, addresses and snippets; read a page with web_browse."
    Arguments = SearchArguments

    def __init__(self, settings: ToolSettings, client: GuardedClient) -> None:
        self._settings = settings.search
        self._client = client
        self._key = ""
        self.unavailable = self._prepare()

    def _prepare(self) -> str:
        if self._settings is None:
            return HOW_TO
        variable = self._settings.key_env or _KEYS.get(self._settings.backend, "")
        if variable:
            self._key = os.environ.get(variable, "")
            if not self._key:
                return f"the key of {self._settings.backend} is missing. Set {variable}."
        return ""

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        wanted = cast("SearchArguments", arguments)
        assert self._settings is not None
        count = wanted.count or self._settings.results
        asked = _ENGINES[self._settings.backend](self._settings, self._key, wanted.query, count)
        answer = await self._client.fetch(
            asked.method, asked.url, headers=asked.headers, secret_headers=asked.secrets, body=asked.body
        )
        if answer.status != 200:
            raise WebError(
                f"The search engine answered {answer.status}.",
                hint="Try again later." if answer.status in (429, 503) else "Its key or its settings may be wrong.",
            )
        try:
            found = _READERS[self._settings.backend](json.loads(answer.body))[:count]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WebError("The search engine answered something that cannot be read.") from error
        lines = [f"{n}. {one['title']}\n   {one['url']}\n   {one['snippet']}" for n, one in enumerate(found, start=1)]
        return ToolResult("\n".join(lines) or "Nothing found.", found)


def searched_hosts(settings: ToolSettings) -> frozenset[str]:
    """The configured engine, which may be on a private network."""
    if settings.search is None or not settings.search.url:
        return frozenset()
    url = httpx.URL(settings.search.url)
    return frozenset({f"{url.host}:{url.port or {'https': 443}.get(url.scheme, 80)}"})


def _searxng(settings: SearchSettings, key: str, query: str, count: int) -> _Asked:
    base = (settings.url or "").rstrip("/")
    base = base if base.endswith("/search") else base + "/search"
    secrets = {"authorization": f"Bearer {key}"} if key else {}
    return _Asked("GET", f"{base}?{urlencode({'q': query, 'format': 'json'})}", {"accept": "application/json"}, secrets)


def _brave(settings: SearchSettings, key: str, query: str, count: int) -> _Asked:
    base = settings.url or "https://api.search.brave.com/res/v1/web/search"
    headers = {"accept": "application/json"}
    return _Asked("GET", f"{base}?{urlencode({'q': query, 'count': count})}", headers, {"x-subscription-token": key})


def _tavily(settings: SearchSettings, key: str, query: str, count: int) -> _Asked:
    base = settings.url or "https://api.tavily.com/search"
    body = json.dumps({"query": query, "max_results": count}).encode()
    return _Asked("POST", base, {"content-type": "application/json"}, {"authorization": f"Bearer {key}"}, body)


def _result(title: Any, url: Any, snippet: Any) -> dict[str, str]:
    return {
        "title": str(title or url)[:200],
        "url": str(url),
        "snippet": " ".join(str(snippet or "").split())[:_SNIPPET_CHARS],
    }


def _of_searxng(answer: Any) -> list[dict[str, str]]:
    return [_result(one.get("title"), one["url"], one.get("content")) for one in answer["results"]]


def _of_brave(answer: Any) -> list[dict[str, str]]:
    results = (answer.get("web") or {}).get("results", [])
    return [_result(one.get("title"), one["url"], one.get("description")) for one in results]


_KEYS = {"brave": "BRAVE_API_KEY", "tavily": "TAVILY_API_KEY"}
_ENGINES: dict[str, Callable[[SearchSettings, str, str, int], _Asked]] = {
    "searxng": _searxng,
    "brave": _brave,
    "tavily": _tavily,
}
_READERS: dict[str, Callable[[Any], list[dict[str, str]]]] = {
    "searxng": _of_searxng,
    "brave": _of_brave,
    "tavily": _of_searxng,  # the same names
}
