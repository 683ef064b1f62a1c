"""PostgreSQL for asyncio, with the same surface as `SqliteDatabase`; needs the extra `postgres`. Knows no tables."""

from agentlightning.kit.db.postgres.connection import Address
from agentlightning.kit.db.postgres.database import PostgresDatabase
from agentlightning.kit.db.postgres.schema import PostgresSchema

__all__ = ["Address", "PostgresDatabase", "PostgresSchema"]
