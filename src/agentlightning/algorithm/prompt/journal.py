"""An append-only file of JSON lines that survives being cut at any byte. Knows no meaning of its records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from agentlightning.kit.files import storage_error

SNAPSHOTS = "snapshots.jsonl"
"""Which resources of the store are which candidate of a run."""


class Journal:
    """Records in the order they were made; a torn last line (after a kill) is left out and overwritten.

    Raises:
        StorageError: On `append`, when the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = list(self._read())

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; it is in the hands of the operating system when this returns."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(orjson.dumps(record, default=str, option=orjson.OPT_NON_STR_KEYS) + b"\n")
        except OSError as error:
            raise storage_error(self.path, error) from error
        self.records.append(record)

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.path.open("r+b") as stream:
                stream.truncate(whole)
        for line in data[:whole].splitlines():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # a line of zeros after a power cut
