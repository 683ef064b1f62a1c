"""Search by words, in the database's own index: FTS5 with BM25 on SQLite, tsvector with ts_rank on PostgreSQL.

Ranking costs time for every item that matches, and common words match everywhere. So a query is planned: the rare words
choose the candidates, and common ones are left out where there are rarer ones. How common a word is, the index says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.platform.knowledge.texts import FACET_DIGITS, facet

CANDIDATES = 10_000
"""Items that the words of a query may choose."""
RANKED = 4_000
"""Of those the newest ones, which SQLite ranks: 3 microseconds each."""
COUNTED_FOR_RANKING = 120_000
"""Hits of common words that may be counted before the first one is ranked; beyond, the newest come first."""
_COUNTED = 1_000
_KEPT_S = 300.0
_MAX_KEPT = 50_000


class TextSearch:
    """Finds numbers of items by words. Knows what it has learned of words for five minutes.

    Args:
        is_sqlite: Whether the database is SQLite.
    """

    def __init__(self, *, is_sqlite: bool) -> None:
        self._is_sqlite = is_sqlite
        self._known: dict[str, tuple[float, float]] = {}

    async def find(
        self, session: AsyncSession, words: Sequence[str], category: str | None, tags: Sequence[str], limit: int
    ) -> list[int]:
        """Items that hold words of the query, best first; only those with the category and all the tags."""
        filters = [facet("tag", tag) for tag in tags]
        if category is not None:
            filters.append(facet("category", category))
        if not words:
            return []
        share = self._sqlite_share if self._is_sqlite else self._postgres_share
        counts = await share(session, [*words, *filters])
        if any(counts[name] == 0 for name in filters):
            return []
        # What the filters leave is what the words choose from.
        left = min((counts[name] for name in filters), default=float("inf"))
        chosen = choose({word: min(counts[word], left) for word in words})
        if not chosen:
            return []
        run = self._on_sqlite if self._is_sqlite else self._on_postgres
        return await run(session, chosen, filters, limit)

    async def _on_sqlite(
        self, session: AsyncSession, chosen: tuple[str, list[str]], filters: list[str], limit: int
    ) -> list[int]:
        match = sqlite_match(chosen, filters)
        # Of matches beyond the budget the newest are looked at.
        query = "SELECT rowid FROM knowledge_fts WHERE knowledge_fts MATCH :match ORDER BY rowid DESC LIMIT :limit"
        if chosen[0] == "newest":
            return list((await session.execute(text(query), {"match": match, "limit": limit})).scalars())
        query = (
            "SELECT rowid FROM (SELECT rowid, bm25(knowledge_fts, 4.0, 1.0, 0.0) AS rank_ FROM knowledge_fts"
            " WHERE knowledge_fts MATCH :match ORDER BY rowid DESC LIMIT :most) ORDER BY rank_ LIMIT :limit"
        )
        found = await session.execute(text(query), {"match": match, "most": RANKED, "limit": limit})
        return list(found.scalars())

    async def _on_postgres(
        self, session: AsyncSession, chosen: tuple[str, list[str]], filters: list[str], limit: int
    ) -> list[int]:
        words = chosen[1]
        operator = "|" if chosen[0] == "|" else "&"
        found = await session.execute(
            text(POSTGRES_SEARCH),
            {
                "words": f" {operator} ".join(words),
                "filters": " & ".join(filters),
                "most": CANDIDATES,
                "limit": limit,
            },
        )
        return list(found.scalars())

    async def _sqlite_share(self, session: AsyncSession, words: Sequence[str]) -> dict[str, float]:
        """About how many items hold each word: counted up to a point, and from there on by how far that point is."""
        moment = time.monotonic()
        counts: dict[str, float] = {}
        asked = [word for word in words if self._known.get(word, (0.0, 0.0))[0] < moment]
        rows: dict[str, Any] = {}
        if asked:  # all in one statement: each is a detour over the driver's thread
            statement = " UNION ALL ".join(SQLITE_COUNT.replace(":match", f":match{n}") for n in range(len(asked)))
            values = {f"match{n}": f'"{word}"' for n, word in enumerate(asked)}
            found = await session.execute(text(statement), {**values, "most": _COUNTED})
            rows = dict(zip(asked, found, strict=True))
        for word in words:
            kept = self._known.get(word, (0.0, 0.0))
            if word in rows:
                count, reached, last = rows[word]
                kept = (moment + _KEPT_S, count if count < _COUNTED else count * last / max(1, reached))
                if count >= _COUNTED:  # rare words are counted at once, and may be there a moment later
                    if len(self._known) > _MAX_KEPT:
                        self._known.clear()
                    self._known[word] = kept
            counts[word] = kept[1]
        return counts

    async def _postgres_share(self, session: AsyncSession, words: Sequence[str]) -> dict[str, float]:
        """By the table's statistics: they know the most common ones, and any other is rare."""
        moment = time.monotonic()
        if self._known.get("", (0.0, 0.0))[0] < moment:
            rows = await session.execute(text(POSTGRES_COMMON))
            self._known = {str(row[0]): (moment + _KEPT_S, float(row[1])) for row in rows}
            # What is not among the common ones is rarer than they are.
            rare = min((count for _, count in self._known.values()), default=1.0)
            self._known[""] = (moment + _KEPT_S, max(1.0, rare))
        stems = await session.execute(text(POSTGRES_STEMS), {"words": list(words)})
        counts: dict[str, float] = {}
        for word, stem in stems:
            if stem is None or stem:  # an empty list is a word that says nothing
                counts[word] = self._known.get(stem[0] if stem else word, self._known[""])[1]
        return {word: counts.get(word, 0.0) for word in words}


