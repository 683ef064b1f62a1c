"""Where things live and how processes are reached; from the environment (`AGL_*`) with defaults that need nothing."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Process-wide settings, e.g. `AGL_HOME=/data/agl`."""

    model_config = SettingsConfigDict(env_prefix="AGL_", extra="ignore")

    home: Path = Path(".agentlightning")
    """Folder of the store, runs, checkpoints and models."""
    store: str | None = None
    """File, or `postgresql://` URL, of the store; without it `store.db` in `home`."""
    max_value_bytes: int = Field(default=256 * 2**20, ge=1024)
    """The largest input, metadata, span or resource that a store takes, bytes."""
    host: str = "127.0.0.1"
    port: int = 0
    """Port of gateway and store; 0 takes a free one."""

    @property
    def store_location(self) -> str:
        """Where the store is: a file or a `postgresql://` URL."""
        return self.store or str(self.home / "store.db")

    @property
    def runs_path(self) -> Path:
        """Folder that holds one folder per run."""
        return self.home / "runs"

    @property
    def models_path(self) -> Path:
        """Folder of registered model versions."""
        return self.home / "models"
