"""Tables of knowledge: items, all that they were, their vectors, and where imported ones came from."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from agentlightning.platform.auth.models import NUMBER
from agentlightning.platform.columns import DOCUMENT, Moment
from agentlightning.platform.database import Base

TAGS = JSON().with_variant(ARRAY(Text), "postgresql")
_NEVER_AGAIN = {"sqlite_autoincrement": True}


class KnowledgeItem(Base):
    """An item as it is now. Its text index is the database's own: FTS5, or a generated tsvector."""

    __tablename__ = "knowledge_items"
    __table_args__ = (
        Index("idx_knowledge_category", "category", "id"),
        Index("ix_knowledge_items_embedded_by", "embedded_by", "id"),
        Index("ix_knowledge_items_source", "source"),
        Index("ix_knowledge_items_content_hash", "content_hash"),
        _NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    title: Mapped[str] = mapped_column(String(500))
    content: Mapped[str] = mapped_column(Text)
    category: Mapped[str | None] = mapped_column(String(100))
    tags: Mapped[list[str]] = mapped_column(TAGS, default=list)
    about: Mapped[dict[str, Any]] = mapped_column("metadata", DOCUMENT, default=dict)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)
    created_by: Mapped[str] = mapped_column(String(255))
    version: Mapped[int] = mapped_column(Integer, default=1)
    content_hash: Mapped[str] = mapped_column(String(64))
    """SHA-256 of title and content."""
    source: Mapped[str | None] = mapped_column(String(700))
    """What it was imported from, as `knowledge_sources` names it."""
    facets: Mapped[str] = mapped_column(Text, default="")
    """Category and tags as numbers that the text index can look up."""
    embedded_by: Mapped[str] = mapped_column(String(100), default="")
    """Embedder of its vector; empty while it has none."""


class KnowledgeVersion(Base):
    """What an item was, or is. Never changed."""

    __tablename__ = "knowledge_versions"

    item_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("knowledge_items.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(500))
    content: Mapped[str] = mapped_column(Text)
    category: Mapped[str | None] = mapped_column(String(100))
    tags: Mapped[list[str]] = mapped_column(TAGS)
    about: Mapped[dict[str, Any]] = mapped_column("metadata", DOCUMENT)
    created_at: Mapped[datetime] = mapped_column(Moment)
    created_by: Mapped[str] = mapped_column(String(255))


class KnowledgeTag(Base):
    """A tag of an item."""

    __tablename__ = "knowledge_tags"
    __table_args__ = (Index("ix_knowledge_tags_item_id", "item_id"),)

    tag: Mapped[str] = mapped_column(String(100), primary_key=True)
    item_id: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("knowledge_items.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )


class KnowledgeVector(Base):
    """An item's vector, as half-precision numbers; `no` counts up with every vector that is written."""

    __tablename__ = "knowledge_vectors"
    __table_args__ = (Index("ix_knowledge_vectors_no", "embedder", "no"),)

    item_id: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("knowledge_items.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    embedder: Mapped[str] = mapped_column(String(100))
    no: Mapped[int] = mapped_column(BigInteger)
    vector: Mapped[bytes] = mapped_column(LargeBinary)


class KnowledgeBand(Base):
    """Part of an item's MinHash signature: items that share one may be alike."""

    __tablename__ = "knowledge_bands"
    __table_args__ = (Index("ix_knowledge_bands_item_id", "item_id"),)

    band: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    item_id: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("knowledge_items.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )


class KnowledgeSource(Base):
    """Something that was imported, and what it was like then: what has not changed is not read again."""

    __tablename__ = "knowledge_sources"

    source: Mapped[str] = mapped_column(String(700), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64))
    items: Mapped[int] = mapped_column(Integer)
    imported_at: Mapped[datetime] = mapped_column(Moment)


class KnowledgeImport(Base):
    """An import that runs, or ran, in the background."""

    __tablename__ = "knowledge_imports"
    __table_args__ = (_NEVER_AGAIN,)

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    report: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    started_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)
    created_by: Mapped[str] = mapped_column(String(255))


class KnowledgeState(Base):
    """One row. `generation` counts up with every change of what a search can find."""

    __tablename__ = "knowledge_state"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(String(32))
    """Of this database, so that an index on disk is never taken for another one's."""
    generation: Mapped[int] = mapped_column(BigInteger)
    last_no: Mapped[int] = mapped_column(BigInteger)
    """Of the vector written last."""
