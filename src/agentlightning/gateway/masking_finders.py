"""Finds personal data and secrets in a text, in time that grows with its length and not faster. Knows nothing of calls.

Every pattern runs in RE2, which does not backtrack, on a copy of the text with one ASCII character for each of its own:
full-width forms, other scripts' digits and typographic dashes become what they look like, letters beyond ASCII become
an `a`. So positions agree, and what is written in unusual characters is found too. What a pattern finds is checked
where there is something to check: Luhn digits of cards, ISO 7064 of IBANs, numbering plans of phone numbers.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, Literal

from agentlightning.kit.errors import ConfigError, MissingExtraError

Kind = Literal["secret", "email", "iban", "card", "ip", "phone"]
KINDS: tuple[Kind, ...] = ("secret", "email", "iban", "card", "ip", "phone")
"""In the order in which they are looked for: what is found first is not looked at again."""

Span = tuple[int, int]
Finder = Callable[[bytes], Iterator[Span]]

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_MAX_CHECKED_PHONES = 2000
_MAX_GROUPS_DROPPED = 5
_SHORTEST_PHONE = 7

# The forms that providers document for their keys, and what is called a password where it stands.
_SECRETS = b"|".join(
    (
        rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:[A-Za-z0-9+/=\s:,]|-[A-Za-z0-9])*"
        rb"(?:-----END [A-Z ]{0,40}KEY-----)?",
        rb"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
        rb"\b(?:sk|pk|rk)[-_](?:[A-Za-z0-9]{2,12}[-_]){0,3}[A-Za-z0-9_-]{16,}",
        rb"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{16}\b",
        rb"\bAIza[A-Za-z0-9_-]{35}",
        rb"\bya29\.[A-Za-z0-9_-]{20,}",
        rb"\bgh[pousr]_[A-Za-z0-9]{30,}",
        rb"\bgithub_pat_[A-Za-z0-9_]{40,}",
        rb"\bglpat-[A-Za-z0-9_-]{16,}",
        rb"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
        rb"\bhf_[A-Za-z0-9]{30,}",
        rb"\bnpm_[A-Za-z0-9]{30,}",
        rb"\bpypi-[A-Za-z0-9_-]{40,}",
        rb"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    )
)
_NAMED_SECRET = (
    rb"(?i)\b(?:[a-z0-9]{1,30}[-_]){0,3}"
    rb"(?:password|passwd|pwd|secret|api[-_]?key|access[-_]?key|auth[-_]?token|access[-_]?token)"
    rb"[\"']?\s{0,3}[:=]\s{0,3}[\"']?([^\s\"',;&<>]{6,200})"
)
_BEARER = rb"(?i)\b(?:bearer|basic)\s{1,3}([A-Za-z0-9._~+/=-]{16,})"
_URL_PASSWORD = rb"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,100}:([^\s/@]{1,200})@"
_EMAIL = (
    rb"[A-Za-z0-9_%+&#~-][A-Za-z0-9._%+&#~'-]{0,63}(?:@|%40)"
    rb"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]{1,62}"
)
_IBAN = rb"(?i)\b[a-z]{2}[0-9]{2}(?:[a-z0-9]{11,30}\b|(?:[ -][a-z0-9]{4}){2,7}(?:[ -][a-z0-9]{1,3})?\b)"
_DIGITS = rb"[0-9]{3,}(?:[ -][0-9]{3,})*(?:[ -][0-9]{1,2})?"
_IPV4 = rb"[0-9]{1,3}(?:\.[0-9]{1,3})+"
_IPV6 = rb"(?i)[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,8}(?:\.[0-9]{1,3}){0,3}"
_PHONE = rb"(?:\+|\b00|\(|[0-9])[0-9 ()./-]{5,24}[0-9]"


def finders(kinds: frozenset[Kind], phone_regions: tuple[str, ...]) -> list[tuple[Kind, Finder]]:
    """One for each kind, in order.

    Raises:
        ConfigError: A kind or region is unknown.
        MissingExtraError: The libraries are not installed.
    """
    unknown = kinds - set(KINDS)
    if unknown:
        raise ConfigError(f"Unknown kinds to mask: {', '.join(sorted(unknown))}.", hint=f"Kinds: {', '.join(KINDS)}.")
    makers: dict[Kind, Callable[[], Finder]] = {
        "secret": _secret_finder,
        "email": lambda: _plain_finder(_EMAIL),
        "iban": _iban_finder,
        "card": _card_finder,
        "ip": _ip_finder,
        "phone": lambda: _phone_finder(phone_regions),
    }
    return [(kind, makers[kind]()) for kind in KINDS if kind in kinds]


def visible(text: str) -> tuple[bytes, list[int] | None]:
    """What the finders look at, and where its bytes stand in `text`; `None` when at the same place."""
    if text.isascii():
        return text.encode(), None
    places: list[int] | None = None
    if _INVISIBLE.search(text):  # soft hyphens and the like, which would tear things apart
        places = [index for index, character in enumerate(text) if not _INVISIBLE.match(character)]
        places.append(len(text))
        text = _INVISIBLE.sub("", text)
    return text.translate(_LOOKS).encode("ascii"), places


class _Looks(dict[int, str]):
    """The ASCII character that looks like another; found once for each."""

    def __missing__(self, code: int) -> str:
        found = self[code] = chr(code) if code < 128 else _look(chr(code))
        return found


_LOOKS = _Looks()


def _look(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    if len(plain) == 1 and plain.isascii():
        return plain
    category = unicodedata.category(character)
    if category == "Pd" or character == "\u2212":
        return "-"
    if category == "Zs":
        return " "
    # Letters belong to a word, so that an address with an umlaut is one; the rest separates.
    return "a" if category[0] in "LM" else "\x1f"


def _compiled(pattern: bytes) -> Any:
    try:
        import re2
    except ImportError as error:
        raise MissingExtraError("Masking needs its libraries.", hint="pip install 'agentlightning[masking]'") from error
    return re2.compile(pattern)


def _plain_finder(pattern: bytes) -> Finder:
    compiled = _compiled(pattern)

    def find(text: bytes) -> Iterator[Span]:
        for match in compiled.finditer(text):
            yield match.span()

    return find


def _secret_finder() -> Finder:
    whole = _plain_finder(_SECRETS)
    parts = [_compiled(pattern) for pattern in (_URL_PASSWORD, _BEARER, _NAMED_SECRET)]

    def find(text: bytes) -> Iterator[Span]:
        yield from whole(text)
        for compiled in parts:
            for match in compiled.finditer(text):
                yield match.span(1)

    return find


def _iban_finder() -> Finder:
    compiled = _compiled(_IBAN)

    def find(text: bytes) -> Iterator[Span]:
        position = 0
        while match := compiled.search(text, position):
            start, position = match.span()
            # Words that follow in the same breath look like groups of it: try without them, one by one.
            end = position
            while end - start >= 15:
                if _is_iban(text[start:end]):
                    yield start, end
                    position = end
                    break
                end = max(text.rfind(b" ", start, end), text.rfind(b"-", start, end))

    return find


def _is_iban(candidate: bytes) -> bool:
    compact = re.sub(rb"[ -]", b"", candidate).upper()
    if not 15 <= len(compact) <= 34:
        return False
    digits = "".join(str(int(character, 36)) for character in (compact[4:] + compact[:4]).decode())
    return int(digits) % 97 == 1


def _card_finder() -> Finder:
    runs = _plain_finder(_DIGITS)
    groups = re.compile(rb"[0-9]+")

    def find(text: bytes) -> Iterator[Span]:
        for start, end in runs(text):
            if end - start < 13:
                continue
            parts = [(start + m.start(), start + m.end()) for m in groups.finditer(text[start:end])]
            yield from _cards(text, parts)

    return find


def _cards(text: bytes, groups: list[Span]) -> Iterator[Span]:
    """Runs of whole groups with 13 to 19 digits that are card numbers: an expiry date may stand right behind one."""
    first = 0
    while first < len(groups):
        digits = b""
        for last in range(first, len(groups)):
            digits += text[slice(*groups[last])]
            if len(digits) > 19:
                break
            if len(digits) >= 13 and digits[0] in b"23456" and _is_luhn(digits):
                yield groups[first][0], groups[last][1]
                first = last
                break
        first += 1


def _is_luhn(digits: bytes) -> bool:
    total = 0
    for position, byte in enumerate(reversed(digits)):
        digit = byte - 48
        if position % 2:
            digit = digit * 2 - 9 if digit > 4 else digit * 2
        total += digit
    return total % 10 == 0


def _ip_finder() -> Finder:
    candidates = [_plain_finder(_IPV4), _plain_finder(_IPV6)]

    def find(text: bytes) -> Iterator[Span]:
        for finder in candidates:
            for start, end in finder(text):
                if _is_alone(text, start, end) and _is_ip(text[start:end]):
                    yield start, end

    return find


def _is_alone(text: bytes, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() or after.isalnum())


@functools.lru_cache(4096)
def _is_ip(candidate: bytes) -> bool:
    try:
        address = ipaddress.ip_address(candidate.decode())
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)


def _phone_finder(regions: tuple[str, ...]) -> Finder:
    compiled = _compiled(_PHONE)
    is_phone = _phone_check(regions)

    def find(text: bytes) -> Iterator[Span]:
        checked = position = 0
        while match := compiled.search(text, position):
            start, position = match.span()
            if not (regions or text[start : start + 2] == b"00" or text[start : start + 1] == b"+"):
                continue
            end = text.find(b" 00", start, position)  # another number begins there
            end = position if end < 0 else end
            for _ in range(_MAX_GROUPS_DROPPED):
                checked += 1
                # A text with thousands of them is no conversation: what looks like one is masked without a check.
                is_found = checked > _MAX_CHECKED_PHONES or is_phone(text[start:end].decode())
                if is_found and _is_alone(text, start, end):
                    yield start, end
                    position = end
                    break
                end = text.rfind(b" ", start, end)  # other numbers may stand behind it
                if end - start < _SHORTEST_PHONE:
                    break

    return find


def _phone_check(regions: tuple[str, ...]) -> Callable[[str], bool]:
    try:
        import phonenumbers
    except ImportError as error:
        raise MissingExtraError("Masking needs its libraries.", hint="pip install 'agentlightning[masking]'") from error
    unknown = set(regions) - set(phonenumbers.SUPPORTED_REGIONS)
    if unknown:
        raise ConfigError(
            f"Unknown regions of phone numbers: {', '.join(sorted(unknown))}.", hint="Use codes like US, DE, IN."
        )

    @functools.lru_cache(4096)
    def check(candidate: str) -> bool:
        if candidate.startswith("+"):
            # Its form says that it is one; whether the number is in use is another matter.
            return _parsed(candidate, None, phonenumbers.is_possible_number)
        if candidate.startswith("00") and _parsed(f"+{candidate[2:]}", None, phonenumbers.is_valid_number):
            return True
        return any(_parsed(candidate, region, phonenumbers.is_valid_number) for region in regions)

    def _parsed(candidate: str, region: str | None, accept: Callable[[Any], bool]) -> bool:
        try:
            return accept(phonenumbers.parse(candidate, region))
        except phonenumbers.NumberParseException:
            return False

    return check
