"""A run: records of all files into the tables, each once however often the run is killed and begun again.

A batch of records and their lines in the ledger are one transaction. A dry run is one transaction that is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.auth.repository import note
from agentlightning.platform.columns import now
from agentlightning.platform.database import Database
from agentlightning.platform.jsonfiles.keys import without_keys
from agentlightning.platform.jsonfiles.models import JsonRecord
from agentlightning.platform.jsonfiles.reading import Found, Sources, Unreadable
from agentlightning.platform.jsonfiles.shapes import KINDS, KnowledgeRecord, Record
from agentlightning.platform.jsonfiles.writing import BY, Writer, Written
from agentlightning.schemas.plain import plain_json

BATCH = 100
_MAX_PROBLEMS = 5
_SECRET = ("password_hash", "hashed_password", "password")
_CONFIGURED = ("agents", "experiments")
"""Kinds whose records say how something is to be run, which is where keys are found."""
_KEPT_ELSEWHERE = "it looks like a key, and those are kept by `agl platform secrets set`"
_DEEPEST = 24


@dataclass(slots=True)
class Counts:
    """Of one kind."""

    read: int = 0
    created: int = 0
    updated: int = 0
    """Agents that came with the program and have a new version now."""
    unchanged: int = 0
    """Migrated before."""
    refused: int = 0


@dataclass(slots=True)
class Report:
    """What a run did. `refused` and `notes` name file and place (from 0; in JSON Lines the line)."""

    dry_run: bool
    kinds: dict[str, Counts] = field(default_factory=dict[str, Counts])
    refused: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    notes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What was changed or left out; the ledger has the whole record."""
    ignored: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """Files that hold nothing known."""
    files: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @property
    def total(self) -> Counts:
        """Of all kinds."""
        parts = [asdict(counts) for counts in self.kinds.values()]
        return Counts(**{name: sum(part[name] for part in parts) for name in Counts.__dataclass_fields__})


class _UndoneError(Exception):
    """Ends the transaction of a dry run."""


class Migration:
    """Of the files' records into a database."""

    def __init__(self, database: Database, writer: Writer, *, dry_run: bool = False) -> None:
        self._database = database
        self._writer = writer
        self._dry_run = dry_run

    async def run(self, sources: Sources, told: Callable[[float, str], None] | None = None) -> Report:
        """Migrate them all.

        Args:
            sources: The files.
            told: Is told the share that is done and what of, after each batch.
        """
        report, started = Report(self._dry_run, files=len(sources.files), ignored=sources.ignored), time.monotonic()
        seen = 0
        with contextlib.suppress(_UndoneError):  # raised below, to undo a dry run
            async with contextlib.AsyncExitStack() as stack:
                session = await stack.enter_async_context(self._database.write()) if self._dry_run else None
                for kind in ("", *KINDS):
                    entries = sources.of_kind(kind)
                    while batch := await asyncio.to_thread(_next, entries):
                        await self._batch(session, batch, report)
                        seen += len(batch)
                        if told is not None:
                            told(min(1.0, seen / max(1, sources.total)), f"{kind}: {seen:,} records")
                if self._dry_run:
                    raise _UndoneError
        report.seconds = round(time.monotonic() - started, 3)
        return report

    async def _batch(self, session: AsyncSession | None, batch: list[Found | Unreadable], report: Report) -> None:
        if session is not None:
            await self._keep(session, batch, report)
            return
        attempt = Report(dry_run=False)
        async with self._database.write() as own:
            await self._keep(own, batch, attempt)
            made = attempt.total
            if made.created or made.updated:
                kinds = {kind: counts.created for kind, counts in attempt.kinds.items()}
                note(own, "migrate_json", f"{made.created} records", actor=BY, **kinds)
        _add(report, attempt)

    async def _keep(self, session: AsyncSession, batch: list[Found | Unreadable], report: Report) -> None:
        digests = {id(entry): digest_of(entry) for entry in batch if isinstance(entry, Found)}
        query = select(JsonRecord.digest).where(JsonRecord.digest.in_(set(digests.values())))
        known = set((await session.execute(query)).scalars())
        together = await self._keep_together(session, batch, digests, known)
        for entry in batch:
            counts = report.kinds.setdefault(entry.kind or "unknown", Counts())
            counts.read += 1
            if isinstance(entry, Unreadable):
                _refuse(report, counts, entry, entry.reason)
                continue
            digest = digests[id(entry)]
            written = together.pop(digest, None)
            if written is not None:
                _count(report, counts, entry, written)
                continue
            if digest in known:
                counts.unchanged += 1
                continue
            try:
                async with session.begin_nested():
                    written = await self._write(session, entry, digest)
            except AgentLightningError as error:
                problems = [f"{item['where']}: {item['what']}" for item in error.details.get("problems", [])]
                _refuse(report, counts, entry, "; ".join([error.message, *problems[:_MAX_PROBLEMS]]), error.hint)
            except IntegrityError:
                if await session.get(JsonRecord, digest) is not None:  # another process was at it at this moment
                    counts.unchanged += 1
                else:
                    _refuse(report, counts, entry, "It contradicts what is there.")
            except (ValueError, DataError) as error:
                _refuse(report, counts, entry, _reason(error))
            else:
                known.add(digest)
                _count(report, counts, entry, written)

    async def _keep_together(
        self, session: AsyncSession, batch: list[Found | Unreadable], digests: dict[int, str], known: set[str]
    ) -> dict[str, Written]:
        """New knowledge items of a batch, in one go; nothing if that fails: then each is tried by itself."""
        wanted: dict[str, tuple[Found, KnowledgeRecord]] = {}
        for entry in batch:
            if isinstance(entry, Found) and entry.kind == "knowledge" and digests[id(entry)] not in known:
                with contextlib.suppress(ValueError):  # it is refused, with the reason, when it is tried by itself
                    wanted.setdefault(digests[id(entry)], (entry, KnowledgeRecord.model_validate(_checked(entry))))
        try:
            async with session.begin_nested():
                rows = await self._writer.write_items(session, [record for _, record in wanted.values()])
                made = dict(zip(wanted, rows, strict=True))
                for digest, (entry, record) in wanted.items():
                    session.add(_line(entry, record, made[digest], digest))
        except (AgentLightningError, ValueError, DataError, IntegrityError):
            return {}
        known.update(made)
        return made

    async def _write(self, session: AsyncSession, entry: Found, digest: str) -> Written:
        given, keys = _checked(entry), list[str]()
        if entry.kind in _CONFIGURED:
            given, keys = without_keys(given)
        record = KINDS[entry.kind].model_validate(given)
        written = await self._writer.write(session, record, digest)
        known = record.known_fields()
        written.notes += [f"{path} is left out: {_KEPT_ELSEWHERE}" for path in keys if path.partition(".")[0] in known]
        session.add(_line(entry, record, written, digest))
        await session.flush()
        return written


