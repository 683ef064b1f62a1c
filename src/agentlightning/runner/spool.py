"""What a runner has to report while its store is away, on disk until it is back. Knows no HTTP.

One SQLite file for each runner process, made when it is first needed. It outlives its process: whoever starts next with
the same folder delivers what is left (`deliver_leftovers`). A file belongs to the process that holds its lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
from collections.abc import Generator, Sequence
from pathlib import Path

import msgspec

from agentlightning.kit.errors import AgentLightningError, BusyError, StorageError
from agentlightning.kit.files import exclusive_lock
from agentlightning.runner.courier import Courier, Report
from agentlightning.schemas import Span
from agentlightning.store import wire
from agentlightning.store.base import LightningStore
from agentlightning.store.records import SpanRecord, record_from_span, span_from_record

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
"""How large a spool may get; then the runner waits instead."""
_SUFFIX = ".spool"
_SIZES = ("page_count", "freelist_count", "page_size")
_MAX_TAKEN = 64
_MAX_TAKEN_BYTES = 4_000_000


class _Entry(msgspec.Struct):
    spans: list[SpanRecord]
    reports: list[Report]


_decoder = msgspec.msgpack.Decoder(_Entry, dec_hook=wire.decode_hook)


class Backlog(msgspec.Struct):
    """The oldest entries of a spool, as one delivery."""

    last: int
    spans: list[Span]
    reports: list[Report]


class Spool:
    """First in, first out; every `append` is on disk when it returns.

    Args:
        folder: Where the file is.
        name: Of the file: the worker's.
        max_bytes: How large it may get.

    Raises:
        BusyError: (first use) Another process holds it.
        StorageError: (every method) The disk is full, the folder not writable, the file damaged.
    """

    def __init__(self, folder: Path, name: str, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = folder / f"{name}{_SUFFIX}"
        self._max_bytes = max_bytes
        self._stack = contextlib.ExitStack()
        self._database: sqlite3.Connection | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, spans: Sequence[Span], reports: Sequence[Report]) -> None:
        """Keep a delivery."""
        payload = wire.msgpack_encoder.encode(_Entry(_records(spans), list(reports)))
        with self._errors() as database:
            pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES)
            if (pages - free) * size + len(payload) > self._max_bytes:
                raise StorageError(f"The spool {self.path} is full ({self._max_bytes} bytes).")
            database.execute("INSERT INTO entries (payload) VALUES (?)", (payload,))
            self._count += 1

    def first(self) -> Backlog | None:
        """The oldest entries, some at once, in order; they stay until `remove`."""
        with self._errors() as database:
            last, entries, size = 0, list[_Entry](), 0
            for no, payload in database.execute("SELECT no, payload FROM entries ORDER BY no LIMIT ?", (_MAX_TAKEN,)):
                size += len(payload)
                if entries and size > _MAX_TAKEN_BYTES:
                    break
                last = no
                entries.append(_decoder.decode(payload))
        if not entries:
            return None
        spans = [span_from_record(record) for entry in entries for record in entry.spans]
        return Backlog(last, spans, [report for entry in entries for report in entry.reports])

    def remove(self, backlog: Backlog) -> None:
        """Forget what was delivered."""
        with self._errors() as database:
            self._count -= database.execute("DELETE FROM entries WHERE no <= ?", (backlog.last,)).rowcount

    def close(self) -> None:
        """Let go of the file, and delete it when nothing is left in it."""
        database, self._database = self._database, None
        if database is None:
            return
        with self._stack:
            database.close()
            if not self._count:
                for suffix in ("", "-wal", "-shm", ".lock"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Generator[sqlite3.Connection]:
        try:
            database = self._open()
            with database:
                yield database
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            raise StorageError(f"The spool {self.path} cannot be used: {error}.") from error

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(exclusive_lock(Path(f"{self.path}.lock"), purpose="A runner"))
            try:
                database = sqlite3.connect(self.path)
                self._database = database
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.execute("CREATE TABLE IF NOT EXISTS entries (no INTEGER PRIMARY KEY, payload BLOB NOT NULL)")
                self._count = database.execute("SELECT count(*) FROM entries").fetchone()[0]
            except sqlite3.Error:
                if self._database is not None:
                    self._database.close()
                    self._database = None
                self._stack.close()
                raise
        return self._database


def _records(spans: Sequence[Span]) -> list[SpanRecord]:
    records: list[SpanRecord] = []
    for span in spans:
        try:
            records.append(record_from_span(span))
        except AgentLightningError as error:
            logger.warning("A span of rollout %s is lost: %s", span.rollout_id, error)
    return records


def folder_of(store_url: str, home: Path) -> Path:
    """The folder, below `home`, for what is meant for that store and no other."""
    return home / "runner-spool" / hashlib.blake2b(store_url.rstrip("/").encode(), digest_size=8).hexdigest()


def leftovers(folder: Path) -> list[str]:
    """Names of the spools in the folder, of processes alive or not, oldest first."""
    files = [path for path in folder.glob(f"*{_SUFFIX}") if path.is_file()]
    return [path.name.removesuffix(_SUFFIX) for path in sorted(files, key=lambda path: path.stat().st_mtime)]


async def deliver_leftovers(store: LightningStore, folder: Path) -> int:
    """Deliver what runners that are gone left in the folder; returns how many reports.

    A file that another process holds is left alone. One that cannot be read is set aside as `.damaged`.

    Raises:
        StorageError: (or another of `courier.AWAY`) The store cannot be reached; what is left stays.
    """
    courier = Courier(store)
    delivered = 0
    for name in leftovers(folder):
        spool = Spool(folder, name)
        try:
            while (backlog := _first_or_damaged(spool)) is not None:
                await courier.deliver(backlog.spans, backlog.reports)
                spool.remove(backlog)
                delivered += len(backlog.reports)
        except BusyError:
            continue
        finally:
            spool.close()
    if delivered:
        logger.info("Delivered %d reports that earlier runners had left in %s.", delivered, folder)
    return delivered


def _first_or_damaged(spool: Spool) -> Backlog | None:
    try:
        return spool.first()
    except StorageError as error:
        damaged = spool.path.with_suffix(".damaged")
        logger.error("%s It is kept as %s.", error, damaged)
        with contextlib.suppress(FileNotFoundError):  # somebody has removed it
            spool.path.rename(damaged)
        return None
