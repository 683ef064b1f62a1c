"""The one row of settings that were changed while the platform ran, and secrets that are kept encrypted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from agentlightning.platform.columns import DOCUMENT, Moment
from agentlightning.platform.database import Base


class SystemConfig(Base):
    """Values that win over the environment's; `version` counts changes."""

    __tablename__ = "system_config"
    __table_args__ = (CheckConstraint("id = 1", name="ck_system_config_one_row"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(Integer)
    config: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    updated_at: Mapped[datetime] = mapped_column(Moment)
    updated_by: Mapped[str] = mapped_column(String(255))


class StoredSecret(Base):
    """A secret under the name of the environment variable that it stands for."""

    __tablename__ = "stored_secrets"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    key_id: Mapped[str] = mapped_column(String(16))
    """Of the key that it is encrypted with."""
    updated_at: Mapped[datetime] = mapped_column(Moment)
    updated_by: Mapped[str] = mapped_column(String(255))
