"""Rows of a result, bounded in number and size. Knows no database."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentlightning.tools.settings import DatabaseSettings

_CELL_CHARS = 1000


@dataclass
class Rows:
    """What a statement gave."""

    columns: list[str]
    rows: list[list[Any]]
    more: bool = False
    """There were more, or larger, rows than allowed."""
    changed: int = 0


def taken(columns: list[str], rows: Iterable[Any], settings: DatabaseSettings) -> Rows:
    """The first rows within the limits."""
    found, size = Rows(columns, []), 0
    for row in rows:
        values = [plain(value) for value in row]
        size += sum(len(str(value)) for value in values)
        if len(found.rows) >= settings.max_rows or size > settings.max_bytes:
            found.more = True
            break
        found.rows.append(values)
    return found


def plain(value: Any) -> Any:
    """As JSON has it; long texts are cut, bytes only counted."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return f"<{len(value)} bytes>"
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _CELL_CHARS else f"{text[:_CELL_CHARS]}...[{len(text) - _CELL_CHARS} more]"


def as_table(found: Rows) -> str:
    """For a model to read: Markdown."""

    def line(cells: list[Any]) -> str:
        shown = ("NULL" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return "| " + " | ".join(shown) + " |"

    if not found.columns:
        return f"{found.changed} rows changed."
    lines = [line(found.columns), "|" + "---|" * len(found.columns), *(line(row) for row in found.rows)]
    if found.more:
        lines.append(f"[only the first {len(found.rows)} rows; ask for less]")
    elif not found.rows:
        lines.append("(no rows)")
    return "\n".join(lines)
