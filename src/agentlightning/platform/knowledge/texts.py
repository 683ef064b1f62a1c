"""What is computed from texts alone: hashes, likeness, and where a query's words stand. Pure functions."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

ALIKE = 0.8
"""Share of common word triples from which on two texts are near-duplicates."""
MAX_WORDS = 24
"""Of a query; more say nothing more."""

_WORD = re.compile(r"\w+")
_BANDS, _ROWS = 5, 4
_SHINGLE = 3
_MERSENNE = (1 << 61) - 1
_FRAGMENT = 240


def content_hash(title: str, content: str) -> str:
    """SHA-256 of both."""
    return hashlib.sha256(f"{title}\0{content}".encode()).hexdigest()


FACET_DIGITS = 20


def facet(kind: str, value: str) -> str:
    """A category or tag as a word of digits: the text index neither stems nor splits it."""
    return str(int.from_bytes(hashlib.blake2b(f"{kind}={value}".encode(), digest_size=8).digest(), "big")).zfill(
        FACET_DIGITS
    )


def facets(category: str | None, tags: Iterable[str]) -> str:
    """All of an item."""
    found = [facet("tag", tag) for tag in tags]
    return " ".join([facet("category", category), *found] if category is not None else found)


def query_words(text: str) -> list[str]:
    """Its words in lower case, once each; nothing else of it gets anywhere near a query language."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return list(dict.fromkeys(word[:64] for word in _WORD.findall(plain)))[:MAX_WORDS]


def shingles(text: str) -> set[int]:
    """Its triples of words, as numbers."""
    words = _WORD.findall(text.lower())
    if len(words) < _SHINGLE:
        return {zlib.crc32(" ".join(words).encode())}
    triples = zip(words, words[1:], words[2:], strict=False)
    return {zlib.crc32(" ".join(triple).encode()) for triple in triples}


def likeness(one: set[int], other: set[int]) -> float:
    """Jaccard similarity: common ones among all."""
    return len(one & other) / max(1, len(one | other))


def bands(triples: set[int]) -> list[int]:
    """MinHash (Broder 1997) in bands, as signed 64-bit numbers.

    Two texts with `ALIKE` in common share one with a chance of 93 %, with 0.9 in common of 99.5 %.
    """
    import numpy as np

    multipliers, offsets = _permutations()
    values = np.fromiter(triples, np.uint64, len(triples))
    # 31-bit multipliers of 32-bit values stay below 2^64.
    hashed = (values[:, None] * multipliers + offsets) % np.uint64(_MERSENNE)
    smallest = hashed.min(axis=0).reshape(_BANDS, _ROWS)
    return [
        int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8, key=bytes([number])).digest(), "big", signed=True)
        for number, row in enumerate(smallest)
    ]


def _permutations() -> tuple[Any, Any]:
    import numpy as np

    random = np.random.default_rng(20261121)
    multipliers = random.integers(1, 2**31 - 1, _BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)
    return multipliers, random.integers(0, 2**61 - 2, _BANDS * _ROWS, dtype=np.uint64)


def highlights(content: str, words: Sequence[str], most: int = 2) -> list[dict[str, Any]]:
    """Fragments of `content` where words of the query stand, best first: `{"text", "marks": [[start, end], …]}`.

    The text is as it is in the item and marks are places in it: nothing has to be escaped here or trusted there.
    """
    marks = _places(content, words)
    found: list[dict[str, Any]] = []
    taken: list[tuple[int, int]] = []
    for start, end, _ in sorted(_windows(marks), key=lambda window: (-window[2], window[0])):
        if any(start < other_end and other_start < end for other_start, other_end in taken):
            continue
        begin, stop = _at_words(content, start, end)
        taken.append((begin, stop))
        inside = [[s - begin, e - begin] for s, e, _ in marks if begin <= s and e <= stop]
        found.append({"text": content[begin:stop], "marks": inside})
        if len(found) == most:
            break
    return found or [{"text": content[: _at_words(content, 0, _FRAGMENT)[1]], "marks": []}]


def _places(content: str, words: Sequence[str]) -> list[tuple[int, int, str]]:
    """Start, end and stem of each hit; English endings are looked past."""
    stems = {_stem(word) for word in words}
    text = content[:200_000]
    hits = ((match.start(), match.end(), _stem(match[0].lower())) for match in _WORD.finditer(text))
    return [hit for hit in hits if hit[2] in stems][:500]


def _windows(marks: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, int]]:
    """Start, end and number of different words for a fragment around each mark."""
    found: list[tuple[int, int, int]] = []
    for place, (start, _, _) in enumerate(marks):
        end = start + _FRAGMENT - 60
        inside = {stem for s, e, stem in marks[place : place + 40] if s >= start and e <= end}
        found.append((max(0, start - 60), end, len(inside)))
    return found


def _at_words(content: str, start: int, end: int) -> tuple[int, int]:
    """The same, moved inwards to where words begin and end."""
    if start > 0:
        space = content.find(" ", start, start + 40)
        start = space + 1 if space >= 0 else start
    if end < len(content):
        space = content.rfind(" ", max(start, end - 40), end)
        end = space if space >= 0 else end
    return start, min(end, len(content))


def _stem(word: str) -> str:
    for ending in (
        "ations",
        "ation",
        "ings",
        "ing",
        "edly",
        "ers",
        "er",
        "ies",
        "ied",
        "ed",
        "es",
        "ly",
        "s",
        "e",
        "y",
    ):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
