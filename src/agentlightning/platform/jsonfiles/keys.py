"""Keys of providers and the like in JSON records, known by the names of their fields. They are not taken over."""

from __future__ import annotations

import re
from typing import Any, cast

_NAME = re.compile(
    r"(api[_-]?key|(^|[_-])(secret|token|password|passwd|credential|authorization|private[_-]?key|dsn))s?$",
    re.IGNORECASE,
)


def without_keys(value: Any) -> tuple[Any, list[str]]:
    """JSON without texts in fields that are named like secrets, and the paths of those."""
    found: list[str] = []
    return _clean(value, "", found), found


def _clean(value: Any, path: str, found: list[str]) -> Any:
    if isinstance(value, list):
        return [_clean(one, f"{path}[{place}]", found) for place, one in enumerate(cast("list[Any]", value))]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    for name, one in cast("dict[str, Any]", value).items():
        where = f"{path}.{name}".lstrip(".")
        if isinstance(one, str) and one and _NAME.search(name):
            found.append(where)
        else:
            kept[name] = _clean(one, where, found)
    return kept
