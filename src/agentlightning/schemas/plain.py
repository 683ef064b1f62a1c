"""Value types that every database and every JSON parser takes. Pure data."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

T = TypeVar("T")

MAX_DEPTH = 12
_MAX_INTEGER = 2**63 - 1


def stripped(value: str) -> str:
    """Without white space around it; for `AfterValidator`, so that limits of length are those of what was sent.

    Raises:
        ValueError: Nothing is left.
    """
    value = value.strip()
    if not value:
        raise ValueError("is empty")
    return value


def plain_json(value: Any, depth: int = MAX_DEPTH) -> Any:
    """The value itself, if it is JSON that can be kept anywhere.

    Raises:
        ValueError: It nests too deeply, or holds NaN, infinities, NUL, halves of characters or huge integers.
    """
    if depth < 0:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            plain_text(key)
            plain_json(item, depth - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            plain_json(item, depth - 1)
    elif isinstance(value, str):
        plain_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and infinities are no JSON")
    elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise ValueError("integers have at most 64 bits")
    elif value is not None and not isinstance(value, bool | int | float):
        raise ValueError(f"{type(value).__name__} is no JSON")
    return value


def plain_text(value: Any) -> str:
    """The text itself.

    Raises:
        ValueError: It is no text, or holds NUL or half a character.
    """
    if not isinstance(value, str):
        raise ValueError("keys have to be texts")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("text may hold neither NUL nor halves of characters")
    return value


Json = Annotated[Any, AfterValidator(plain_json)]
Many = Annotated[tuple[T, ...], Field(strict=False)]
"""A tuple that is given as a list in JSON and TOML."""
