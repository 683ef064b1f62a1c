"""Settings of the platform, from the environment. Secrets never show in a representation of them."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agentlightning.config import Settings
from agentlightning.kit.errors import ConfigError

Names = Annotated[tuple[str, ...], NoDecode]
"""Comma-separated in the environment."""


class PlatformSettings(BaseSettings):
    """Read from `AGL_*`, and `DATABASE_URL` and `REDIS_URL`; arguments win over the environment."""

    model_config = SettingsConfigDict(
        env_prefix="AGL_", extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    home: Path = Field(default_factory=lambda: Settings().home)
    """Folder of the database and of generated secrets."""
    database_url: SecretStr | None = Field(default=None, validation_alias="DATABASE_URL")
    """`sqlite:///FILE` or `postgresql://...?schema=NAME`; without it `platform.db` in `home`."""
    redis_url: SecretStr | None = Field(default=None, validation_alias="REDIS_URL")
    """`redis://...`; without it what would be there is kept in this process."""
    jwt_secrets: SecretStr | None = None
    """`KID:SECRET`, comma-separated: the first signs, all verify. Without it generated ones from `home`."""
    secret_key: SecretStr | None = None
    """At least 32 characters, from which the key for stored secrets is made (AES-256-GCM)."""
    old_secret_keys: SecretStr | None = None
    """Earlier values of `secret_key`, comma-separated: what was stored with them can be read still."""

    access_token_s: int = Field(default=900, ge=1, le=86_400)
    refresh_token_s: int = Field(default=14 * 86_400, ge=2)
    """An unused login ends after so many seconds."""
    session_s: int = Field(default=30 * 86_400, ge=2)
    """Every login ends after so many seconds, used or not."""

    requests_per_minute: int = Field(default=1200, ge=1)
    """Of one user or API key."""
    anonymous_per_minute: int = Field(default=300, ge=1)
    """Of one address, without a valid token or key."""
    login_attempts: int = Field(default=10, ge=1)
    """Failed logins to one account from one address within `login_window_s` before it is locked for that address."""
    login_attempts_per_account: int = Field(default=100, ge=1)
    """From all addresses together: so many, because whoever knows a name can use them up."""
    login_attempts_per_address: int = Field(default=50, ge=1)
    login_window_s: int = Field(default=900, ge=1)
    max_body_bytes: int = Field(default=2**20, ge=1024)
    model_calls_per_minute: int = Field(default=6_000, ge=1)
    """Calls of models by one user or API key, besides `requests_per_minute`."""
    max_model_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    records_per_minute: int = Field(default=30_000, ge=1)
    """Requests of one user or API key to the store, e.g. a runner's reports."""
    max_record_body_bytes: int = Field(default=64 * 2**20, ge=1024)

    store: str | None = None
    """File or URL of the store; without it beside the platform's own tables: a schema, or `store.db` in `home`."""
    default_model: str | None = None
    """Model of agents that name none; without it the first one configured."""

    task_workers_min: int = Field(default=2, ge=1)
    """Tasks that a process always has room for; with the queue the room grows up to `task_workers_max`."""
    task_workers_max: int = Field(default=16, ge=0)
    """Most tasks at once in a process; 0 leaves all tasks to other processes."""
    kept_candidates: int = Field(default=5, ge=1)
    """Models that experiments made of one agent and that never went into production: so many of the newest stay."""
    tasks_per_agent: int = Field(default=8, ge=1)
    """Most tasks of one agent at once, in all processes."""
    tasks_per_user: int = Field(default=1_000, ge=1)
    """Most unfinished tasks of one user."""
    task_attempts: int = Field(default=3, ge=1)
    task_ageing_s: float = Field(default=60.0, ge=0)
    """A task that has waited so long counts as one level (of ten) more urgent; 0 runs tasks in their order."""
    task_timeout_s: float = Field(default=3_600.0, gt=0)
    """The longest that one attempt may be given."""
    task_deadline_s: float = Field(default=86_400.0, gt=0)
    """A task that has not ended after so long fails, wherever it is."""
    task_lease_s: float = Field(default=30.0, gt=0)
    """After so long without a sign of life of the process that runs it, another one runs a task."""
    events_kept_s: float = Field(default=7 * 86_400.0, gt=0)
    """How far back events can be replayed."""

    mask: str | None = None
    """What is masked in log lines, audit details, kept errors and the records of model calls: `all`, or kinds."""
    mask_phone_regions: Names = ()
    """Countries (`DE`) whose phone numbers are found without their prefix, too."""

    trusted_proxies: Names = ()
    """Networks (`10.0.0.0/8`) whose `X-Forwarded-For` is believed."""
    cors_origins: Names = ()
    """Origins (`https://app.example`) whose pages may call; none by default."""
    allowed_hosts: Names = ()
    """Names under which the service is reached, besides `localhost`, this machine's name and bare addresses."""

    max_upload_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Of a file that is imported as knowledge."""
    uploads_per_minute: int = Field(default=60, ge=1)
    embedder: Literal["auto", "words", "minilm", "http"] = "auto"
    """What turns texts into vectors: MiniLM where its weights are installed, else vectors of words; or a server."""
    embedder_model: str = ""
    """Folder of MiniLM's weights, or the server's name of its model."""
    embedder_url: str = ""
    """Of the server, up to and with `/v1`."""
    embedder_key: SecretStr | None = None
    embedder_dimension: int | None = Field(default=None, ge=2, le=4000)

    @field_validator("trusted_proxies", "cors_origins", "allowed_hosts", "mask_phone_regions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(text, strict=False)) for text in value)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or "*" in origin:
                raise ValueError(f"{origin!r} is no origin; write https://app.example, without a path or *")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("*" in host or "/" in host or ":" in host for host in value):
            raise ValueError("allowed hosts are plain names: no *, no port, no path")
        return tuple(host.lower() for host in value)

    @property
    def location(self) -> str:
        """URL of the database; it may hold a password."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.home / 'platform.db').resolve()}"

    @property
    def store_location(self) -> str:
        """File or URL of the store; it may hold a password."""
        if self.store is not None:
            return self.store
        if not self.location.startswith("postgres"):
            return str(self.home / "store.db")
        url = self.location.replace("postgresql+psycopg://", "postgresql://", 1)
        return re.sub(r"([?&]schema=[^&]+)", r"\1_store", url)

    def per_minute(self, kind: str) -> int:
        """Most requests of one caller to routes of a kind."""
        numbers = {
            "model": self.model_calls_per_minute,
            "record": self.records_per_minute,
            "upload": self.uploads_per_minute,
        }
        return numbers.get(kind, self.requests_per_minute)

    def body_bytes(self, kind: str) -> int:
        """The largest body for routes of a kind."""
        numbers = {
            "model": self.max_model_body_bytes,
            "record": self.max_record_body_bytes,
            "upload": self.max_upload_bytes,
        }
        return numbers.get(kind, self.max_body_bytes)


def load_settings(**given: object) -> PlatformSettings:
    """From the environment and `given`.

    Raises:
        ConfigError: One of them cannot be used; the message does not repeat its value.
    """
    from pydantic import ValidationError

    try:
        return PlatformSettings(**given)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"The platform's settings cannot be used: {found}.") from None
