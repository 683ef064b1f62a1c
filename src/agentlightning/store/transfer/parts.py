"""Parts of an archive as files: JSON lines, plain or with zstd, and Parquet. Knows no databases.

A part appears under its name only when it is complete and on the disk.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast, get_args

from agentlightning.kit.db import Row
from agentlightning.kit.errors import BadInputError, MissingExtraError
from agentlightning.kit.files import storage_error
from agentlightning.kit.zstd import ZstdError, ZstdFile
from agentlightning.store.transfer.manifest import Encoding
from agentlightning.store.transfer.rows import RowCodec
from agentlightning.store.transfer.values import Resolve

_ZSTD_LEVEL = 3
_BATCH = 500


class PartFormat(ABC):
    """How rows stand in a file."""

    @abstractmethod
    def write(self, path: Path, batches: Iterable[Sequence[Row]], codec: RowCodec, resolve: Resolve) -> None:
        """Write rows, as `rows_of(labels=True)` gives them, to a new file."""

    @abstractmethod
    def read(self, path: Path, codec: RowCodec) -> Iterator[list[Row]]:
        """Rows without labels, a batch at a time.

        Raises:
            BadInputError: A row is malformed; the message says where.
        """


class JsonLines(PartFormat):
    """One row a line."""

    def __init__(self, *, compressed: bool) -> None:
        self._compressed = compressed

    @contextmanager
    def _open(self, path: Path, mode: str) -> Generator[IO[bytes]]:
        with cast(IO[bytes], path.open(mode)) as plain:
            if not self._compressed:
                yield plain
                return
            level = {"level": _ZSTD_LEVEL} if mode == "wb" else {}
            with ZstdFile(plain, mode, **level) as packed:  # pyright: ignore[reportArgumentType, reportCallIssue]
                yield cast(IO[bytes], packed)

    def write(self, path: Path, batches: Iterable[Sequence[Row]], codec: RowCodec, resolve: Resolve) -> None:
        with self._open(path, "wb") as stream:
            for batch in batches:
                for row in batch:
                    stream.write(codec.encode_line(row, resolve))

    def read(self, path: Path, codec: RowCodec) -> Iterator[list[Row]]:
        number = 0
        rows: list[Row] = []
        try:
            with self._open(path, "rb") as stream:
                for line in stream:
                    number += 1
                    rows.append(codec.decode_line(line))
                    if len(rows) == _BATCH:
                        yield rows
                        rows = []
        except BadInputError as error:
            raise BadInputError(f"{path}, line {number}: {error.message}.", details={"line": number}) from error
        except (ZstdError, EOFError) as error:
            raise BadInputError(f"{path}, after line {number}: {error}.", details={"line": number}) from error
        if rows:
            yield rows


class Parquet(PartFormat):
    """Typed columns; packed values are JSON text."""

    _GROUP_BYTES = 4 * 2**20
    _GROUP_ROWS = 5_000

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise MissingExtraError(
                "Parquet needs the package pyarrow.",
                hint="Run: pip install 'agentlightning[parquet]', or take --format jsonl.",
            ) from error
        self._arrow: Any = pyarrow
        self._parquet: Any = parquet

    def _schema(self, codec: RowCodec) -> Any:
        arrow = self._arrow
        types = {
            "integer": arrow.int64(),
            "number": arrow.float64(),
            "text": arrow.string(),
            "bytes": arrow.binary(),
            "json": arrow.string(),
        }
        fields = [arrow.field(name, types[codec.kinds.get(name, "text")]) for name in codec.fields]
        return arrow.schema([*fields, arrow.field("_raw", arrow.map_(arrow.string(), arrow.string()))])

    def write(self, path: Path, batches: Iterable[Sequence[Row]], codec: RowCodec, resolve: Resolve) -> None:
        schema = self._schema(codec)
        with self._parquet.ParquetWriter(str(path), schema, compression="zstd") as writer:
            waiting: list[list[Any]] = []
            size = 0
            for batch in batches:
                for row in batch:
                    values, raw = codec.encode(row, resolve)
                    waiting.append([*values, list(raw.items()) if raw else None])
                    size += sum(len(value) for value in values if isinstance(value, str | bytes))
                    if len(waiting) >= self._GROUP_ROWS or size >= self._GROUP_BYTES:
                        self._write_group(writer, schema, waiting)
                        waiting, size = [], 0
            if waiting:
                self._write_group(writer, schema, waiting)

    def _write_group(self, writer: Any, schema: Any, rows: list[list[Any]]) -> None:
        columns = [
            self._arrow.array(column, type=field.type)
            for column, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        writer.write_table(self._arrow.Table.from_arrays(columns, schema=schema))

    def read(self, path: Path, codec: RowCodec) -> Iterator[list[Row]]:
        number = 0
        try:
            with self._parquet.ParquetFile(str(path)) as file:
                for batch in file.iter_batches(batch_size=_BATCH):
                    rows: list[Row] = []
                    for record in batch.to_pylist():
                        number += 1
                        rows.append(codec.decode(self._parsed(record, codec), may_be_tagged=True))
                    yield rows
        except BadInputError as error:
            raise BadInputError(f"{path}, row {number}: {error.message}.", details={"line": number}) from error
        except (self._arrow.ArrowException, OSError) as error:
            raise BadInputError(f"{path}, after row {number}: {str(error).splitlines()[0]}.") from error

    @staticmethod
    def _parsed(record: dict[str, Any], codec: RowCodec) -> dict[str, Any]:
        import orjson

        raw = dict(record.pop("_raw", None) or ())
        parsed: dict[str, Any] = {"_raw": raw} if raw else {}
        for name, value in record.items():
            if codec.kinds.get(name) != "json" or value is None or name in raw:
                if value is not None or codec.kinds.get(name) != "json":
                    parsed[name] = value
                continue
            try:
                parsed[name] = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise BadInputError(f"{name} is no JSON: {error}") from error
        return parsed


def checked_encoding(name: str) -> Encoding:
    """The encoding of that name.

    Raises:
        BadInputError: There is none.
    """
    if name not in get_args(Encoding):
        raise BadInputError(f"Unknown format {name!r}.", hint=f"One of: {', '.join(get_args(Encoding))}.")
    return cast(Encoding, name)


def part_format(encoding: Encoding) -> PartFormat:
    """The format by its name.

    Raises:
        MissingExtraError: Parquet's package is not installed.
    """
    return Parquet() if encoding == "parquet" else JsonLines(compressed=encoding == "jsonl.zst")


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """Give a name to write to; what is there at the end of the block, if it goes well, gets the name of `path`.

    Raises:
        StorageError: The disk is full or the folder not writable; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):  # not there: it got its name, or was never begun; the error is the one above
            partial.unlink()
