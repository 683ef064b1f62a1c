"""Secrets of an installation: given ones are checked, missing ones generated and kept in a private file."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentlightning.kit.errors import ConfigError, StorageError
from agentlightning.kit.files import exclusive_lock, storage_error
from agentlightning.platform.settings import PlatformSettings

MIN_SECRET_BYTES = 32

_KID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MIN_DISTINCT = 10
_GUESSABLE = re.compile(
    r"secret|key|change[-_ ]?me|change[-_ ]?this|please|password|default|example|production|your|admin|test|lightning|"
    r"jwt|token|(19|20)\d\d[-/.]?[01]\d[-/.]?[0-3]\d"
)
_GENERATE = "Make one with: openssl rand -hex 32"


@dataclass(frozen=True)
class Secrets:
    """Signing keys by key id, the first of which signs, and the keys for what is stored encrypted, the newest first."""

    jwt: Mapping[str, str] = field(repr=False)
    stored: tuple[str, ...] = field(repr=False)


def load_secrets(settings: PlatformSettings) -> Secrets:
    """The secrets given by the settings; those missing are read from `secrets.json` in the home, or made there.

    Raises:
        ConfigError: A given secret is short, guessable, malformed, or given twice.
        StorageError: The file cannot be read or written.
    """
    jwt, stored = settings.jwt_secrets, settings.secret_key
    kept = _kept(settings.home) if jwt is None or stored is None else {}
    keys = parse_keys(jwt.get_secret_value() if jwt is not None else kept["jwt_secrets"])
    key = stored.get_secret_value() if stored is not None else kept["secret_key"]
    check_strength(key, "AGL_SECRET_KEY")
    old = "" if settings.old_secret_keys is None else settings.old_secret_keys.get_secret_value()
    return Secrets(keys, (key, *(part.strip() for part in old.split(",") if part.strip())))


def parse_keys(text: str) -> dict[str, str]:
    """`KID:SECRET,KID:SECRET` in its order.

    Raises:
        ConfigError: It is something else, or a secret is weak. No secret is repeated.
    """
    keys: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        kid, colon, secret = part.partition(":")
        if not colon or not _KID.fullmatch(kid) or kid in keys:
            raise ConfigError("AGL_JWT_SECRETS is KID:SECRET, comma-separated, each KID once.", hint=_GENERATE)
        check_strength(secret, f"the secret {kid} in AGL_JWT_SECRETS")
        keys[kid] = secret
    if not keys:
        raise ConfigError("AGL_JWT_SECRETS is empty.", hint=_GENERATE)
    return keys


def check_strength(secret: str, name: str) -> None:
    """Refuse what somebody could guess; well-known words and dates do not count towards the length.

    Raises:
        ConfigError: It is short, repeats itself, is a date or a known placeholder.
    """
    problem = ""
    counted = _GUESSABLE.sub("", secret.lower())
    if len(secret.encode()) < MIN_SECRET_BYTES:
        problem = f"is shorter than {MIN_SECRET_BYTES} bytes"
    elif len(set(secret)) < _MIN_DISTINCT:
        problem = "repeats a few characters"
    elif len(counted.encode()) < MIN_SECRET_BYTES:
        problem = "is made from well-known words or a date"
    if problem:
        raise ConfigError(f"{name} {problem}; anybody could sign tokens.", hint=_GENERATE)


def _kept(home: Path) -> dict[str, str]:
    path = home / "secrets.json"
    with exclusive_lock(home / ".secrets.lock", purpose="making the secrets", wait_s=10, remove=True):
        if not path.exists():
            _create(path)
        try:
            if os.name == "posix" and path.stat().st_mode & 0o077:
                raise ConfigError(f"{path} can be read by other users.", hint=f"Run: chmod 600 {path}")
            kept = json.loads(path.read_text(encoding="utf-8"))
            return {name: str(kept[name]) for name in ("jwt_secrets", "secret_key")}
        except OSError as error:
            raise storage_error(path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{path} is damaged.", hint="Restore it; or remove it: all logins and stored secrets are lost then."
            ) from error


def _create(path: Path) -> None:
    made = {"jwt_secrets": f"k1:{_random()}", "secret_key": _random()}
    try:
        unfinished = path.with_name(".secrets.json.new")
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(made, stream)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error


def _random() -> str:
    return secrets.token_hex(32)
