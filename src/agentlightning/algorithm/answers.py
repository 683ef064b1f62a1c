"""Finds what counts in what a model wrote: a label, a number, a list, JSON, code. Pure functions of text."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any, Protocol

import orjson

_MARKS = "*_`#> \t"
_BULLET = re.compile(r"^\s*(?:[-*•+]|\d{1,3}[.)])\s+")
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+(?:[eE][-+]?\d+)?")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)
_QUERY = re.compile(r"^\s*(?:select|with)\b", re.IGNORECASE | re.MULTILINE)
_QUOTES = str.maketrans(
    dict(zip(map(chr, (0x2018, 0x2019, 0x201C, 0x201D, 0x2013, 0x2014, 0x2212, 0xA0)), "''\"\"--- ", strict=True))
)


class UnusableError(Exception):
    """The answer does not hold what is looked for."""


class Comparison(Protocol):
    """How JSON is compared."""

    @property
    def number_tolerance(self) -> float: ...
    @property
    def ignore_case(self) -> bool: ...
    @property
    def unordered(self) -> bool: ...


def folded(text: str, *, ignore_case: bool = True) -> str:
    """The text with plain quotes and dashes, single spaces, without marks around it, in lower case."""
    plain = " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).split()).strip(_MARKS)
    plain = plain.removesuffix(".").strip()
    return plain.casefold() if ignore_case else plain


def after_label(answer: str, label: str) -> str:
    """What stands after the last `label:` in its line, or in the lines below if that one is empty.

    Raises:
        UnusableError: There is no such label.
    """
    lines = answer.splitlines()
    for number in range(len(lines) - 1, -1, -1):
        head, colon, rest = lines[number].partition(":")
        if colon and head.strip(_MARKS).casefold() == label.casefold():
            rest = rest.strip(_MARKS)
            return rest if rest else "\n".join(_paragraph(lines[number + 1 :]))
    raise UnusableError(f"there is no line {label}: …")


def _paragraph(lines: list[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        if line.strip(_MARKS):
            found.append(line)
        elif found:
            break
    return found


def number_in(answer: str, label: str) -> float:
    """The first number after the last `label:`.

    Raises:
        UnusableError: There is none.
    """
    text = after_label(answer, label).translate(_QUOTES)
    found = _NUMBER.search(text)
    if found is None:
        raise UnusableError(f"there is no number after {label}:")
    value = float(found.group().replace(",", ""))
    if not math.isfinite(value):
        raise UnusableError("the number is too large")
    return value


def items_in(answer: str, label: str) -> list[str]:
    """The items after the last `label:`: one a line, or comma-separated in one line; `none` is no item.

    Raises:
        UnusableError: There is no such label.
    """
    lines = after_label(answer, label).splitlines()
    parts = lines if len(lines) > 1 else [part for line in lines for part in _BULLET.sub("", line).split(",")]
    found = [_BULLET.sub("", part).strip(_MARKS) for part in parts]
    return [item for item in found if item and item.casefold() not in ("none", "[]")]


def blocks_in(answer: str, *languages: str) -> list[str]:
    """The code blocks of the answer; those in one of `languages`, when any are given."""
    found: list[str] = []
    fences = list(_FENCE.finditer(answer))
    for opened, closed in zip(fences[::2], [*fences[1::2], None], strict=False):
        if not languages or opened.group(1).lower() in (*languages, ""):
            found.append(answer[opened.end() : closed.start() if closed else len(answer)].strip("\n"))
    return found


def code_in(answer: str, *languages: str) -> str:
    """All its code blocks in that language, one after the other; an answer without blocks is code as a whole."""
    return "\n\n".join(blocks_in(answer, *languages)) or answer


def expression_in(answer: str) -> str:
    """A regular expression: the first code block's first line, else the last line."""
    blocks = blocks_in(answer)
    lines = (blocks[0] if blocks else answer).strip().splitlines()
    if not lines:
        raise UnusableError("there is no expression")
    return (lines[0] if blocks else lines[-1]).strip().strip("`")


def query_in(answer: str) -> str:
    """A query: the last code block's, else what begins with SELECT or WITH.

    Raises:
        UnusableError: There is none.
    """
    blocks = blocks_in(answer, "sql", "sqlite")
    text = blocks[-1] if blocks else answer
    found = _QUERY.search(text)
    if found is None:
        raise UnusableError("there is no query")
    return text[found.start() :].strip().rstrip(";").strip()


def object_in(answer: str) -> dict[str, Any]:
    """The JSON object of the answer: a code block's, or what stands between the first and the last brace.

    Raises:
        UnusableError: There is none.
    """
    candidates = [*blocks_in(answer, "json"), answer, answer[answer.find("{") : answer.rfind("}") + 1]]
    for candidate in candidates:
        try:
            found = orjson.loads(candidate)
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return found
    raise UnusableError("there is no JSON object")


def agreement(expected: Any, found: Any, how: Comparison) -> float:
    """How much of `expected` is in `found`, and nothing else; 1 when equal. Null is absent."""
    if isinstance(expected, dict) and isinstance(found, dict):
        expected, found = _present(expected), _present(found)
        names = expected.keys() | found.keys()
        shares = [agreement(expected[name], found[name], how) for name in expected.keys() & found.keys()]
        return sum(shares) / len(names) if names else 1.0
    if isinstance(expected, list) and isinstance(found, list):
        return _list_agreement(expected, found, how)
    return float(_same(expected, found, how))


def _present(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}


def _list_agreement(expected: list[Any], found: list[Any], how: Comparison) -> float:
    n = max(len(expected), len(found))
    if n == 0:
        return 1.0
    if not how.unordered:
        return sum(agreement(a, b, how) for a, b in zip(expected, found, strict=False)) / n
    left, total = list(found), 0.0
    for item in expected:
        shares = [agreement(item, other, how) for other in left]
        if shares and (best := max(shares)) > 0:
            total += best
            left.pop(shares.index(best))
    return total / n


def _same(expected: Any, found: Any, how: Comparison) -> bool:
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None or found is None:
        return expected is found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=how.number_tolerance, abs_tol=how.number_tolerance)
    if isinstance(expected, str) and isinstance(found, str):
        return folded(expected, ignore_case=how.ignore_case) == folded(found, ignore_case=how.ignore_case)
    return False
