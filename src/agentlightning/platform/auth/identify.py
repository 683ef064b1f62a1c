"""Who a request comes from: a token or an API key in its headers, checked against the database every time."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable

from sqlalchemy import select, update

from agentlightning.kit.errors import UnauthorizedError
from agentlightning.platform.auth.models import ApiKey, Login, User
from agentlightning.platform.auth.tokens import InvalidTokenError, Tokens, fingerprint
from agentlightning.platform.cache import Cache
from agentlightning.platform.context import Identity
from agentlightning.platform.database import Database

log = logging.getLogger(__name__)

KEY_PREFIX = "agl_"
_USED_EVERY_S = 60
_HINT = "Send Authorization: Bearer TOKEN (POST /auth/login), or an API key as X-API-Key."


def credential(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The token or key of a request; never from its URL or cookies.

    Raises:
        UnauthorizedError: There is none, or more than one: which of them counts would be anybody's guess.
    """
    found: list[str] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"authorization":
            scheme, _, rest = value.decode("latin-1").partition(" ")
            if scheme.lower() != "bearer":
                raise UnauthorizedError("Only bearer tokens are taken.", hint=_HINT)
            found.append(rest.strip())
        elif lowered == b"x-api-key":
            found.append(value.decode("latin-1").strip())
    if len(found) != 1 or not found[0]:
        raise UnauthorizedError("This needs exactly one token or API key.", hint=_HINT)
    return found[0]


def key_hash(key: str) -> str:
    """What is kept of an API key. It is random, so a fast hash does."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Identifier:
    """Finds the user behind a token or key."""

    def __init__(self, database: Database, cache: Cache, tokens: Tokens) -> None:
        self._database = database
        self._cache = cache
        self._tokens = tokens

    async def identify(self, given: str) -> Identity:
        """Who it is.

        Raises:
            UnauthorizedError: It is nobody, or nobody any more.
        """
        return await (self._by_key(given) if given.startswith(KEY_PREFIX) else self._by_token(given))

    async def _by_token(self, token: str) -> Identity:
        claims = self._tokens.read(token, "access")
        revoked = InvalidTokenError("The login has ended.", hint="POST /auth/login")
        if await self._cache.get(f"jwt:blacklist:{fingerprint(token)}") is not None:
            raise revoked
        query = (
            select(User.id, User.username, User.role, User.must_change_password)
            .join(Login, Login.user_id == User.id)
            .where(
                Login.id == claims.session_id,
                Login.revoked_at.is_(None),
                Login.expires_at > time.time(),
                User.id == claims.user_id,
                User.disabled.is_(False),
            )
        )
        async with self._database.read() as session:
            row = (await session.execute(query)).one_or_none()
        if row is None:
            raise revoked
        return Identity(row.id, row.username, row.role, row.must_change_password, session_id=claims.session_id)

    async def _by_key(self, key: str) -> Identity:
        now = time.time()
        query = (
            select(ApiKey.id, ApiKey.permissions, ApiKey.expires_at, ApiKey.used_at, User)
            .join(User, ApiKey.user_id == User.id)
            .where(ApiKey.hash == key_hash(key), User.disabled.is_(False))
        )
        async with self._database.read() as session:
            row = (await session.execute(query)).one_or_none()
        if row is None or (row.expires_at is not None and row.expires_at <= now):
            raise UnauthorizedError("The API key is not valid.", hint=_HINT)
        if row.used_at is None or now - row.used_at > _USED_EVERY_S:
            async with self._database.write() as session:
                await session.execute(update(ApiKey).where(ApiKey.id == row.id).values(used_at=now))
        user: User = row.User
        scopes = tuple(row.permissions) if row.permissions is not None else None
        return Identity(user.id, user.username, user.role, user.must_change_password, key_id=row.id, scopes=scopes)
