"""Documents of a folder. Links are not followed, archives are not opened, and nothing outside of it is read."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path

from agentlightning.kit.errors import BadInputError
from agentlightning.platform.knowledge.importing import Refused, Source
from agentlightning.platform.knowledge.reading import (
    MAX_BYTES,
    SUFFIXES,
    Document,
    UnreadableError,
    pieces,
    read_document,
    read_guarded,
)
from agentlightning.platform.knowledge.repository import Draft

_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".docx", ".epub", ".jar"})


def folder_sources(
    folder: Path, *, category: str | None = None, tags: Sequence[str] = ()
) -> Generator[Source | Refused]:
    """Its documents in the order of their names, and what is not read.

    Raises:
        BadInputError: It is no folder.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder} is no folder.")
    root = folder.resolve()
    name = f"folder:{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
    for parent, folders, files in os.walk(root, followlinks=False):
        links = [entry for entry in folders if os.path.islink(os.path.join(parent, entry))]
        yield from (Refused(os.path.relpath(os.path.join(parent, link), root), "link") for link in links)
        folders[:] = sorted(entry for entry in folders if entry not in links and not entry.startswith("."))
        for entry in sorted(files):
            path = Path(parent, entry)
            relative = path.relative_to(root).as_posix()
            reason = _reason(path)
            if reason:
                yield Refused(relative, reason)
            else:
                yield _source(path, relative, f"{name}/{relative}"[:700], category, tuple(tags))


def drafts_of(document: Document, name: str, key: str | None, category: str | None, tags: Sequence[str]) -> list[Draft]:
    """A document's items."""
    about = {"document": name}
    return [Draft(piece.title, piece.text, category, tuple(tags), about, key) for piece in pieces(document)]


def _source(path: Path, name: str, key: str, category: str | None, tags: tuple[str, ...]) -> Source:
    name = name.encode("utf-8", "replace").decode()

    async def load() -> list[Draft]:
        raw = await asyncio.to_thread(_read, path)
        if path.suffix.lower() == ".pdf":  # broken ones exhaust memory and time
            document = await read_guarded(path.name, raw)
        else:
            document = await asyncio.to_thread(read_document, path.name, raw)
        return drafts_of(document, name, key, category, tags)

    about = f"{category}\0{tags}".encode()
    digest = hashlib.sha256(about)
    with contextlib.suppress(UnreadableError):  # it is said when it is loaded
        digest.update(_read(path))
    return Source(key.encode("utf-8", "replace").decode(), digest.hexdigest(), load)


def _reason(path: Path) -> str:
    """Why it is not read; empty if it is."""
    try:
        if path.is_symlink():
            return "link"
        if not path.is_file():
            return "no plain file"
        if path.suffix.lower() in _ARCHIVES:
            return "archive"
        if path.suffix.lower() not in SUFFIXES:
            return "unknown kind"
        return "too large" if path.stat().st_size > MAX_BYTES else ""
    except OSError as error:
        return error.strerror or "unreadable"


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableError(f"{path.name} cannot be read ({error.strerror}).") from error
