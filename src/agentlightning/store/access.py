"""Who may use a store over HTTP: the bearer token, where it comes from, how it is checked. Knows no routes.

Tokens are never logged and appear in no message; processes of ours hand them on in the environment, where, unlike a
command line, other users of the machine cannot read them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from ipaddress import ip_address

from agentlightning.kit.errors import ConfigError, ForbiddenError, UnauthorizedError

TOKEN_VARIABLE = "AGL_STORE_TOKEN"
OPEN_VARIABLE = "AGL_STORE_OPEN"

_ASK = f"Send 'Authorization: Bearer <token>'; clients of ours read it from {TOKEN_VARIABLE} or take token=."


def store_token(given: str | None = None) -> str | None:
    """The token to use: `given`, else that of the environment (`AGL_STORE_TOKEN`), else none.

    Raises:
        ConfigError: It holds characters that a header cannot carry.
    """
    token = (os.environ.get(TOKEN_VARIABLE) if given is None else given) or None
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ConfigError(
            "The store's token has characters that a header cannot carry.",
            hint="Use printable ASCII, e.g. the output of: openssl rand -hex 32",
        )
    return token


def check_token(header: str | None, token: str) -> None:
    """Compare an `Authorization` header with the token; takes as long whatever differs, and whatever its length.

    Raises:
        UnauthorizedError: There is no bearer token in it.
        ForbiddenError: It is another one.
    """
    scheme, _, given = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise UnauthorizedError("This store asks for a token.", hint=_ASK)
    if not hmac.compare_digest(_digest(given.strip()), _digest(token)):
        raise ForbiddenError("This store does not know the token.", hint=f"Check {TOKEN_VARIABLE} on both sides.")


def check_exposure(host: str, token: str | None, *, is_open: bool = False) -> None:
    """Refuse to let other machines in without a token.

    Args:
        host: Address to listen on.
        token: The token asked for, if any.
        is_open: The user said that everybody may; the variable `AGL_STORE_OPEN=1` says the same.

    Raises:
        ConfigError: The address is not the loopback one and there is no token.
    """
    if token is not None or is_open or is_loopback(host) or os.environ.get(OPEN_VARIABLE, "") not in ("", "0"):
        return
    raise ConfigError(
        f"The store would be open to everybody who reaches {host}: there is no token.",
        hint=f"Set {TOKEN_VARIABLE} (e.g. to the output of: openssl rand -hex 32) here and where runners start; "
        f"{OPEN_VARIABLE}=1 if everybody on this network may read and write it.",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False  # another name, or the empty one, which means all addresses


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
