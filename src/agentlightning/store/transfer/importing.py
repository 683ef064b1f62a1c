"""An archive into a store. It is believed only after it was checked, and the store sees all of it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agentlightning.kit.db import Row
from agentlightning.kit.errors import BadInputError
from agentlightning.store.databases import parse_location
from agentlightning.store.progress import Progress, Steps, silent
from agentlightning.store.transfer.manifest import MANIFEST, Manifest, Part, read_manifest, sha256_of
from agentlightning.store.transfer.parts import PartFormat, part_format
from agentlightning.store.transfer.plan import TablePlan, plans
from agentlightning.store.transfer.rows import RowCodec
from agentlightning.store.transfer.staging import Staging, open_staging

_AGAIN = "Export again, or bring the archive over again."


def import_store(folder: str | Path, target: str | Path, *, progress: Progress = silent) -> dict[str, int]:
    """Add an archive to a store, created when missing; returns how many rows of each table were new.

    Rows that are there already are passed over, so that repeating is harmless. Interrupted, it leaves the store as it
    was; the same call continues.

    Args:
        folder: What `export_store` wrote.
        target: File or `postgresql://` URL.
        progress: Called with the fraction done and the table.

    Raises:
        NotFoundError: The folder is no archive.
        BadInputError: The archive is not complete, damaged, malformed, or of a version that is not known.
        ConflictError: The store has other rows under the same names; the message names them.
        BusyError: Another transfer into the store is under way.
        MissingExtraError: Parquet's package is not installed.
    """
    archive = Path(folder)
    manifest = read_manifest(archive)
    _check(archive, manifest)
    format_ = part_format(manifest.encoding)
    transfer = hashlib.sha256(b"import" + msgspec.json.encode(manifest.tables)).hexdigest()
    steps = Steps(progress)
    steps.expect(sum(entry.rows for entry in manifest.tables.values()))
    with open_staging(parse_location(target), transfer, into_empty=False) as staging:
        for plan in plans():
            _fill(archive, manifest, plan, staging, format_, steps)
        counts = staging.publish(into_empty=False)
    steps.finish()
    return counts


def _check(archive: Path, manifest: Manifest) -> None:
    """What can be seen before reading everything."""
    if not manifest.complete:
        raise BadInputError(
            f"The export to {archive} was not finished.", hint="Repeat its command; it continues where it stopped."
        )
    known = {plan.name: set(RowCodec(plan).kinds) for plan in plans()}
    for name, entry in manifest.tables.items():
        unknown = entry.columns.keys() - known.get(name, set())
        if name not in known or unknown:
            raise BadInputError(
                f"{archive / MANIFEST} names {name} {' '.join(sorted(unknown))}, which is not known.",
                hint="Upgrade agentlightning.",
            )
        if entry.rows != sum(part.rows for part in entry.parts):
            raise BadInputError(f"{archive / MANIFEST} contradicts itself about {name}.", hint=_AGAIN)
        for part in entry.parts:
            _check_file(archive, part)


def _check_file(archive: Path, part: Part) -> None:
    path = archive / part.file
    if not path.resolve().is_relative_to(archive.resolve()):
        raise BadInputError(f"{archive / MANIFEST} names a file outside of the archive: {part.file}.")
    if not path.is_file():
        raise BadInputError(f"{path} is missing.", hint=_AGAIN)
    size = path.stat().st_size
    if size != part.bytes:
        raise BadInputError(
            f"{path} is {'truncated' if size < part.bytes else 'too long'}: {size:,} of {part.bytes:,} bytes.",
            hint=_AGAIN,
        )


def _fill(
    archive: Path, manifest: Manifest, plan: TablePlan, staging: Staging, format_: PartFormat, steps: Steps
) -> None:
    entry = manifest.tables.get(plan.name)
    codec = RowCodec(plan)
    known = staging.entries(plan)
    last = 0
    for number, part in enumerate(entry.parts if entry is not None else []):
        if number < len(known) and known[number].digest == part.sha256:
            last = known[number].last_no
            steps.done(part.rows, plan.name)
            continue
        path = archive / part.file
        if sha256_of(path) != part.sha256:
            raise BadInputError(f"The checksum of {path} is wrong: its content has changed.", hint=_AGAIN)
        rows = _counted(path, part, codec, format_, steps, last)
        last = staging.put(plan, number, last, rows, lambda checksum=part.sha256: checksum).last_no
    if entry is not None:
        staging.cut(plan, len(entry.parts), last)


def _counted(
    path: Path, part: Part, codec: RowCodec, format_: PartFormat, steps: Steps, last: int
) -> Iterator[list[Row]]:
    count = 0
    for rows in format_.read(path, codec):
        for row in rows:
            if row[0] <= last:
                raise BadInputError(f"{path}: its rows are not in the order of `no` ({row[0]} after {last}).")
            last = row[0]
        count += len(rows)
        yield rows
        steps.done(len(rows), codec.plan.name)
    if count != part.rows:
        raise BadInputError(f"{path} has {count} rows; {part.rows} were expected.", hint=_AGAIN)
