"""Training data on disk: interactions in the documented shape, journalled at once, folded into chunks. Knows no agent.

`journal.jsonl` gets every interaction as it ends, so that a process may be killed at any moment. Every so many, and
when a program ends, the journal is folded into `interactions-NNNNN.json`, each written whole or not at all. Several
processes may share the folder: whoever reads or writes holds its lock. A file that cannot be read is renamed and kept.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentlightning.kit.files import exclusive_lock, storage_error, write_atomic

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
CHUNKS = "interactions-*.json"
LOCK_WAIT_S = 30.0
_MAX_CHUNK_BYTES = 8 * 2**20


class Interaction(BaseModel):
    """One query and what came of it. The first eight fields are the documented ones; the rest may be missing."""

    model_config = ConfigDict(extra="allow")

    timestamp: float
    """When the query was asked, seconds since 1970."""
    query: str
    response: str
    response_time: float
    """Seconds."""
    claude_success: bool
    """Whether the agent answered, whichever agent it was."""
    tools_used: list[str]
    """One entry for each call, in order."""
    query_length: int
    """Characters."""
    response_length: int
    id: str = Field(default_factory=lambda: uuid4().hex)
    agent: str = "tongyi"
    mode: str = "prompt"
    reward: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict[str, float])
    """Parts of the reward, and what `_..._metric` methods gave."""
    error: str = ""
    model_calls: int = 0
    arm: str | None = None
    """Of an A/B test: `control` or `treatment`."""
    prompt_version: int = 0
    """0 is the prompt as shipped."""
    rollout_id: str | None = None


class TrainingData:
    """The folder of training data.

    Args:
        folder: Made when the first interaction comes.
        save_every: Interactions of this process after which the journal is folded.
        chunk_size: Interactions in one file.
    """

    def __init__(self, folder: Path | str, *, save_every: int = 10, chunk_size: int = 500) -> None:
        self.folder = Path(folder)
        self.save_every = save_every
        self.chunk_size = chunk_size
        self._since_save = 0
        self.kept_aside: list[Path] = []
        """Files that could not be read, under the names they have now."""

    def check(self) -> None:
        """See whether something can be kept here, before it costs something.

        Raises:
            StorageError: It cannot.
            BusyError: Another process holds the folder for too long.
        """
        with self._locked():
            pass

    def append(self, interaction: Interaction) -> None:
        """Keep one interaction; it is on disk when this returns.

        Raises:
            StorageError: It cannot be written.
            BusyError: Another process holds the folder for too long.
        """
        line = orjson.dumps(interaction.model_dump(mode="json")) + b"\n"
        with self._locked():
            self._append_line(line)
        self._since_save += 1
        if self._since_save >= self.save_every:
            self.save()

    def save(self) -> None:
        """Fold the journal into the chunks.

        Raises:
            StorageError: It cannot be written; the journal stays.
        """
        self._since_save = 0
        if not (self.folder / JOURNAL).exists():
            return
        with self._locked():
            self._fold()

    def read(self) -> list[Interaction]:
        """All interactions, the oldest first."""
        if not self.folder.is_dir():
            return []
        with self._locked():
            found = [entry for path in self._chunks() for entry in self._read_chunk(path)]
            found += self._read_journal()
        unique = {entry.id: entry for entry in found}
        return sorted(unique.values(), key=lambda entry: entry.timestamp)

    def export(self, path: Path | str, metrics: dict[str, Any]) -> int:
        """Write everything as one JSON file: `{"interactions": [...], "metrics": {...}}`; returns how many there are.

        Raises:
            StorageError: It cannot be written.
        """
        interactions = self.read()
        content = {"interactions": [entry.model_dump(mode="json") for entry in interactions], "metrics": metrics}
        write_atomic(Path(path), orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        return len(interactions)

    # -- under the lock

    @contextmanager
    def _locked(self) -> Generator[None]:
        with exclusive_lock(self.folder / ".lock", purpose="Training data", wait_s=LOCK_WAIT_S):
            yield

    def _append_line(self, line: bytes) -> None:
        path = self.folder / JOURNAL
        try:
            with path.open("ab+") as stream:
                size = stream.seek(0, os.SEEK_END)
                if size:
                    stream.seek(size - 1)
                    # A process was killed while it wrote: its half line must not take ours along.
                    line = line if stream.read(1) == b"\n" else b"\n" + line
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise storage_error(path, error) from error

    def _fold(self) -> None:
        waiting = self._read_journal()
        if not waiting:
            return
        chunks = self._chunks()
        last = self._read_chunk(chunks[-1]) if chunks else []
        number = _number(chunks[-1]) if chunks and last else (_number(chunks[-1]) + 1 if chunks else 1)
        known = {entry.id for entry in last}  # killed after the chunk was written, before the journal was removed
        entries = [*last, *(entry for entry in waiting if entry.id not in known)]
        for part in _parts(entries, self.chunk_size):
            content = {"interactions": part}
            write_atomic(self.folder / f"interactions-{number:05d}.json", orjson.dumps(content))
            number += 1
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def _chunks(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(CHUNKS) if path.stem.removeprefix("interactions-").isdigit())

    def _read_chunk(self, path: Path) -> list[Interaction]:
        try:
            return [Interaction.model_validate(entry) for entry in orjson.loads(path.read_bytes())["interactions"]]
        except (ValueError, KeyError, TypeError) as error:
            self._keep_aside(path, error)
            return []

    def _read_journal(self) -> list[Interaction]:
        path = self.folder / JOURNAL
        if not path.exists():
            return []
        entries: list[Interaction] = []
        damaged: list[bytes] = []
        for line in path.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            try:
                entries.append(Interaction.model_validate_json(line))
            except ValidationError:
                damaged.append(line)
        if damaged:
            self._keep_lines_aside(damaged, entries)
        return entries

    def _keep_lines_aside(self, damaged: list[bytes], good: Iterable[Interaction]) -> None:
        aside = self.folder / f"journal.damaged-{time.time_ns()}.jsonl"
        write_atomic(aside, b"\n".join(damaged) + b"\n")
        lines = [orjson.dumps(entry.model_dump(mode="json")) + b"\n" for entry in good]
        write_atomic(self.folder / JOURNAL, b"".join(lines))
        self.kept_aside.append(aside)
        logger.warning("%d line(s) of the training data cannot be read; they are kept in %s.", len(damaged), aside)

    def _keep_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_name(f"{path.stem}.damaged-{time.time_ns()}.json")
        path.rename(aside)
        self.kept_aside.append(aside)
        logger.warning("%s cannot be read (%s); it is kept as %s.", path, type(error).__name__, aside.name)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("interactions-"))


def _parts(entries: list[Interaction], size: int) -> Generator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    weight = 0
    for entry in entries:
        value = entry.model_dump(mode="json")
        bytes_ = len(orjson.dumps(value))
        if part and (len(part) >= size or weight + bytes_ > _MAX_CHUNK_BYTES):
            yield part
            part, weight = [], 0
        part.append(value)
        weight += bytes_
    if part:
        yield part
