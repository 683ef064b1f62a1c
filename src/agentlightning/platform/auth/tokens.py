"""JSON Web Tokens: HS256, with the claims that clients read. A token says who somebody is, never what they may do.

`role` and `permissions` are there for clients to show; what is allowed is decided by the database.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jwt

from agentlightning.kit.errors import UnauthorizedError
from agentlightning.platform.auth.permissions import granted_to

ISSUER = "agent-lightning"
ALGORITHM = "HS256"
MAX_TOKEN_LENGTH = 4096
_MAX_VERIFIED = 10_000

_REQUIRED = ["user_id", "username", "role", "exp", "iat", "iss", "jti", "sid", "type"]

TokenType = Literal["access", "refresh"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token whose signature holds says."""

    user_id: int
    session_id: str
    token_id: str
    expires_at: float
    mark: str
    """The token's `fingerprint`."""


class InvalidTokenError(UnauthorizedError):
    """The token is expired, forged, of another kind, or was revoked."""

    code = "TOKEN_INVALID"


class Tokens:
    """Signs with the first key, accepts the signatures of all.

    Args:
        keys: Secrets by key id.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = dict(keys)
        self._kid = next(iter(self._keys))
        self._verified: OrderedDict[tuple[str, str], Claims] = OrderedDict()

    def sign(
        self, kind: TokenType, *, user_id: int, username: str, role: str, session_id: str, token_id: str, ttl_s: float
    ) -> str:
        """A token that is good for `ttl_s` seconds."""
        now = int(time.time())
        claims = {
            "user_id": f"user_{user_id}",
            "username": username,
            "role": role,
            "permissions": granted_to(role),
            "exp": now + int(ttl_s),
            "iat": now,
            "iss": ISSUER,
            "jti": token_id,
            "sid": session_id,
            "type": kind,
        }
        return jwt.encode(claims, self._keys[self._kid], algorithm=ALGORITHM, headers={"kid": self._kid})

    def read(self, token: str, kind: TokenType) -> Claims:
        """What it says.

        Raises:
            InvalidTokenError: It is not to be believed; the message does not say more than whether it has expired.
        """
        mark = fingerprint(token)
        known = self._verified.get((kind, mark))  # revoking is asked elsewhere
        if known is None:
            known = self._verified[kind, mark] = self._verify(token, kind, mark)
            if len(self._verified) > _MAX_VERIFIED:
                self._verified.popitem(last=False)
        elif known.expires_at <= time.time():
            raise _expired()
        return known

    def _verify(self, token: str, kind: TokenType, mark: str) -> Claims:
        try:
            if len(token) > MAX_TOKEN_LENGTH:
                raise jwt.InvalidTokenError("too long")
            header = jwt.get_unverified_header(token)
            secret = self._keys.get(str(header.get("kid")))
            if secret is None:
                raise jwt.InvalidTokenError("unknown key")
            claims: dict[str, Any] = jwt.decode(
                token, secret, algorithms=[ALGORITHM], issuer=ISSUER, options={"require": _REQUIRED}
            )
            if claims["type"] != kind:
                raise jwt.InvalidTokenError("another kind")
            prefix, _, number = str(claims["user_id"]).partition("_")
            if prefix != "user" or not number.isascii() or not number.isdigit():
                raise jwt.InvalidTokenError("no user")
            return Claims(int(number), str(claims["sid"]), str(claims["jti"]), float(claims["exp"]), mark)
        except jwt.ExpiredSignatureError as error:
            raise _expired() from error
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise InvalidTokenError("The token is not valid.", hint="POST /auth/login") from error


def _expired() -> InvalidTokenError:
    return InvalidTokenError("The token has expired.", hint="POST /auth/refresh or /auth/login")


def fingerprint(token: str) -> str:
    """SHA-256 of the whole token, in hex: what lists of tokens hold."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
