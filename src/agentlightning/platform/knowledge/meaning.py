"""Search by meaning: the query's vector, and the index of vectors that this database allows."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentlightning.platform.database import Database
from agentlightning.platform.embedding.base import Embedder
from agentlightning.platform.knowledge import repository
from agentlightning.platform.knowledge.pgvectors import PgVectors
from agentlightning.platform.knowledge.vectors import FEW, LocalIndex
from agentlightning.platform.lookups import Lookups

if TYPE_CHECKING:
    from agentlightning.platform.embedding.base import Matrix

_KEPT = 4_096
_WIDER = 1.5  # times as many neighbours are asked for as should do, going by how many passed the filters
_WIDEST = 16
_MOST = 20_000
_MANY_S = 60.0


class Meaning:
    """Finds items whose text means something alike.

    Args:
        folder: Of the index's file, where the database has no index for vectors.
    """

    def __init__(self, database: Database, lookups: Lookups, embedder: Embedder, folder: Path) -> None:
        self._database = database
        self._lookups = lookups
        self.embedder = embedder
        self._folder = folder
        self._local: LocalIndex | None = None
        self._inside: PgVectors | None = None
        self._opening = asyncio.Lock()
        self._queries: OrderedDict[str, Matrix] = OrderedDict()
        self._many: dict[tuple[str | None, tuple[str, ...]], float] = {}

    async def index(self) -> LocalIndex | PgVectors:
        """The index; made at the first use."""
        async with self._opening:
            if self._local is None and self._inside is None:
                schema = None if self._database.is_sqlite else await PgVectors.schema_of(self._database)
                name, dimension = self.embedder.name, self.embedder.dimension
                if schema is not None:
                    self._inside = PgVectors(self._database, schema, name, dimension)
                    await self._inside.prepare()
                else:
                    self._local = LocalIndex(self._database, self._lookups, self._folder, name, dimension)
            found = self._inside or self._local
            assert found is not None
            return found

    async def kind(self) -> str:
        """What the index is."""
        return (await self.index()).kind

    async def find(
        self, text: str, limit: int, category: str | None = None, tags: Sequence[str] = ()
    ) -> list[tuple[int, float]]:
        """`(item, cosine similarity)`, best first, only with the category and all the tags."""
        vector = await self._vector(text)
        index = await self.index()
        if isinstance(index, PgVectors):
            return await index.search(vector, limit, category, tags)
        if category is None and not tags:
            return await index.search(vector, limit)
        few = await self._few(category, tags)
        if few is not None:
            return await index.search(vector, limit, few)
        return await self._among_many(index, vector, limit, category, tags)

    async def forget(self, items: Sequence[int]) -> None:
        """These are gone."""
        if self._local is not None:
            await self._local.forget(items)

    async def close(self) -> None:
        """Let go of the index and the model."""
        if self._local is not None:
            await self._local.close()
        await self.embedder.close()

    async def _few(self, category: str | None, tags: Sequence[str]) -> list[int] | None:
        """The items that pass the filters; `None` if they are many, or were a moment ago."""
        key = (category, tuple(sorted(set(tags))))
        if self._many.get(key, 0.0) > time.monotonic():
            return None
        async with self._database.read() as session:
            few = await repository.filtered_ids(session, category, tags, FEW)
        if few is None:
            if len(self._many) >= _KEPT:
                self._many.clear()
            self._many[key] = time.monotonic() + _MANY_S
        return few

    async def _among_many(
        self, index: LocalIndex, vector: Matrix, limit: int, category: str | None, tags: Sequence[str]
    ) -> list[tuple[int, float]]:
        """Ever more neighbours, until enough of them pass the filters."""
        wanted = limit * 4
        while True:
            near = await index.search(vector, wanted)
            async with self._database.read() as session:
                passing = await repository.passing(session, [number for number, _ in near], category, tags)
            found = [pair for pair in near if pair[0] in passing]
            if len(found) >= limit or len(near) < wanted or wanted >= _MOST:
                return found[:limit]
            should = round(wanted * _WIDER * limit / max(1, len(found)))
            wanted = min(_MOST, wanted * _WIDEST, max(should, wanted * 2))

    async def _vector(self, text: str) -> Matrix:
        kept = self._queries.get(text)
        if kept is None:
            kept = (await self.embedder.embed([text]))[0]
            self._queries[text] = kept
            if len(self._queries) > _KEPT:
                self._queries.popitem(last=False)
        return kept
