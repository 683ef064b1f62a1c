"""Search by meaning inside PostgreSQL: pgvector's HNSW index over half-precision vectors, one for each embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.platform.database import Database
from agentlightning.platform.knowledge.texts import facet

if TYPE_CHECKING:
    from agentlightning.platform.embedding.base import Matrix

_EF_SEARCH = 120

PLACE = (
    "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    " AND to_regclass('knowledge_embeddings') IS NOT NULL"
)


class PgVectors:
    """Nearest vectors of one embedder, where the extension is.

    Args:
        schema: Of the extension.
        embedder: Name of the embedder.
        dimension: Length of its vectors, 4,000 at most.
    """

    kind = "pgvector hnsw"

    def __init__(self, database: Database, schema: str, embedder: str, dimension: int) -> None:
        self._database = database
        self._schema = schema
        self._embedder = embedder
        self._dimension = dimension
        self._is_ready = False

    @staticmethod
    async def schema_of(database: Database) -> str | None:
        """Where the extension is; `None` if this database does not have it."""
        async with database.read() as session:
            return (await session.execute(text(PLACE))).scalar()

    async def search(
        self, vector: Matrix, limit: int, category: str | None, tags: Sequence[str]
    ) -> list[tuple[int, float]]:
        """`(item, cosine similarity)`, best first; only items with the category and all the tags."""
        filters = [facet("tag", tag) for tag in tags] + ([facet("category", category)] if category is not None else [])
        async with self._database.read() as session:
            await session.execute(text(f"SET LOCAL hnsw.ef_search = {max(_EF_SEARCH, min(1000, limit))}"))
            if filters:
                await session.execute(text("SET LOCAL hnsw.iterative_scan = 'strict_order'"))
            rows = await session.execute(
                text(self.query(filtered=bool(filters))),
                {
                    "vector": "[" + ",".join(f"{value:.6g}" for value in vector.tolist()) + "]",
                    "embedder": self._embedder,
                    "filters": " & ".join(filters),
                    "limit": limit,
                },
            )
            return [(int(row[0]), 1.0 - float(row[1])) for row in rows]

    def query(self, *, filtered: bool) -> str:
        """The statement."""
        name, half = self._schema, f'"{self._schema}".halfvec({self._dimension})'
        distance = f'e.embedding::{half} OPERATOR("{name}".<=>) CAST(:vector AS {half})'
        # The embedder stands in the statement, as in the index: a parameter could be any.
        where = f"e.embedder = '{self._literal}' AND :embedder <> ''"
        join = ""
        if filtered:
            join = "JOIN knowledge_items i ON i.id = e.item_id "
            where += " AND i.search @@ to_tsquery('simple', :filters)"
        return (
            f"SELECT e.item_id, {distance} AS distance_ FROM knowledge_embeddings e {join}WHERE {where} "
            f"ORDER BY {distance} LIMIT :limit"
        )

    async def keep(self, session: AsyncSession, items: Sequence[int], vectors: Sequence[Matrix]) -> None:
        """Keep vectors, in the transaction that keeps their rows."""
        if not items:
            return
        statement = (
            "INSERT INTO knowledge_embeddings (item_id, embedder, embedding)"
            f' VALUES (:item, :embedder, CAST(:vector AS "{self._schema}".vector))'
            " ON CONFLICT (item_id) DO UPDATE SET embedder = excluded.embedder, embedding = excluded.embedding"
        )
        rows = [
            {
                "item": item,
                "embedder": self._embedder,
                "vector": "[" + ",".join(f"{value:.6g}" for value in vector.tolist()) + "]",
            }
            for item, vector in zip(items, vectors, strict=True)
        ]
        connection = await session.connection()
        await connection.execute(text(statement), rows)

    async def prepare(self) -> None:
        """Make the index of this embedder, if it is not there."""
        if self._is_ready:
            return
        name = f"knowledge_hnsw_{hashlib.sha256(self._embedder.encode()).hexdigest()[:12]}"
        half = f'"{self._schema}".halfvec({self._dimension})'
        try:
            async with self._database.write() as session:
                await session.execute(text("SET LOCAL statement_timeout = 0"))
                await session.execute(
                    text(
                        f"CREATE INDEX IF NOT EXISTS {name} ON knowledge_embeddings USING hnsw "
                        f'((embedding::{half}) "{self._schema}".halfvec_cosine_ops) '
                        f"WHERE embedder = '{self._literal}'"
                    )
                )
        except DBAPIError as error:
            if "already exists" not in str(error):  # another worker has just made it
                raise
        self._is_ready = True

    @property
    def _literal(self) -> str:
        return self._embedder.replace("'", "''").replace(":", "\\:")
