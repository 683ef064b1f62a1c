"""Versions of the agent's prompts on disk: which is at work, which is on trial. Knows no optimiser."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentlightning.integrations.tongyi.prompts import shipped_prompts
from agentlightning.kit.files import exclusive_lock, write_atomic
from agentlightning.schemas import PromptTemplate

logger = logging.getLogger(__name__)

FILE = "prompts.json"
LOCK_WAIT_S = 30.0


class PromptVersion(BaseModel):
    """Prompts that an optimisation found, and what is known of them."""

    model_config = ConfigDict(extra="ignore")

    version: int = Field(ge=1)
    prompts: dict[str, str]
    run_id: str
    optimizer: str
    created_at: float
    evidence: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Gain with its interval, number of queries, whether they were held out."""


class _Content(BaseModel):
    active: int = 0
    """At work; 0 are the prompts as shipped."""
    candidate: int | None = None
    """On trial beside it."""
    versions: list[PromptVersion] = Field(default_factory=list[PromptVersion])


class PromptBook:
    """The prompts of one training folder.

    Args:
        folder: Where `prompts.json` lies; nothing is made before there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / FILE

    @property
    def active(self) -> int:
        """The version at work."""
        return self._read().active

    @property
    def candidate(self) -> int | None:
        """The version on trial."""
        return self._read().candidate

    @property
    def versions(self) -> list[PromptVersion]:
        """All that were kept, the oldest first."""
        return self._read().versions

    def prompts(self, version: int) -> dict[str, PromptTemplate]:
        """The prompts of a version; those shipped for 0, and where a version has none."""
        found = next((entry for entry in self.versions if entry.version == version), None)
        shipped = shipped_prompts()
        return {**shipped, **{k: PromptTemplate(template=v) for k, v in (found.prompts if found else {}).items()}}

    def add(
        self, prompts: Mapping[str, str], *, run_id: str, optimizer: str, evidence: dict[str, Any], on_trial: bool
    ) -> int:
        """Keep new prompts, put them to work or on trial, and return their version.

        Raises:
            StorageError: They cannot be written.
        """
        with self._changing() as content:
            version = max((entry.version for entry in content.versions), default=0) + 1
            content.versions.append(
                PromptVersion(
                    version=version,
                    prompts=dict(prompts),
                    run_id=run_id,
                    optimizer=optimizer,
                    created_at=time.time(),
                    evidence=evidence,
                )
            )
            if on_trial:
                content.candidate = version
            else:
                content.active, content.candidate = version, None
        return version

    def decide(self, version: int, *, is_better: bool) -> None:
        """End the trial of a version: it goes to work, or not; a trial that is over changes nothing."""
        with self._changing() as content:
            if content.candidate != version:
                return
            content.candidate = None
            if is_better:
                content.active = version

    @contextmanager
    def _changing(self) -> Generator[_Content]:
        with exclusive_lock(self.folder / ".prompts.lock", purpose="Prompts", wait_s=LOCK_WAIT_S):
            content = self._read()
            yield content
            write_atomic(self._path, orjson.dumps(content.model_dump(), option=orjson.OPT_INDENT_2) + b"\n")

    def _read(self) -> _Content:
        try:
            return _Content.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return _Content()
        except ValidationError:
            aside = keep_aside(self._path)
            logger.warning("%s cannot be read; it is kept as %s, and the shipped prompts are used.", self._path, aside)
            return _Content()


def keep_aside(path: Path) -> str:
    """Rename a file that cannot be read; returns the new name."""
    aside = path.with_name(f"{path.stem}.damaged-{time.time_ns()}{path.suffix}")
    path.rename(aside)
    return aside.name
