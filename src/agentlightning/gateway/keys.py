"""Who may call the gateway: its own API keys, by name. Knows no routes and no providers' keys.

Only digests are kept, so a key can be in no log, error, span or dump of this object.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from agentlightning.gateway.errors import CallError
from agentlightning.kit.errors import ConfigError
from agentlightning.store.access import is_loopback

KEYS_VARIABLE = "AGL_GATEWAY_KEYS"
OPEN_VARIABLE = "AGL_GATEWAY_OPEN"
RUN_KEY = "agl-run"
"""Name of the key that the gateway makes for the agents of its own runs."""

_HEADERS = (b"authorization", b"x-api-key", b"api-key")
_NAMED = re.compile(r"([A-Za-z0-9][\w.@-]{0,63})=(.*[^=].*)")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_SHORTEST = 8


class KeyRing:
    """Keys and their names.

    Args:
        keys: Secrets by name; or secrets, each with or without a name (`alice=s3cret-of-hers`), as a list or as text
            with commas or line breaks between them; `@path` reads such text from a file, in which `#` begins a comment.
            A secret may be given as `sha256:<hex digest>`. One without a name is called `key-` and the beginning of its
            digest.

    Raises:
        ConfigError: A key is too short, has characters a header cannot carry, or occurs twice; or the file cannot be
            read.
    """

    def __init__(self, keys: Mapping[str, str] | Iterable[str] | str = ()) -> None:
        self._names: dict[bytes, str] = {}
        if isinstance(keys, Mapping):
            for name, secret in keys.items():
                self._add(name, secret)
            return
        for entry in _entries(keys) if isinstance(keys, str) else keys:
            named = _NAMED.fullmatch(entry.strip())
            self._add(named[1] if named else None, named[2] if named else entry.strip())

    @classmethod
    def of(cls, keys: KeyRing | Mapping[str, str] | Iterable[str] | str | None) -> KeyRing | None:
        """A new ring of what a caller was given; `None` stands for the variable `AGL_GATEWAY_KEYS`, which may be unset.

        Raises:
            ConfigError: What the constructor raises.
        """
        if isinstance(keys, KeyRing):
            return keys.copy()
        if keys is None:
            keys = os.environ.get(KEYS_VARIABLE, "").strip() or None
        return None if keys is None else cls(keys)

    def copy(self) -> KeyRing:
        """Another ring with these keys."""
        made = KeyRing()
        made._names = dict(self._names)
        return made

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self.names)})"

    @property
    def names(self) -> list[str]:
        """The names of all keys."""
        return list(self._names.values())

    def make(self, name: str = RUN_KEY) -> str:
        """Add a new random key and return it."""
        secret = f"agl-{secrets.token_urlsafe(24)}"
        self._add(name, secret)
        return secret

    def name_of(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The name of the key in a request's headers: `Authorization: Bearer`, `x-api-key` or `api-key`.

        Looked up by digest, so how long it takes says nothing about the keys there are.

        Raises:
            CallError: 401, there is none, or it is not known.
        """
        given = False
        for header, value in headers:
            if header in _HEADERS:
                secret = value.strip()
                if header == b"authorization":
                    scheme, _, secret = secret.partition(b" ")
                    if scheme.lower() != b"bearer":
                        continue
                name = self._names.get(hashlib.sha256(secret.strip()).digest())
                if name is not None:
                    return name
                given = given or bool(secret)
        if given:
            raise _refused(
                "Incorrect API key provided. This gateway has keys of its own; a provider's does not open it."
            )
        raise _refused("No API key provided. Send this gateway's as 'Authorization: Bearer', 'x-api-key' or 'api-key'.")

    def _add(self, name: str | None, secret: str) -> None:
        digest = _digest(secret)
        if name is None:
            name = f"key-{digest.hex()[:8]}"
        if digest in self._names or name in self.names:
            raise ConfigError(f"The gateway's key {name!r} is given twice, or two names have one key.")
        self._names[digest] = name


def check_exposure(host: str, ring: KeyRing | None, *, is_open: bool = False) -> None:
    """Refuse to let other machines call models without a key.

    Raises:
        ConfigError: The address is not the loopback one, there are no keys, and nobody said that this is meant.
    """
    if ring is not None or is_open or is_loopback(host) or os.environ.get(OPEN_VARIABLE, "") not in ("", "0"):
        return
    raise ConfigError(
        f"The gateway would be open to everybody who reaches {host}: it has no keys.",
        hint=f"Set {KEYS_VARIABLE} (e.g. to alice=$(openssl rand -hex 16)), or {OPEN_VARIABLE}=1 if everybody on this "
        "network may call its models.",
    )


def _entries(text: str) -> list[str]:
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The gateway's keys cannot be read from {path}: {error}.") from error
    lines = (line.split("#", 1)[0] for line in text.splitlines())
    return [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]


def _digest(secret: str) -> bytes:
    hashed = _DIGEST.fullmatch(secret)
    if hashed:
        return bytes.fromhex(hashed[1])
    # The secret itself is never part of a message.
    if len(secret) < _SHORTEST or not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise ConfigError(
            f"A key of the gateway is unusable: it needs {_SHORTEST} or more printable ASCII characters and no spaces.",
            hint="Use e.g. the output of: openssl rand -hex 16",
        )
    return hashlib.sha256(secret.encode()).digest()


def _refused(message: str) -> CallError:
    return CallError(message, status=401, reason="invalid_api_key", is_retryable=False)
