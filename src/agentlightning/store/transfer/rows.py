"""A table's row as the fields of an archive, and back, checked. Knows neither files nor databases."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import msgspec
import orjson

from agentlightning.kit.db import Row
from agentlightning.kit.errors import AgentLightningError, BadInputError
from agentlightning.schemas import AttemptStatus, RolloutConfig, RolloutMode, RolloutStatus
from agentlightning.store.records import check_body, unpack
from agentlightning.store.transfer.plan import Kind, TablePlan, field_of, kind_of
from agentlightning.store.transfer.selection import labels_of
from agentlightning.store.transfer.values import (
    TAG_START,
    Resolve,
    decode_bytes,
    encode_bytes,
    from_json,
    to_json,
    untagged,
)

RAW = "_raw"
"""Field with what the readable ones cannot give back exactly, as base64, by their names."""

_NIL = b"\xc0"

_pack = msgspec.msgpack.Encoder().encode


class Digest:
    """SHA-256 over rows as they stand in a database."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.rows = 0
        self.first_no = 0
        self.last_no = 0

    def add(self, rows: Sequence[Row], width: int) -> None:
        """Take in the first `width` columns of rows, of which the first is `no`."""
        for row in rows:
            self._hash.update(_pack(row[:width]))
        if rows:
            self.first_no = self.first_no or rows[0][0]
            self.last_no = rows[-1][0]
            self.rows += len(rows)

    def hex(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


class RowCodec:
    """Rows of one table as fields.

    Args:
        plan: Of the table.

    Attributes:
        kinds: Field to kind, for the columns.
        labels: Fields that name what a row refers to.
        fields: All fields in the order of an archive.
    """

    def __init__(self, plan: TablePlan) -> None:
        self.plan = plan
        self.kinds: dict[str, Kind] = {field_of(c.name): kind_of(c) for c in plan.table.columns}
        self.labels = labels_of(plan)
        self.width = len(plan.columns)
        first, *others = self.kinds
        self.fields = [first, *self.labels, *others]
        self._columns: list[tuple[str, Kind, bool]] = [
            (field_of(c.name), kind_of(c), bool(c.nullable)) for c in plan.table.columns
        ]
        self._checks = _CHECKS.get(plan.name, {})
        self._packed = [(i, name, null) for i, (name, kind, null) in enumerate(self._columns) if kind == "json"]
        self._order = [0, *range(self.width, self.width + len(self.labels)), *range(1, self.width)]

    def encode(self, row: Row, resolve: Resolve) -> tuple[list[Any], dict[str, str]]:
        """Values in the order of `fields`, packed ones as JSON text; and what they cannot give back exactly."""
        values = list(row)
        raw: dict[str, str] = {}
        for index, name, nullable in self._packed:
            blob = values[index]
            if blob is not None:
                values[index], exact = to_json(blob, resolve)
                if not exact or (nullable and blob == _NIL):  # else it would come back as no value at all
                    raw[name] = encode_bytes(blob)
        return [values[i] for i in self._order], raw

    def encode_line(self, row: Row, resolve: Resolve) -> bytes:
        """A row as a line of JSON."""
        values, raw = self.encode(row, resolve)
        record: dict[str, Any] = {}
        for name, value in zip(self.fields, values, strict=True):
            kind = self.kinds.get(name)
            if value is None or kind in ("integer", "text", None):
                record[name] = value
            elif kind == "json":
                record[name] = orjson.Fragment(value)
            elif kind == "bytes":
                record[name] = {"$bytes": encode_bytes(value)}
            else:
                record[name] = value if math.isfinite(value) else {"$float": _name_of(value)}
        if raw:
            record[RAW] = raw
        return orjson.dumps(record) + b"\n"

    def decode_line(self, line: bytes) -> Row:
        """Inverse of `encode_line`.

        Raises:
            BadInputError: It is malformed.
        """
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadInputError(f"no JSON: {error}") from error
        if not isinstance(record, dict):
            raise BadInputError("no JSON object")
        return self.decode(record, may_be_tagged=TAG_START in line)

    def decode(self, record: dict[str, Any], *, may_be_tagged: bool) -> Row:
        """The row for its fields.

        Raises:
            BadInputError: A field is missing, unknown, or of another kind.
        """
        raw = record.get(RAW) or {}
        values: list[Any] = []
        for name, kind, nullable in self._columns:
            value = record.get(name)
            if name in raw:
                value = decode_bytes(raw[name])
            elif value is not None or (kind == "json" and not nullable and name in record):
                value = _convert(name, kind, value, may_be_tagged)
            if value is None and not nullable:
                raise BadInputError(f"{name} is missing")
            values.append(value)
        unknown = record.keys() - self.kinds.keys() - set(self.labels) - {RAW}
        if unknown:
            raise BadInputError(f"unknown field {min(unknown)!r}")
        self._check(values)
        return tuple(values)

    def _check(self, values: list[Any]) -> None:
        if values[0] < 1:
            raise BadInputError("no has to be positive")
        for index, (name, _, _) in enumerate(self._columns):
            check = self._checks.get(name)
            if check is not None and values[index] is not None:
                try:
                    check(values[index])
                except AgentLightningError as error:
                    raise BadInputError(f"{name}: {error.message}") from error
                except ValueError as error:
                    raise BadInputError(f"{name}: {str(error).splitlines()[0]}") from error


def _name_of(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


_TYPES: dict[Kind, type | tuple[type, ...]] = {"integer": int, "number": (int, float), "text": str, "bytes": bytes}


def _convert(name: str, kind: Kind, given: Any, may_be_tagged: bool) -> Any:
    if kind == "json":
        return from_json(given, may_be_tagged=may_be_tagged)
    value: Any = untagged(given) if kind in ("bytes", "number") else given
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        raise BadInputError(f"{name} is no {kind}")
    if kind == "integer" and not -(2**63) <= value < 2**63:
        raise BadInputError(f"{name} is out of range")
    return float(value) if kind == "number" else value


def _one_of(literal: Any) -> Callable[[str], None]:
    known = get_args(literal)

    def check(value: str) -> None:
        if value not in known:
            raise BadInputError(f"{value!r} is none of {', '.join(known)}")

    return check


def _extension(blob: bytes) -> bool:
    return 0xC7 <= blob[0] <= 0xC9


def _check_config(blob: bytes) -> None:
    if not _extension(blob):
        RolloutConfig(**unpack(blob))


def _check_body(blob: bytes) -> None:
    if not _extension(blob):  # else it stands elsewhere, in pieces
        check_body(blob)


# What a reader of the store would stumble over, beyond the kinds.
_CHECKS: dict[str, dict[str, Callable[[Any], None]]] = {
    "rollouts": {"status": _one_of(RolloutStatus), "mode": _one_of(RolloutMode), "config": _check_config},
    "attempts": {"status": _one_of(AttemptStatus)},
    "spans": {"body": _check_body},
}


def in_parts(batches: Iterator[list[Row]], size: int) -> Iterator[Iterator[list[Row]]]:
    """Cut a stream of batches into parts of `size` rows; each has to be consumed before the next."""
    rest: list[Row] = []
    done = False

    def part() -> Iterator[list[Row]]:
        nonlocal rest, done
        missing = size
        while missing:
            if not rest:
                rest = next(batches, [])
                if not rest:
                    done = True
                    return
            now, rest = rest[:missing], rest[missing:]
            missing -= len(now)
            yield now

    while True:
        if not rest:
            rest = next(batches, [])
        if not rest or done:
            return
        yield part()