SQLITE_COUNT = (
    "SELECT count(*), max(rowid), (SELECT seq FROM sqlite_sequence WHERE name = 'knowledge_items')"
    " FROM (SELECT rowid FROM knowledge_fts WHERE knowledge_fts MATCH :match LIMIT :most)"
)

POSTGRES_SEARCH = """
    WITH asked AS (SELECT to_tsquery('english', :words) AS words, to_tsquery('simple', :filters) AS filters),
    found AS MATERIALIZED (
        SELECT id, ts_rank(ARRAY[0, 0.1, 0.4, 1.0]::float4[], search, (SELECT words FROM asked), 1) AS rank_
        FROM knowledge_items
        WHERE search @@ (SELECT CASE WHEN numnode(filters) > 0 THEN words && filters ELSE words END FROM asked)
        LIMIT :most
    )
    SELECT id FROM found ORDER BY rank_ DESC, id LIMIT :limit
"""

POSTGRES_COMMON = """
    SELECT word, share * greatest(total, 1) FROM (
        SELECT most_common_elems::text::text[] AS words, most_common_elem_freqs AS shares,
            (SELECT reltuples FROM pg_class WHERE oid = 'knowledge_items'::regclass) AS total
        FROM pg_stats WHERE schemaname = current_schema AND tablename = 'knowledge_items' AND attname = 'search'
    ) AS kept, LATERAL unnest(words, shares[1:cardinality(words)]) AS each(word, share)
"""

POSTGRES_STEMS = "SELECT word, ts_lexize('english_stem', word) FROM unnest(CAST(:words AS text[])) AS word"


def choose(counts: dict[str, float]) -> tuple[str, list[str]] | None:
    """`|` and the words of which any will do; `&` and those that all have to be there, `newest` if ranking them would
    cost too much; `None` if none is known.
    """
    known = sorted((count, word) for word, count in counts.items() if count > 0)
    taken: list[str] = []
    total = 0.0
    for count, word in known:
        if total + count > CANDIDATES:
            break
        taken.append(word)
        total += count
    if taken:
        return "|", taken
    # All are common, and BM25 first counts each of them in the whole index: as many as that is worth, the rarest first.
    total = 0.0
    for count, word in known:
        if taken and total + count > COUNTED_FOR_RANKING:
            break
        taken.append(word)
        total += count
    if not taken:
        return None
    return ("&" if total <= COUNTED_FOR_RANKING else "newest"), taken


def sqlite_match(chosen: tuple[str, list[str]], filters: Sequence[str]) -> str:
    """The FTS5 query. Words are quoted, so that none is an operator or a column."""
    operator, words = chosen
    wanted = (" OR " if operator == "|" else " AND ").join(f'"{word}"' for word in words)
    if any(len(word) == FACET_DIGITS and word.isdigit() for word in words):  # else none can be meant for a facet
        wanted = f"{{title content}} : ({wanted})"
    return " AND ".join([f"({wanted})", *(f'facets : "{name}"' for name in filters)])


def explained(*, is_sqlite: bool) -> dict[str, Any]:
    """The queries with values to try them, for whoever wants to see their plans."""
    if is_sqlite:
        match = sqlite_match(("|", ["cache"]), [facet("tag", "docs")])
        return {"count": (SQLITE_COUNT, {"match": match, "most": _COUNTED})}
    values = {"words": "cache", "filters": facet("tag", "docs"), "most": CANDIDATES, "limit": 10}
    return {"search": (POSTGRES_SEARCH, values)}
