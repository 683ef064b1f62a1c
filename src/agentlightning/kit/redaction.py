"""Keys taken out of text that somebody else wrote: a server that was sent one may repeat it. Knows no servers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

_PART = 8


class Redaction:
    """Replaces keys, also as JSON, URLs and base64 write them.

    Args:
        keys: Those that are known.
        mark: What stands in their place.
        shortest: Shorter ones stay: they would be found in any text.
    """

    def __init__(self, keys: Iterable[str] = (), mark: str = "[key]", *, shortest: int = 4) -> None:
        self._mark = mark
        self._shortest = shortest
        self._forms: list[str] = []
        self.add(keys)

    def add(self, keys: Iterable[str]) -> None:
        """Replace these, too."""
        forms = {form for key in keys if len(key) >= self._shortest for form in _forms(key)}
        # The longest first: one may be a part of another.
        self._forms = sorted({*self._forms, *forms}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without them."""
        for form in self._forms:
            text = text.replace(form, self._mark)
        return text

    def has_part(self, text: str) -> bool:
        """Whether a piece of one is there: programs that format what they print break keys at the end of a line."""
        return any(form[at : at + _PART] in text for form in self._forms for at in range(len(form) - _PART + 1))

    def raw(self, raw: bytes) -> bytes:
        """The same for bytes."""
        for form in self._forms:
            raw = raw.replace(form.encode(), self._mark.encode())
        return raw


def _forms(key: str) -> set[str]:
    raw = key.encode("utf-8", "surrogatepass")
    coded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}
    escaped = {json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1], repr(key)[1:-1]}
    return {key, *escaped, quote(raw, safe=""), quote(raw), quote_plus(raw), *(text.rstrip("=") for text in coded)}