def _checked(entry: Found) -> Any:
    return plain_json(entry.record, _DEEPEST)


def _line(entry: Found, record: Record, written: Written, digest: str) -> JsonRecord:
    """Of the ledger."""
    written.notes += [f"{name} is left out" for name in sorted(set(entry.record) - record.known_fields())]
    return JsonRecord(
        digest=digest,
        kind=entry.kind,
        old_id=_old_id(record),
        row_id=written.row_id,
        record=without_keys({key: value for key, value in entry.record.items() if key not in _SECRET})[0],
        left_out=written.notes,
        file=entry.file,
        place=entry.place,
        migrated_at=now(),
    )


def digest_of(entry: Found) -> str:
    """Of kind and content, in whatever order its fields stand."""
    raw = orjson.dumps([entry.kind, entry.record], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(raw).hexdigest()


def _old_id(record: Record) -> str:
    return str(getattr(record, record.naming) if record.id is None else record.id)[:255]


def _next(entries: Iterator[Found | Unreadable]) -> list[Found | Unreadable]:
    return list(islice(entries, BATCH))


def _place(entry: Found | Unreadable) -> dict[str, Any]:
    return {"kind": entry.kind, "file": entry.file, "index": entry.place}


def _count(report: Report, counts: Counts, entry: Found, written: Written) -> None:
    counts.created += written.is_new
    counts.updated += not written.is_new
    if written.notes:
        report.notes.append({**_place(entry), "notes": written.notes})


def _refuse(report: Report, counts: Counts, entry: Found | Unreadable, reason: str, hint: str = "") -> None:
    counts.refused += 1
    report.refused.append({**_place(entry), "reason": reason[:1_000], "hint": hint})


def _reason(error: ValueError | DataError) -> str:
    """Without what was given: it may be a secret."""
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False, include_input=False)
        places = [".".join(map(str, item["loc"])) for item in found]
        said = [item["msg"].removeprefix("Value error, ") for item in found]
        problems = [f"{where}: {what}" if where else what for where, what in zip(places, said, strict=True)]
        return "; ".join(problems[:_MAX_PROBLEMS])
    return "It holds a value that the database does not take." if isinstance(error, DataError) else str(error)


def _add(report: Report, more: Report) -> None:
    for kind, counts in more.kinds.items():
        mine = report.kinds.setdefault(kind, Counts())
        for name in Counts.__dataclass_fields__:
            setattr(mine, name, getattr(mine, name) + getattr(counts, name))
    report.refused += more.refused
    report.notes += more.notes
