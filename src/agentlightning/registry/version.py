"""What is known of a model version: its lineage, which never changes, and its stage, which does. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

Stage = Literal["candidate", "production", "archived"]
Action = Literal["promote", "rollback", "archive", "delete"]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One registered version."""

    name: str
    version: str
    path: Path
    base: str
    """What it was made from: a path, a hub id or a registered version."""
    run_id: str
    step: int
    created_at: float
    """Unix seconds."""
    stage: Stage = "candidate"
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    parent: str | None = None
    """The registered version it was trained from (`name@version`), if it was one."""

    @property
    def ref(self) -> str:
        """`name@version`, as commands take it."""
        return f"{self.name}@{self.version}"

    @property
    def number(self) -> int:
        """3 for `v3`."""
        return int(self.version[1:])


class StageChange(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a model's history."""

    action: Action
    version: str
    stage: str
    """The stage of `version` after it; `deleted` when it was deleted."""
    replaced: str | None = None
    """The version that was in production before, where that changed."""
    at: float
    """Unix seconds."""
    reason: str = ""


class Ledger(msgspec.Struct, kw_only=True):
    """The changing part of a model: one file, written atomically, so that the stages of all versions agree."""

    format: int = 1
    next_number: int = 1
    """Numbers of deleted versions are not used again."""
    production: str | None = None
    previous: list[str] = []
    """Earlier production versions, oldest first: what a rollback goes back through."""
    archived: list[str] = []
    deleted: list[str] = []
    history: list[StageChange] = []

    def stage_of(self, version: str) -> Stage:
        """Where a version stands."""
        if version == self.production:
            return "production"
        return "archived" if version in self.archived else "candidate"

    def put_in_production(self, version: str) -> None:
        """Make `version` the one in production; the one that was is archived."""
        self.archived = [v for v in self.archived if v != version]
        if self.production is not None:
            self.archived.append(self.production)
        self.production = version

    def take_out(self, version: str) -> None:
        """Archive `version`."""
        if self.production == version:
            self.production = None
        if version not in self.archived:
            self.archived.append(version)

    def forget(self, version: str) -> None:
        """Delete `version`; only the history still knows it."""
        if self.production == version:
            self.production = None
        stack = [v for v in self.previous if v != version]
        # Two promotions of one version that now stand beside each other are one.
        following = [*stack[1:], self.production]
        self.previous = [v for v, after in zip(stack, following, strict=True) if v != after] if stack else []
        self.archived = [v for v in self.archived if v != version]
        self.deleted.append(version)
