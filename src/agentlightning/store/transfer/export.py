"""A store into an archive: a folder of parts with a table of contents.

An archive is one moment of the source: that of the last start. Whoever exports into a folder that holds an earlier
state of the same export, finished or cut off, reads every row, but writes only the parts whose rows have changed since.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from agentlightning.kit.clock import now
from agentlightning.kit.db import Row
from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.kit.files import exclusive_lock
from agentlightning.store.databases import parse_location, require_store, show_location
from agentlightning.store.endpoints import Endpoint, open_endpoint
from agentlightning.store.progress import Progress, Steps, silent
from agentlightning.store.transfer.large import PAYLOADS, LargeValues, References
from agentlightning.store.transfer.manifest import Encoding, Manifest, Part, TableEntry, read_manifest, sha256_of
from agentlightning.store.transfer.parts import checked_encoding, part_format, written_whole
from agentlightning.store.transfer.plan import TablePlan, plans
from agentlightning.store.transfer.rows import Digest, RowCodec, in_parts
from agentlightning.store.transfer.selection import Selection, count_of, rows_of

PART_ROWS = 50_000

_NOTE_EVERY_S = 1.0
"""How often finished parts are noted down; what was not noted is written again after a crash."""
_LOCK = ".lock"
_REFERENCES = ".references.db"


def export_store(
    source: str | Path,
    folder: str | Path,
    *,
    encoding: Encoding | str = "jsonl",
    selection: Selection | None = None,
    part_rows: int = PART_ROWS,
    progress: Progress = silent,
) -> dict[str, int]:
    """Write a store, which may be in use, or a part of it, to a folder; returns the rows by table.

    Interrupted, the same call continues. Repeated later, it brings the archive up to date.

    Args:
        source: File or `postgresql://` URL.
        folder: Created when missing; has to be empty, or hold an earlier state of the same export.
        encoding: `"jsonl"`, `"jsonl.zst"`, or `"parquet"` (extra `parquet`).
        selection: Which rollouts; what belongs to them goes with them.
        part_rows: Rows in a file.
        progress: Called with the fraction done and the table.

    Raises:
        NotFoundError: There is no such store.
        ConflictError: The folder holds something else.
        StorageError: The source cannot be read, or the folder not be written.
        MissingExtraError: Parquet's package is not installed.
    """
    selection = selection or Selection()
    selection.check()
    if part_rows < 1:
        raise BadInputError("part_rows has to be positive.")
    encoding = checked_encoding(encoding)
    part_format(encoding)
    location = parse_location(source)
    require_store(location)
    target = Path(folder)
    wanted = Manifest(
        encoding=encoding,
        part_rows=part_rows,
        selection=selection,
        source=hashlib.sha256(show_location(location).encode()).hexdigest()[:16],
        started_at=now(),
    )
    _refuse_other_folders(target)
    with exclusive_lock(target / _LOCK, purpose=f"An export to {target}"):
        wanted.tables = _earlier_tables(target, wanted)
        from_ = open_endpoint(location)
        try:
            return _Export(from_, target, wanted, progress).run()
        finally:
            from_.close()


def _refuse_other_folders(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ConflictError(f"{target} is a file.", hint="Give a folder; it is created when missing.")
    if not target.exists():
        return
    try:
        read_manifest(target)
    except NotFoundError as error:
        others = [p.name for p in target.iterdir() if p.name != _LOCK]
        if others:
            raise ConflictError(
                f"{target} holds something else ({min(others)}).", hint="Give a folder that is empty or not there yet."
            ) from error


def _earlier_tables(target: Path, wanted: Manifest) -> dict[str, TableEntry]:
    try:
        found = read_manifest(target)
    except NotFoundError:
        return {}
    if found.schema_version != wanted.schema_version:
        return {}  # everything is written again
    for name in ("source", "encoding", "part_rows", "selection"):
        if getattr(found, name) != getattr(wanted, name):
            raise ConflictError(
                f"{target} holds another export: its {name} differs.",
                hint="Repeat that export's settings to continue it, or give another folder.",
            )
    return found.tables


class _Export:
    def __init__(self, source: Endpoint, target: Path, manifest: Manifest, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._manifest = manifest
        self._format = part_format(manifest.encoding)
        self._resolve = LargeValues(source.session())
        self._selection = manifest.selection
        self._steps = Steps(progress)
        self._references: References | None = None
        self._noted = time.monotonic()
        self._seen_no = 0  # the last row of the part that was compared

    def run(self) -> dict[str, int]:
        self._manifest.write(self._target)  # from here on it is not complete
        ordered = sorted(plans(), key=lambda plan: plan.name == PAYLOADS)  # what needs them comes first
        self._steps.expect(sum(self._source.run(count_of(plan, self._selection))[0][0] for plan in ordered))
        if not self._selection.is_everything:
            self._references = References(self._target / _REFERENCES)
        try:
            for plan in ordered:
                self._export_table(plan)
        except BaseException:
            self._manifest.write(self._target)  # what is finished stays
            raise
        finally:
            if self._references is not None:
                self._references.close()
        self._manifest.complete = True
        self._manifest.write(self._target)
        self._steps.finish()
        return {name: entry.rows for name, entry in self._manifest.tables.items()}

    def _rows(self, plan: TablePlan, after: int = 0, up_to: int | None = None) -> Iterator[list[Row]]:
        references = self._references
        if references is not None and plan.name == PAYLOADS:
            return references.rows(self._source, plan, after, up_to)
        rows = self._source.stream(rows_of(plan, self._selection, labels=True, after=after, up_to=up_to))
        return rows if references is None else references.watch(plan, rows)

    def _export_table(self, plan: TablePlan) -> None:
        codec = RowCodec(plan)
        entry = self._manifest.tables.setdefault(plan.name, TableEntry(columns={}))
        entry.columns = {name: str(kind) for name, kind in codec.kinds.items()}
        known = entry.parts
        parts: list[Part] = []
        for number, batches in enumerate(in_parts(self._rows(plan), self._manifest.part_rows)):
            earlier = known[number] if number < len(known) else None
            part = self._keep(earlier, batches, codec, plan) if earlier is not None else None
            if part is None:
                after = parts[-1].last_no if parts else 0
                rows = batches if earlier is None else self._rows(plan, after, self._seen_no)
                part = self._write(plan, number, rows, codec)
            parts.append(part)
            entry.parts = [*parts, *known[number + 1 :]]
            entry.rows = sum(part.rows for part in entry.parts)
            if part is not earlier:
                self._note()
        entry.parts = parts
        entry.rows = sum(part.rows for part in parts)
        for stale in known[len(parts) :]:
            (self._target / stale.file).unlink(missing_ok=True)

    def _note(self) -> None:
        if time.monotonic() - self._noted >= _NOTE_EVERY_S:
            self._manifest.write(self._target)
            self._noted = time.monotonic()

    def _keep(self, earlier: Part, batches: Iterator[list[Row]], codec: RowCodec, plan: TablePlan) -> Part | None:
        """The part, if it still says what the database says."""
        digest = Digest()
        for rows in batches:
            digest.add(rows, codec.width)
            self._steps.done(len(rows), plan.name)
        self._seen_no = digest.last_no
        file = self._target / earlier.file
        same = digest.hex() == earlier.source_sha256 and file.exists() and file.stat().st_size == earlier.bytes
        return earlier if same else None

    def _write(self, plan: TablePlan, number: int, batches: Iterator[list[Row]], codec: RowCodec) -> Part:
        name = f"{plan.name}/part-{number:05d}.{self._manifest.encoding}"
        digest = Digest()

        def counted() -> Iterator[list[Row]]:
            for rows in batches:
                digest.add(rows, codec.width)
                yield rows
                self._steps.done(len(rows), plan.name)

        path = self._target / name
        with written_whole(path) as partial:
            self._format.write(partial, counted(), codec, self._resolve)
            checksum = sha256_of(partial)
        return Part(
            file=name,
            rows=digest.rows,
            bytes=path.stat().st_size,
            sha256=checksum,
            first_no=digest.first_no,
            last_no=digest.last_no,
            source_sha256=digest.hex(),
        )
