"""Tickets for websockets, and whether who came some time ago may still be here. Knows no HTTP."""

from __future__ import annotations

import secrets
import time

import orjson
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import UnauthorizedError
from agentlightning.platform.auth.identify import key_hash
from agentlightning.platform.auth.models import ApiKey, Login, Ticket, User
from agentlightning.platform.cache import Cache
from agentlightning.platform.context import Identity
from agentlightning.platform.database import Database

TICKET_S = 30
SURE_S = 10.0
"""How long a connection may rely on the cache alone."""
PREFIX = "ticket."
"""Of the subprotocol that carries one."""


class Tickets:
    """Over a database, so that any process takes what another one gave."""

    def __init__(self, database: Database, cache: Cache) -> None:
        self._database = database
        self._cache = cache

    async def give(self, who: Identity) -> str:
        """A ticket that is good once, for `TICKET_S` seconds; only its hash is kept."""
        ticket = secrets.token_urlsafe(32)
        moment = time.time()
        made = Ticket(
            hash=key_hash(ticket),
            user_id=who.user_id,
            session_id=who.session_id,
            key_id=who.key_id,
            expires_at=moment + TICKET_S,
        )
        async with self._database.write() as session:
            await session.execute(delete(Ticket).where(Ticket.expires_at < moment))
            session.add(made)
        return ticket

    async def take(self, ticket: str) -> Identity:
        """Who it was given to.

        Raises:
            UnauthorizedError: It is none, was used, is too old, or its login has ended.
        """
        taken = delete(Ticket).where(Ticket.hash == key_hash(ticket)).returning(Ticket)
        async with self._database.write() as session:
            found = (await session.execute(taken)).scalar_one_or_none()
            if found is not None and found.expires_at > time.time():
                who = await _identity(session, found.user_id, found.session_id, found.key_id)
                if who is not None:
                    return who
        raise UnauthorizedError("The ticket is not good.", hint="POST /api/v2/ws-ticket for another one.")

    def standing(self, who: Identity) -> Standing:
        """For a connection that lasts."""
        return Standing(self, self._cache, who)

    async def still(self, who: Identity) -> bool:
        """Whether the login or key still holds, with the role that it had."""
        async with self._database.read() as session:
            found = await _identity(session, who.user_id, who.session_id, who.key_id)
        return found is not None and (found.role, found.scopes) == (who.role, who.scopes)


class Standing:
    """Whether somebody who is connected may be so still, asked every second.

    A login whose user is in the shared cache (`session:ID`) goes on: whatever ends a login takes it from there. The
    database decides when it is not there, and every `SURE_S` seconds anyway, because a cache may miss a removal. Single
    requests ask the database each time.
    """

    def __init__(self, tickets: Tickets, cache: Cache, who: Identity) -> None:
        self._tickets = tickets
        self._cache = cache
        self._who = who
        self._sure_until = 0.0

    async def holds(self) -> bool:
        """Whether it does.

        Raises:
            SQLAlchemyError: The database does not answer.
        """
        if time.monotonic() < self._sure_until and await self._is_known():
            return True
        if not await self._tickets.still(self._who):
            return False
        self._sure_until = time.monotonic() + SURE_S
        return True

    async def _is_known(self) -> bool:
        if self._cache.kind != "redis" or self._who.session_id is None:
            return False  # another process ends logins without a word to this one
        kept = await self._cache.get(session_key(self._who.session_id))
        return kept == session_data(self._who.user_id, self._who.username, self._who.role)


def session_key(session_id: str) -> str:
    """Where the cache has the user of a login."""
    return f"session:{session_id}"


def session_data(user_id: int, username: str, role: str) -> bytes:
    """What it has there."""
    return orjson.dumps({"user_id": f"user_{user_id}", "username": username, "role": role})


async def _identity(session: AsyncSession, user_id: int, session_id: str | None, key_id: int | None) -> Identity | None:
    moment = time.time()
    scopes: list[str] | None = None
    if key_id is not None:
        key = select(ApiKey).where(ApiKey.id == key_id, ApiKey.user_id == user_id)
        valid = key.where(ApiKey.expires_at.is_(None) | (ApiKey.expires_at > moment))
        found = (await session.execute(valid)).scalar_one_or_none()
        scopes = None if found is None else found.permissions
    else:
        login = select(Login).where(Login.id == (session_id or ""), Login.user_id == user_id)
        valid_login = login.where(Login.revoked_at.is_(None), Login.expires_at > moment)
        found = (await session.execute(valid_login)).scalar_one_or_none()
    user = await session.get(User, user_id) if found is not None else None
    if user is None or user.disabled:
        return None
    return Identity(
        user.id,
        user.username,
        user.role,
        user.must_change_password,
        session_id=session_id,
        key_id=key_id,
        scopes=None if scopes is None else tuple(scopes),
    )


def ticket_of(subprotocols: list[str]) -> str | None:
    """The ticket among the protocols that a browser asks for."""
    found = [each.removeprefix(PREFIX) for each in subprotocols if each.startswith(PREFIX)]
    return found[0] if len(found) == 1 else None
