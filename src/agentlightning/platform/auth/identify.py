"""Who a request comes from: a token or an API key in its headers, checked against the database every time."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterable

import orjson
from sqlalchemy import Float, String, Text, bindparam, cast, select, update

from agentlightning.kit.errors import UnauthorizedError
from agentlightning.platform.auth.models import MAX_NUMBER, NUMBER, ApiKey, Login, User
from agentlightning.platform.auth.tokens import InvalidTokenError, Tokens
from agentlightning.platform.cache import Cache
from agentlightning.platform.context import Identity
from agentlightning.platform.database import Database
from agentlightning.platform.lookups import Lookup, Lookups

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


_LOGIN = Lookup(
    select(User.id, User.username, User.role, User.must_change_password)
    .join(Login, Login.user_id == User.id)
    .where(
        Login.id == bindparam("login", type_=String),
        Login.revoked_at.is_(None),
        Login.expires_at > bindparam("now", type_=Float),
        User.id == bindparam("user", type_=NUMBER),
        User.disabled.is_(False),
    )
)
_KEY = Lookup(
    select(
        User.id,
        User.username,
        User.role,
        User.must_change_password,
        ApiKey.id,
        ApiKey.expires_at,
        ApiKey.used_at,
        cast(ApiKey.permissions, Text),
    )
    .join(ApiKey, ApiKey.user_id == User.id)
    .where(ApiKey.hash == bindparam("hash", type_=String), User.disabled.is_(False))
)


@functools.lru_cache(maxsize=4096)
def _of_login(session_id: str, number: int, username: str, role: str, must_change: int) -> Identity:
    """What a row says; the row itself is read each time."""
    return Identity(number, username, role, bool(must_change), session_id=session_id)


class Identifier:
    """Finds the user behind a token or key."""

    def __init__(self, database: Database, cache: Cache, tokens: Tokens) -> None:
        self._database = database
        self._lookups = Lookups(database)
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
        row = None
        if claims.user_id <= MAX_NUMBER and await self._cache.get(f"jwt:blacklist:{claims.mark}") is None:
            asked = {"login": claims.session_id, "user": claims.user_id, "now": time.time()}
            row = await self._lookups.first(_LOGIN, asked)
        if row is None:
            raise InvalidTokenError("The login has ended.", hint="POST /auth/login")
        return _of_login(claims.session_id, *row)

    async def _by_key(self, key: str) -> Identity:
        now = time.time()
        row = await self._lookups.first(_KEY, {"hash": key_hash(key)})
        if row is None or (row[5] is not None and row[5] <= now):
            raise UnauthorizedError("The API key is not valid.", hint=_HINT)
        number, username, role, must_change, key_id, _, used_at, permissions = row
        if used_at is None or now - used_at > _USED_EVERY_S:
            async with self._database.write() as session:
                await session.execute(update(ApiKey).where(ApiKey.id == key_id).values(used_at=now))
        scopes = None if permissions is None else tuple(orjson.loads(permissions))
        return Identity(number, username, role, bool(must_change), key_id=key_id, scopes=scopes)
