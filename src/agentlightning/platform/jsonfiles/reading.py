"""JSON and JSON Lines files, record by record. Knows the kinds' names, not their fields, and no tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from agentlightning.kit.errors import NotFoundError
from agentlightning.platform.jsonfiles.shapes import KINDS, OTHER_NAMES

_LINES = (".jsonl", ".ndjson")
_ENDINGS = (".json", *_LINES)


@dataclass(frozen=True, slots=True)
class Found:
    """A record.

    Attributes:
        kind: One of `KINDS`.
        file: Where it stands.
        place: Its place there from 0; in JSON Lines the line, from 1.
        record: What was read.
    """

    kind: str
    file: str
    place: int
    record: Any


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something that is no record, and why."""

    kind: str
    file: str
    place: int
    reason: str


@dataclass(slots=True)
class Sources:
    """Files to read, by kind; `ignored` are those that hold nothing known."""

    files: list[Path] = field(default_factory=list[Path])
    ignored: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    total: int = 0
    """Records, as far as they can be counted in advance."""
    _whole: list[Found | Unreadable] = field(default_factory=list[Found | Unreadable])
    _lines: list[tuple[str, Path]] = field(default_factory=list[tuple[str, Path]])

    def of_kind(self, kind: str) -> Iterator[Found | Unreadable]:
        """All records of a kind; with `""` what is of none."""
        yield from (entry for entry in self._whole if entry.kind == kind)
        for of, path in self._lines:
            if of == kind:
                yield from _read_lines(kind, path)

    def add(self, path: Path, *, named: bool) -> None:
        """Take a file in; one that somebody `named` has to be of use."""
        kind = kind_of(path)
        if path.suffix.lower() in _LINES and kind is not None:
            self._lines.append((kind, path))
            with path.open("rb") as stream:
                self.total += sum(1 for line in stream if line.strip())
        elif path.suffix.lower() == ".json":
            self._add_document(kind, path, named=named)
        else:
            self._ignore(path, "its name says no kind of record", kind, named=named)
            return
        self.files.append(path)

    def _add_document(self, kind: str | None, path: Path, *, named: bool) -> None:
        try:
            content = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
        except orjson.JSONDecodeError as error:
            self._take([Unreadable(kind or "", str(path), 0, f"is no JSON: {error}")])
            return
        parts = _parts(kind, content)
        if parts is None:
            reason = "holds neither records of a kind that its name says, nor lists of records by kind"
            self._ignore(path, reason, kind, named=named)
            return
        for of, records in parts.items():
            if of in KINDS:
                self._take((Found(of, str(path), place, record) for place, record in enumerate(records)))
            elif records:
                self._take([Unreadable("", str(path), 0, f"the key {of!r} is no kind of record")])
            else:
                self.ignored.append({"file": str(path), "reason": f"the key {of!r} is no kind of record"})

    def _take(self, entries: Iterable[Found | Unreadable]) -> None:
        before = len(self._whole)
        self._whole.extend(entries)
        self.total += len(self._whole) - before

    def _ignore(self, path: Path, reason: str, kind: str | None, *, named: bool) -> None:
        """Note a file; one that somebody named, or that is named like one of ours, is refused."""
        if named or (kind is not None and path.suffix.lower() in _ENDINGS):
            self._take([Unreadable(kind or "", str(path), 0, reason)])
        else:
            self.ignored.append({"file": str(path), "reason": reason})


def sources(paths: Sequence[Path]) -> Sources:
    """What files and folders hold.

    Raises:
        NotFoundError: One of them is not there.
    """
    found = Sources()
    for path in paths:
        if path.is_dir():
            for inner in sorted(path.rglob("*")):
                if inner.is_file() and not any(part.startswith(".") for part in inner.relative_to(path).parts):
                    found.add(inner, named=False)
        elif path.exists():
            found.add(path, named=True)
        else:
            raise NotFoundError(f"There is no file or folder {path}.")
    return found


def kind_of(path: Path) -> str | None:
    """What a file holds, by its name (`agents.json`, `tasks-2025.jsonl`) or its folder's (`agents/code.json`)."""
    stem = path.name.lower().partition(".")[0].replace("-", "_").replace(" ", "_")
    for name in sorted(OTHER_NAMES, key=len, reverse=True):
        if stem == name or re.match(rf"{name}_", stem):
            return OTHER_NAMES[name]
    return OTHER_NAMES.get(path.parent.name.lower().replace("-", "_"))


def _parts(kind: str | None, content: Any) -> dict[str, list[Any]] | None:
    """Records by kind; keys that are no kinds stay, with what they hold if it is more than a value."""
    if isinstance(content, list):
        return None if kind is None else {kind: content}
    if not isinstance(content, dict):
        return None
    shape = None if kind is None else KINDS[kind]
    is_record = shape is not None and bool(shape.known_fields() & set(content)) and not _all_objects(content)
    named = {key: OTHER_NAMES[key.lower()] for key in content if key.lower() in OTHER_NAMES}
    if named and not is_record:
        others = {key: value for key, value in content.items() if key not in named}
        found: dict[str, list[Any]] = {
            key: [value] if value and isinstance(value, list | dict) else [] for key, value in others.items()
        }
        for key, of in named.items():
            found.setdefault(of, []).extend(_records(of, content[key]))
        return found
    if kind is None:
        return None
    return {kind: [content] if is_record else _records(kind, content)}


def _all_objects(content: dict[str, Any]) -> bool:
    return bool(content) and all(isinstance(value, dict) for value in content.values())


def _records(kind: str, content: Any) -> list[Any]:
    """Of a list, or of an object whose keys are names: `{"code_agent": {...}}`."""
    if isinstance(content, dict) and _all_objects(content):
        naming = KINDS[kind].naming
        return [{naming: key, **value} for key, value in content.items()]
    return content if isinstance(content, list) else [content]


def _read_lines(kind: str, path: Path) -> Iterator[Found | Unreadable]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield Found(kind, str(path), number, orjson.loads(line.removeprefix(b"\xef\xbb\xbf")))
            except orjson.JSONDecodeError as error:
                yield Unreadable(kind, str(path), number, f"is no JSON: {error}")
