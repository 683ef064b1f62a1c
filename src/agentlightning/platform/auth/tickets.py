"""Tickets for websockets, and whether who came some time ago may still be here. Knows no HTTP."""

from __future__ import annotations

import secrets
import time

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import UnauthorizedError
from agentlightning.platform.auth.identify import key_hash
from agentlightning.platform.auth.models import ApiKey, Login, Ticket, User
from agentlightning.platform.context import Identity
from agentlightning.platform.database import Database

TICKET_S = 30
PREFIX = "ticket."
"""Of the subprotocol that carries one."""


class Tickets:
    """Over a database, so that any process takes what another one gave."""

    def __init__(self, database: Database) -> None:
        self._database = database

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

    async def still(self, who: Identity) -> bool:
        """Whether the login or key still holds, with the role that it had."""
        async with self._database.read() as session:
            found = await _identity(session, who.user_id, who.session_id, who.key_id)
        return found is not None and (found.role, found.scopes) == (who.role, who.scopes)


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
