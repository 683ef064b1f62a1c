"""Captured calls on disk while the store is away. Knows no store: it keeps records in order and gives them back.

A spool is a folder of segment files. A segment holds frames (length, CRC-32, msgpack of one call's span records), only
ever appended. One `write` and one `fsync` carry all calls that arrived together, and a call counts as kept after them:
it survives the death of the process and of the machine. A frame that was torn by a crash was never counted as kept; it
is cut off at the next start. Segments are deleted once everything in them is delivered; after a crash in between, the
segment is delivered again, which a store takes for what it is (it knows spans by their ids).

Processes that share a spool each have a slot of it, a folder locked while they live. Whoever starts takes a free slot
and adopts what the dead left in others.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec

from agentlightning.kit.errors import BusyError, StorageError
from agentlightning.kit.files import exclusive_lock
from agentlightning.store.records import SpanRecord

_log = logging.getLogger(__name__)

_FRAME = struct.Struct("<II")
_SUFFIX = ".spool"
_DAMAGED = ".damaged"
_PASSWORD = re.compile(r":[^:@/]*@")
_REFUSED = "refused.log"
_MAX_SLOTS = 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[SpanRecord]).decode

Entry = list[SpanRecord]
"""The spans of one call."""


class SpoolFullError(StorageError):
    """The spool has reached its bound."""

    code = "SPOOL_FULL"


class Spool:
    """An append-only queue of calls on disk. Blocking; one thread at a time.

    Args:
        root: Folder, created when missing; other processes may use it too.
        max_bytes: Bound of what waits.
        segment_bytes: Size at which a new file begins, so that delivered ones can be deleted.
    """

    def __init__(self, root: Path | str, *, max_bytes: int = 1 << 30, segment_bytes: int = 16 << 20) -> None:
        self.root = Path(root)
        self.max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._held = ExitStack()
        self._folder: Path | None = None
        self._segments: deque[Path] = deque()
        self._writer: io.FileIO | None = None
        self._next = 0
        self._head = 0  # offset in the first segment of what is not delivered yet
        self.spans = 0
        """Spans that wait."""
        self.bytes = 0
        """Size of what waits, delivered parts of the first segment included."""

    def open(self) -> None:
        """Take a slot, adopt what dead processes left, and cut off torn ends. Calling it again is harmless.

        Raises:
            StorageError: The folder cannot be used.
        """
        if self._folder is not None:
            return
        self.spans = self.bytes = self._head = 0
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._folder = self._take_slot()
            self._segments = deque(sorted(self._folder.glob(f"*{_SUFFIX}"), key=_number))
            self._next = _number(self._segments[-1]) + 1 if self._segments else 0
            for path in list(self._segments):
                self._recover(path)
            self._adopt()
        except OSError as error:
            self._held.close()
            self._folder = None
            raise _failed(self.root, error) from error

    def close(self) -> None:
        """Free the slot; what waits stays on disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._held.close()
        self._folder = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep entries, all or none; returns after `fsync`.

        Raises:
            SpoolFullError: They do not fit below `max_bytes`.
            StorageError: The disk refused them, for instance because it is full.
        """
        data = b"".join(map(_frame, entries))
        if self.bytes + len(data) > self.max_bytes:
            raise SpoolFullError(
                f"The spool {self.root} holds {self.bytes} bytes of undelivered calls; at most {self.max_bytes} are "
                "allowed.",
                hint="Bring the store back, or allow more.",
            )
        self._append(data)
        self.bytes += len(data)
        self.spans += sum(map(len, entries))

    def head(self, max_spans: int = 256) -> list[Entry]:
        """The oldest entries: about `max_spans` spans, at least one entry; empty when nothing waits.

        Raises:
            StorageError: The disk cannot be read.
        """
        return [entry for entry, _ in self._head_frames(max_spans)]

    def drop(self, entries: int) -> None:
        """Forget the oldest entries: they are delivered.

        Raises:
            StorageError: A file cannot be deleted.
        """
        if entries < 1:
            return
        for entry, end in self._head_frames(1 << 62, entries):
            self._head = end
            self.spans -= len(entry)
        try:
            if self._segments and self._head >= self._segments[0].stat().st_size:
                self._delete_first()
        except OSError as error:
            raise _failed(self.root, error) from error

    def refuse(self, entry: Entry, reason: str) -> Path:
        """Put aside an entry that the store will not take, for people to look at; returns the file.

        Raises:
            StorageError: The disk refused it.
        """
        path = self._slot() / _REFUSED
        line = msgspec.json.encode({"reason": reason, "spans": [record_as_json(record) for record in entry]})
        try:
            with path.open("ab") as stream:
                stream.write(line + b"\n")
        except OSError as error:
            raise _failed(path, error) from error
        return path

    def _slot(self) -> Path:
        if self._folder is None:
            raise StorageError(f"The spool {self.root} is not open.", hint="Start the gateway first.")
        return self._folder

    def _take_slot(self) -> Path:
        for number in range(_MAX_SLOTS):
            folder = self.root / f"slot-{number:03}"
            try:
                self._held.enter_context(exclusive_lock(folder / "lock", purpose="A spool"))
            except BusyError:
                continue
            return folder
        raise StorageError(f"All {_MAX_SLOTS} slots of the spool {self.root} are taken.", hint="Use another folder.")

    def _adopt(self) -> None:
        folder = self._slot()
        for other in sorted(self.root.glob("slot-*")):
            if other == folder or not any(other.glob(f"*{_SUFFIX}")):
                continue
            try:
                with exclusive_lock(other / "lock", purpose="A spool"):
                    for path in sorted(other.glob(f"*{_SUFFIX}"), key=_number):
                        moved = self._new_path()
                        path.rename(moved)
                        self._segments.append(moved)
                        self._recover(moved)
            except BusyError:
                continue  # its process lives and delivers itself

    def _recover(self, path: Path) -> None:
        """Count what a segment holds and cut off what was torn."""
        end = 0
        with path.open("rb+") as stream:
            for entry, after in _frames(stream, 0):
                self.spans += len(entry)
                end = after
            stream.seek(end)
            torn = stream.read()
            if torn:
                _set_aside(path, torn, end)
            stream.truncate(end)
        if end == 0:
            path.unlink()
            self._segments.remove(path)
        self.bytes += end

    def _append(self, data: bytes) -> None:
        writer: io.FileIO | None = None
        end = 0
        try:
            writer = self._open_writer()
            end = writer.tell()
            rest = memoryview(data)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[writer.write(rest) :]
            os.fsync(writer.fileno())
        except OSError as error:
            if writer is not None:
                self._undo(writer, end)
            raise _failed(self.root, error) from error

    def _open_writer(self) -> io.FileIO:
        if self._writer is not None and self._writer.tell() >= self._segment_bytes:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            path = self._new_path()
            self._writer = io.FileIO(path, "x")
            self._segments.append(path)
            _sync_folder(path.parent)  # the file's name must survive a power cut as well
        return self._writer

    def _undo(self, writer: io.FileIO, end: int) -> None:
        """Remove half a frame, so that later ones stay readable. Where even that fails, a new segment begins."""
        try:
            os.ftruncate(writer.fileno(), end)
            writer.seek(end)
        except OSError:
            writer.close()
            self._writer = None

    def _delete_first(self) -> None:
        path = self._segments.popleft()
        if not self._segments and self._writer is not None:
            self._writer.close()
            self._writer = None
        self.bytes -= path.stat().st_size
        path.unlink()
        self._head = 0

    def _head_frames(self, max_spans: int, max_entries: int = 1 << 62) -> list[tuple[Entry, int]]:
        found: list[tuple[Entry, int]] = []
        spans = 0
        try:
            while self._segments and not found:
                with self._segments[0].open("rb") as stream:
                    for entry, end in _frames(stream, self._head):
                        found.append((entry, end))
                        spans += len(entry)
                        if spans >= max_spans or len(found) >= max_entries:
                            break
                    if not found:  # the disk does not give back what it took
                        stream.seek(self._head)
                        _set_aside(self._segments[0], stream.read(), self._head)
                        self._delete_first()
        except OSError as error:
            raise _failed(self.root, error) from error
        if not self._segments:
            self.spans = 0
        return found

    def _new_path(self) -> Path:
        self._next += 1
        return self._slot() / f"{self._next - 1:08}{_SUFFIX}"


def spool_folder(store: object, home: Path) -> Path | None:
    """Where the calls for a store wait: a folder of that store's own, so that they reach no other one.

    Beside a store's file; below `home` for a store behind a URL; `None` for one in memory, which is never away.
    """
    place = getattr(store, "location", None) or getattr(store, "server_address_root", None)
    if isinstance(place, Path):
        return place.with_name(f"{place.name}.spool")
    if place is None:
        return None
    address = _PASSWORD.sub("@", str(place))
    return home / "spool" / hashlib.blake2b(address.encode(), digest_size=8).hexdigest()


def record_as_json(record: SpanRecord) -> dict[str, object]:
    """A record for people to read."""
    body = msgspec.msgpack.decode(record.body)
    return {name: getattr(record, name) for name in record.__struct_fields__ if name != "body"} | {"body": body}


def _number(path: Path) -> int:
    return int(path.stem)


def _frame(entry: Entry) -> bytes:
    payload = _encode(entry)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _frames(stream: BinaryIO, offset: int) -> Iterator[tuple[Entry, int]]:
    """Entries from `offset` on, each with the offset behind it, up to the end or the first frame that is torn."""
    stream.seek(offset)
    while len(head := stream.read(_FRAME.size)) == _FRAME.size:
        length, checksum = _FRAME.unpack(head)
        payload = stream.read(length)
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        offset += _FRAME.size + length
        yield _decode(payload), offset


def _set_aside(path: Path, data: bytes, offset: int) -> None:
    damaged = path.with_suffix(_DAMAGED)
    damaged.write_bytes(data)
    _log.warning(
        "%d bytes of the spool file %s, from byte %d on, are no whole records: torn by a crash (then they were never "
        "acknowledged) or damaged. They are kept in %s.",
        len(data),
        path,
        offset,
        damaged.name,
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The spool {path} cannot be used: {error.strerror or error}.",
        hint="Check the disk: space, permissions, health.",
    )
