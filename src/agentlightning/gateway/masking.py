"""Takes personal data and secrets out of what is kept of a call: records and logs. Knows nothing of storage.

Only copies are changed. What the model is asked and what the agent is answered stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import msgspec
import orjson

from agentlightning.gateway.masking_finders import KINDS, Kind, Span, finders, visible
from agentlightning.kit.errors import ConfigError

Place = Literal["prompts", "completions", "errors", "logs"]
PLACES: tuple[Place, ...] = ("prompts", "completions", "errors", "logs")

_MAX_DEPTH = 64
_SMALLEST_CARD = 10**12
_TOO_DEEP = "[nested too deeply to be looked into]"


class MaskingPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What is masked, and where. Needs the extra `masking`."""

    kinds: frozenset[Kind] = frozenset(KINDS)
    places: frozenset[Place] = frozenset(PLACES)
    """Of a call's record: `prompts` (messages, tools, parameters), `completions`, `errors`; and `logs`."""
    token_ids: Literal["drop", "keep"] = "drop"
    """Token ids say the same as the text. `drop` leaves them out of records in which something was masked, and labels
    those not trainable; `keep` keeps them, readable for whoever has the tokenizer."""
    phone_regions: tuple[str, ...] = ()
    """Countries (`US`, `DE`) whose numbers are found without their prefix as well; `+...` is always found."""

    @classmethod
    def parse(cls, text: str, **options: Any) -> MaskingPolicy:
        """From `all` or kinds with commas between.

        Raises:
            ConfigError: A kind is unknown.
        """
        names = set(KINDS) if text.strip() == "all" else {name.strip() for name in text.split(",") if name.strip()}
        unknown = names - set(KINDS)
        if unknown or not names:
            raise ConfigError(
                f"Unknown kinds to mask: {', '.join(sorted(unknown)) or 'none given'}.",
                hint=f"Use all, or some of: {', '.join(KINDS)}.",
            )
        return cls(kinds=cast("frozenset[Kind]", frozenset(names)), **options)


class Masker:
    """Replaces what a policy names by `[kind]`.

    Raises:
        ConfigError: The policy names a kind, place or region that there is not.
        MissingExtraError: The libraries are not installed.
    """

    def __init__(self, policy: MaskingPolicy) -> None:
        wrong = policy.places - set(PLACES)
        if wrong:
            raise ConfigError(
                f"Unknown places to mask: {', '.join(sorted(wrong))}.", hint=f"Places: {', '.join(PLACES)}."
            )
        self.policy = policy
        self._finders = finders(policy.kinds, policy.phone_regions)

    def text(self, text: str, found: set[Kind] | None = None) -> str:
        """The text without them; their kinds are added to `found`."""
        if len(text) < 3:
            return text
        seen, places = visible(text)
        taken: list[tuple[int, int, Kind]] = []
        for kind, find in self._finders:
            spans = _without_overlaps(find(seen))
            if spans:
                taken.extend((start, end, kind) for start, end in spans)
                seen = _blanked(seen, spans)  # what is found is not looked at again
        if not taken:
            return text
        taken.sort()
        return _replaced(text, taken, places, found)

    def value(self, value: Any, found: set[Kind], depth: int = 0) -> Any:
        """The same for every text in a JSON value, names of fields included; JSON within a text is looked into."""
        if isinstance(value, str):
            return self._string(value, found, depth)
        if isinstance(value, dict):
            if depth > _MAX_DEPTH:
                return self._flat(value, found)
            fields = cast("dict[str, Any]", value)
            return {self.text(name, found): self.value(one, found, depth + 1) for name, one in fields.items()}
        if isinstance(value, list):
            if depth > _MAX_DEPTH:
                return self._flat(value, found)
            return [self.value(one, found, depth + 1) for one in cast("list[Any]", value)]
        if isinstance(value, int) and value >= _SMALLEST_CARD:
            text = str(value)
            masked = self.text(text, found)
            return value if masked == text else masked
        return value

    def _flat(self, value: Any, found: set[Kind]) -> str:
        try:
            return self.text(orjson.dumps(value).decode(), found)
        except TypeError:  # deeper than JSON is written
            return _TOO_DEEP

    def _string(self, text: str, found: set[Kind], depth: int) -> str:
        if text.startswith("data:") and ";base64," in text[:200]:
            return text  # an image or a file
        if text[:1] in ("{", "["):
            try:
                inner = orjson.loads(text)
            except orjson.JSONDecodeError:
                return self.text(text, found)
            within: set[Kind] = set()
            masked = self.value(inner, within, depth + 1)
            found |= within
            return orjson.dumps(masked).decode() if within else text
        return self.text(text, found)


class LogMask(logging.Filter):
    """A filter for handlers: what passes is masked, tracebacks included."""

    def __init__(self, mask: Callable[[str], str]) -> None:
        super().__init__()
        self._mask = mask
        self._formatter = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the record; it always passes."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit: the handler will say so
            return True
        masked = self._mask(message)
        if masked != message:
            record.msg, record.args = masked, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = self._formatter.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._mask(record.exc_text)
        if record.stack_info:
            record.stack_info = self._mask(record.stack_info)
        return True


def mask_logs(masker: Masker, logger: logging.Logger | None = None) -> Callable[[], None]:
    """Mask what the handlers of a logger (the root logger, if none is given) write; returns the undoing.

    Handlers that are added later are not covered: give them a `LogMask` of their own.
    """
    handlers = list((logger or logging.getLogger()).handlers)
    mask = LogMask(masker.text)
    for handler in handlers:
        handler.addFilter(mask)

    def undo() -> None:
        for handler in handlers:
            handler.removeFilter(mask)

    return undo


def _without_overlaps(spans: Iterable[Span]) -> list[Span]:
    kept: list[Span] = []
    for start, end in sorted(spans):
        if kept and start < kept[-1][1]:
            kept[-1] = (kept[-1][0], max(end, kept[-1][1]))
        else:
            kept.append((start, end))
    return kept


def _blanked(seen: bytes, spans: list[Span]) -> bytes:
    pieces: list[bytes] = []
    last = 0
    for start, end in spans:
        pieces += (seen[last:start], b"\x1f" * (end - start))
        last = end
    pieces.append(seen[last:])
    return b"".join(pieces)


def _replaced(text: str, taken: list[tuple[int, int, Kind]], places: list[int] | None, found: set[Kind] | None) -> str:
    pieces: list[str] = []
    last = 0
    for start, end, kind in taken:
        at: Span = (start, end) if places is None else (places[start], places[end - 1] + 1)
        pieces += (text[last : at[0]], f"[{kind}]")
        last = at[1]
        if found is not None:
            found.add(kind)
    pieces.append(text[last:])
    return "".join(pieces)
