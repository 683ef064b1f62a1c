"""Knowledge: items that are written, versioned, found, and grown from good results. Knows no HTTP."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from agentlightning.kit.asyncs import Together
from agentlightning.kit.errors import ConflictError
from agentlightning.platform.auth.models import MAX_NUMBER
from agentlightning.platform.auth.repository import note
from agentlightning.platform.cache import Cache
from agentlightning.platform.database import Database
from agentlightning.platform.embedding.base import Embedder
from agentlightning.platform.knowledge import repository, texts
from agentlightning.platform.knowledge.imports import Imports
from agentlightning.platform.knowledge.indexing import Indexer
from agentlightning.platform.knowledge.meaning import Meaning
from agentlightning.platform.knowledge.models import KnowledgeItem, KnowledgeVersion
from agentlightning.platform.knowledge.repository import Draft, ItemRow
from agentlightning.platform.knowledge.textsearch import TextSearch
from agentlightning.platform.lookups import Lookups

Mode = Literal["hybrid", "text", "semantic"]

CACHED_S = 30 * 60.0
GOOD = 0.8
"""Score from which on a result is worth keeping."""
DEEPEST = 1_000
"""Places of a search that can be paged through."""

_RRF = 60  # Cormack, Clarke and Buettcher 2009
_FIRST = 100  # places that each way of search contributes, unless somebody pages beyond
_PREVIEW = 2_000


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What to look for; filters hold before anything is ranked."""

    q: str
    category: str | None = None
    tags: tuple[str, ...] = ()
    mode: Mode = "hybrid"
    limit: int = 10
    offset: int = 0

    @property
    def depth(self) -> int:
        """Places to fill, the same for the first pages so that they fit together."""
        return _FIRST if self.offset + self.limit <= _FIRST else DEEPEST


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task that somebody has judged.

    Attributes:
        task_id: Of the task.
        task: What was asked.
        result: What came out.
        score: Of the feedback, 0 to 1; `None` is no feedback.
        agent: Who did it.
        rollout_id: Where it was traced.
        author: Who judged it.
    """

    task_id: int | str
    task: str
    result: str
    score: float | None
    agent: str = ""
    rollout_id: str | None = None
    author: str = "system"


@dataclass(frozen=True, slots=True)
class Grown:
    """What became of it: `added`, or why not (`not_rated`, `below_threshold`, `too_short`, `duplicate`)."""

    outcome: str
    item_id: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


class KnowledgeService:
    """Knowledge over a database.

    Args:
        database: Where it is.
        cache: Keeps results of searches for half an hour.
        embedder: Turns texts into vectors.
        folder: For the index of vectors, where the database has none.
    """

    def __init__(self, database: Database, cache: Cache, embedder: Embedder, folder: Path) -> None:
        self._database = database
        self._cache = cache
        self._lookups = Lookups(database)
        self._words = TextSearch(is_sqlite=database.is_sqlite)
        self.meaning = Meaning(database, self._lookups, embedder, folder)
        self.indexer = Indexer(database, embedder, self.meaning)
        self.imports = Imports(database, self.indexer.wake)
        self._searches = Together[dict[str, Any]]()
        """After each write nothing is cached, and what many ask for they ask for at once."""
        self.hits = 0
        self.misses = 0

    async def create(self, draft: Draft, by: str) -> KnowledgeItem:
        """A new item."""
        async with self._database.write() as session:
            (made,) = await repository.add(session, [draft], by)
            note(session, "knowledge.create", f"knowledge/{made.id}", title=made.title[:100])
        self.indexer.wake()
        return made

    async def get(self, item_id: int) -> KnowledgeItem:
        """An item.

        Raises:
            NotFoundError: There is none.
        """
        async with self._database.read() as session:
            return await repository.item(session, item_id)

    async def look(self, item_id: int) -> ItemRow:
        """As `get`, for whoever only looks.

        Raises:
            NotFoundError: There is none.
        """
        found = await self._lookups.rows(repository.LOOK, {"item": item_id}) if 0 < item_id <= MAX_NUMBER else []
        if not found:
            raise repository.unknown()
        return ItemRow(*found[0])

    async def update(
        self, item_id: int, change: Callable[[KnowledgeItem], Draft], by: str, expected: int | None = None
    ) -> KnowledgeItem:
        """Change an item; what it was stays among its versions.

        Args:
            item_id: Which one.
            change: What it is to be, made of what it is.
            by: Who changes it.
            expected: The version that the change was made for; `None` changes whatever is there.

        Raises:
            NotFoundError: There is none.
            ConflictError: It has another version; `details` say which, and what it holds.
        """
        async with self._database.write() as session:
            found = await repository.item(session, item_id, lock=True)
            if expected is not None and expected != found.version:
                raise ConflictError(
                    f"The item has version {found.version}, not {expected}.",
                    hint="Look at what is there now, and send your change for that version.",
                    details={"version": found.version, "current": plain(found)},
                )
            await repository.change(session, found, change(found), by)
            note(session, "knowledge.update", f"knowledge/{item_id}", version=found.version)
        self.indexer.wake()
        return found

    async def delete(self, item_id: int, expected: int | None = None) -> None:
        """Remove an item and its versions.

        Raises:
            NotFoundError: There is none.
            ConflictError: It has another version than the expected one.
        """
        async with self._database.write() as session:
            found = await repository.item(session, item_id, lock=True)
            if expected is not None and expected != found.version:
                raise ConflictError(
                    f"The item has version {found.version}, not {expected}.",
                    details={"version": found.version, "current": plain(found)},
                )
            note(session, "knowledge.delete", f"knowledge/{item_id}", title=found.title[:100], version=found.version)
            await repository.remove(session, [item_id])
        await self.meaning.forget([item_id])

    async def page(
        self, after: int, limit: int, category: str | None = None, tags: Sequence[str] = ()
    ) -> list[KnowledgeItem]:
        """Items by number."""
        async with self._database.read() as session:
            return await repository.page(session, after, limit, category, tags)

    async def versions(self, item_id: int, before: int | None, limit: int) -> list[KnowledgeVersion]:
        """What an item was, newest first.

        Raises:
            NotFoundError: There is none.
        """
        async with self._database.read() as session:
            await repository.item(session, item_id)
            return await repository.versions(session, item_id, before, limit)

    async def find(self, query: SearchQuery) -> dict[str, Any]:
        """Search. `{"items": [{"item", "score", "text_rank", "semantic_rank", "similarity", "highlights"}], "total",
        "mode", "cached"}`; `total` counts what was ranked, not what there is.
        """
        generation = await self._lookups.first(repository.GENERATION, {}) or (0,)
        key = f"knowledge:search:{self._hash(query, generation)}"
        kept = await self._cache.get(key)
        if kept is not None:
            self.hits += 1
            return {**orjson.loads(kept), "cached": True}
        self.misses += 1
        return {**await self._searches.run(key, lambda: self._find_and_keep(query, key)), "cached": False}

    async def _find_and_keep(self, query: SearchQuery, key: str) -> dict[str, Any]:
        found = await self._find(query)
        await self._cache.set(key, orjson.dumps(found), CACHED_S)
        return found

    async def search(self, query: str, limit: int = 5) -> list[dict[str, Any]]:
        """For agents: `[{"id", "title", "content", "score"}]`, best first; long contents are cut."""
        found = await self.find(SearchQuery(query[:1000], limit=max(1, min(limit, 50))))
        return [
            {
                "id": entry["item"]["id"],
                "title": entry["item"]["title"],
                "content": entry["item"]["content"],
                "score": entry["score"],
            }
            for entry in found["items"]
        ]

    async def grow_from(self, result: TaskResult, *, threshold: float = GOOD) -> Grown:
        """Keep a task's result if it was judged good and is not known already; the item says where it came from."""
        if result.score is None:
            return Grown("not_rated")
        if result.score < threshold:
            return Grown("below_threshold", details={"score": result.score, "threshold": threshold})
        task, answer = _clean(result.task), _clean(result.result)
        if len(texts.query_words(answer)) < 5:
            return Grown("too_short")
        draft = Draft(
            title=(task.split("\n")[0] or "Result")[:200],
            content=f"{answer}\n\nAsked: {task[:4000]}",
            category="experience",
            tags=tuple(dict.fromkeys(("task result", *([result.agent[:100]] if result.agent else [])))),
            metadata={
                "task_id": result.task_id,
                "rollout_id": result.rollout_id,
                "agent": result.agent,
                "score": result.score,
                "rated_by": result.author,
            },
            source=f"task:{result.task_id}"[:700],
        )
        async with self._database.write() as session:
            known = await repository.ids_of_source(session, draft.source or "")
            alike = await repository.alike(session, draft.text)
            if known or alike is not None:
                number, share = alike or (known[0], 1.0)
                return Grown("duplicate", number, {"likeness": round(share, 3)})
            (made,) = await repository.add(session, [draft], result.author[:255])
            note(session, "knowledge.grow", f"knowledge/{made.id}", task=str(result.task_id), score=result.score)
        self.indexer.wake()
        return Grown("added", made.id)

    async def status(self) -> dict[str, Any]:
        """Which indexes there are, what waits for its vector, and how the cache does."""
        async with self._database.read() as session:
            waiting = await repository.count_pending(session, self.meaning.embedder.name)
        asked = self.hits + self.misses
        return {
            "embedder": self.meaning.embedder.name,
            "text_index": "fts5" if self._database.is_sqlite else "tsvector",
            "vector_index": await self.meaning.kind(),
            "waiting_for_vectors": waiting,
            "embedding_error": self.indexer.error,
            "cache_hit_rate": self.hits / asked if asked else None,
        }

    async def close(self) -> None:
        """Stop what runs in the background."""
        await self.imports.close()
        await self.indexer.close()
        await self.meaning.close()

    async def _find(self, query: SearchQuery) -> dict[str, Any]:
        words = texts.query_words(query.q)
        ways: list[Awaitable[list[tuple[int, float]]]] = []
        if query.mode != "semantic":
            ways.append(self._by_words(words, query))
        if query.mode != "text":
            ways.append(self.meaning.find(query.q, query.depth, query.category, query.tags))
        rankings = await asyncio.gather(*ways)
        fused = fuse([[number for number, _ in ranking] for ranking in rankings])
        wanted = fused[query.offset : query.offset + query.limit]
        async with self._database.read() as session:
            items = await repository.items_of(session, [number for number, _ in wanted])
        gone = [number for number, _ in wanted if number not in items]
        if gone:  # removed elsewhere; this page is short, the next search is not
            await self.meaning.forget(gone)
        by_words = (
            {number: place for place, (number, _) in enumerate(rankings[0], 1)} if query.mode != "semantic" else {}
        )
        meant = rankings[-1] if query.mode != "text" else []
        by_meaning = {number: (place, likeness) for place, (number, likeness) in enumerate(meant, 1)}
        entries = [
            {
                "item": plain(items[number], preview=_PREVIEW),
                "score": round(score, 6),
                "text_rank": by_words.get(number),
                "semantic_rank": by_meaning.get(number, (None, None))[0],
                "similarity": _rounded(by_meaning.get(number, (None, None))[1]),
                "highlights": texts.highlights(items[number].content, words),
            }
            for number, score in wanted
            if number in items
        ]
        return {"items": entries, "total": len(fused), "mode": query.mode}

    async def _by_words(self, words: Sequence[str], query: SearchQuery) -> list[tuple[int, float]]:
        async with self._database.read() as session:
            found = await self._words.find(session, words, query.category, query.tags, query.depth)
        return [(number, 0.0) for number in found]

    def _hash(self, query: SearchQuery, generation: tuple[Any, ...]) -> str:
        what = [
            query.q,
            query.category,
            sorted(set(query.tags)),
            query.mode,
            query.limit,
            query.offset,
            list(generation),
            self.meaning.embedder.name,
        ]
        return hashlib.sha256(orjson.dumps(what)).hexdigest()


def fuse(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """Reciprocal rank fusion; a single ranking keeps its order."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for place, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + 1.0 / (_RRF + place)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def plain(item: KnowledgeItem | ItemRow, *, preview: int | None = None) -> dict[str, Any]:
    """As JSON; times are Unix seconds."""
    content = item.content if preview is None else item.content[:preview]
    return {
        "id": item.id,
        "title": item.title,
        "content": content,
        "truncated": len(content) < len(item.content),
        "category": item.category,
        "tags": item.tags,
        "metadata": item.about,
        "source": item.source,
        "version": item.version,
        "created_at": item.created_at.timestamp(),
        "updated_at": item.updated_at.timestamp(),
        "created_by": item.created_by,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _clean(text: str) -> str:
    """Without what PostgreSQL does not keep."""
    return text.replace("\0", "").encode("utf-8", "replace").decode().strip()[:100_000]
