"""The table of contents of an archive, `manifest.json`: what it is, and for every part its rows and checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.kit.files import write_atomic
from agentlightning.store.tables import REVISIONS
from agentlightning.store.transfer.selection import Selection

FORMAT = "agentlightning-store"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

Encoding = Literal["jsonl", "jsonl.zst", "parquet"]


class Part(msgspec.Struct):
    """One file.

    Attributes:
        file: Its path, relative to the archive.
        rows: In it.
        bytes: Its size.
        sha256: Of its content.
        first_no: Lowest `no` in it.
        last_no: Highest `no` in it.
        source_sha256: Of the rows as they stood in the database: says whether they have changed since.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    first_no: int
    last_no: int
    source_sha256: str


class TableEntry(msgspec.Struct):
    """One table."""

    columns: dict[str, str]
    """Name in the archive to kind; without the labels, which importing passes over."""
    rows: int = 0
    parts: list[Part] = []


class Manifest(msgspec.Struct, kw_only=True):
    """The archive.

    Attributes:
        format: Always `FORMAT`.
        format_version: Of the archive's layout.
        schema_version: Of the store's tables.
        encoding: Of the parts.
        part_rows: Rows in a part.
        selection: Which rollouts.
        source: Tells one source from another; a hash, since names of servers and folders are nobody's business.
        started_at: Unix seconds; the rows are those of this moment.
        complete: Whether all parts are there.
        tables: By name, parents before children.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    schema_version: str = REVISIONS[-1]
    encoding: Encoding
    part_rows: int
    selection: Selection = Selection()
    source: str
    started_at: float
    complete: bool = False
    tables: dict[str, TableEntry] = {}

    def write(self, folder: Path) -> None:
        """Replace the file, all or nothing.

        Raises:
            StorageError: The disk is full or the folder not writable.
        """
        write_atomic(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(self), indent=2))


class _Head(msgspec.Struct):
    format: str = ""
    format_version: int = 0


def read_manifest(folder: Path) -> Manifest:
    """Read and check.

    Raises:
        NotFoundError: There is none.
        BadInputError: It is malformed, or of a version that is not known.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"{folder} is no archive: it has no {MANIFEST}.", hint="Give the folder that `agl store export` wrote."
        ) from error
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format != FORMAT:
            raise BadInputError(f"{path} is not an archive of a store.")
        if head.format_version != FORMAT_VERSION:
            raise BadInputError(
                f"{path} has format version {head.format_version}; this reads version {FORMAT_VERSION}.",
                hint="Upgrade agentlightning.",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BadInputError(f"{path} is malformed: {error}.", hint="Export again.") from error
    if manifest.schema_version not in REVISIONS:
        raise BadInputError(
            f"{path} was written with schema version {manifest.schema_version}; this knows up to {REVISIONS[-1]}.",
            hint="Upgrade agentlightning.",
        )
    return manifest


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
