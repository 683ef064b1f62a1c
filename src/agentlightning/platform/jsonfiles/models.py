"""The ledger of records that were migrated from JSON files: what makes a second run change nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from agentlightning.platform.auth.models import NUMBER
from agentlightning.platform.columns import DOCUMENT, Moment
from agentlightning.platform.database import Base


class JsonRecord(Base):
    """A record as it was read, and the row that it became. Passwords' hashes are not kept here."""

    __tablename__ = "json_records"
    __table_args__ = (Index("ix_json_records_old_id", "kind", "old_id"),)

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of kind and content."""
    kind: Mapped[str] = mapped_column(String(32))
    old_id: Mapped[str] = mapped_column(String(255))
    """By which other records name it."""
    row_id: Mapped[int] = mapped_column(NUMBER)
    """Of the table of its kind."""
    record: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    left_out: Mapped[list[str]] = mapped_column(DOCUMENT)
    """What the tables have no place for."""
    file: Mapped[str] = mapped_column(Text)
    place: Mapped[int] = mapped_column(Integer)
    migrated_at: Mapped[datetime] = mapped_column(Moment)
