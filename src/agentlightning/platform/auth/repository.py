"""Queries and changes of identity's tables. Each takes the session of its caller, whose transaction it is part of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import CursorResult, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import ConflictError, NotFoundError
from agentlightning.platform.auth.models import MAX_NUMBER, ApiKey, AuditEntry, Login, User
from agentlightning.platform.context import Identity, current


def note(session: AsyncSession, action: str, target: str, *, actor: str | None = None, **details: Any) -> None:
    """Add to the audit log, in the transaction of the change itself. Details are masked where the platform masks."""
    context = current()
    mask: Callable[[dict[str, Any]], dict[str, Any]] | None = session.info.get("mask")
    who = actor or (context.identity.username if context.identity else "system")
    session.add(
        AuditEntry(
            at=time.time(),
            actor=who,
            action=action,
            target=target[:500],
            request_id=context.request_id,
            address=context.address[:64],
            details=details if mask is None else mask(details),
        )
    )


async def user_named(session: AsyncSession, username: str) -> User | None:
    """The user of that name, in whatever case it is written."""
    return (await session.execute(select(User).where(User.username == username.strip().lower()))).scalar_one_or_none()


async def user_by_id(session: AsyncSession, user_id: int, *, lock: bool = False) -> User:
    """The user.

    Raises:
        NotFoundError: There is none.
    """
    query = select(User).where(User.id == user_id)
    found = None
    if 0 < user_id <= MAX_NUMBER:
        found = (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()
    if found is None:
        raise NotFoundError("There is no such user.")
    return found


async def identity_of(session: AsyncSession, user_id: int | None, scopes: list[str] | None) -> Identity | None:
    """Who somebody is now whose work goes on without them; `None` when that is nobody any more."""
    query = select(User).where(User.id == user_id, User.disabled.is_(False))
    user = (await session.execute(query)).scalar_one_or_none()
    if user is None:
        return None
    return Identity(user.id, user.username, user.role, scopes=None if scopes is None else tuple(scopes))


async def lock_admins(session: AsyncSession) -> set[int]:
    """Numbers of the admins who may log in, held until the transaction ends. Before any other lock on users.

    All are locked, and in one order: two admins who remove each other at the same moment come one after the other.
    """
    query = select(User.id).where(User.role == "admin", User.disabled.is_(False)).order_by(User.id).with_for_update()
    return set((await session.execute(query)).scalars())


def keep_an_admin(admins: set[int], leaving: User) -> None:
    """Before somebody stops being an admin: another one has to be left.

    Raises:
        ConflictError: It is the last one.
    """
    if admins == {leaving.id}:
        raise ConflictError("This is the last admin.", hint="Make another user an admin first.")


async def end_logins(session: AsyncSession, user_id: int, because: str) -> list[str]:
    """End all logins of a user; answers which ones."""
    open_ones = select(Login.id).where(Login.user_id == user_id, Login.revoked_at.is_(None))
    ended = list((await session.execute(open_ones)).scalars())
    await session.execute(
        update(Login)
        .where(Login.user_id == user_id, Login.revoked_at.is_(None))
        .values(revoked_at=time.time(), revoked_because=because)
    )
    return ended


async def end_login(session: AsyncSession, login_id: str, because: str) -> bool:
    """End one login; whether it was open."""
    done = await session.execute(
        update(Login)
        .where(Login.id == login_id, Login.revoked_at.is_(None))
        .values(revoked_at=time.time(), revoked_because=because)
    )
    return _count(done) == 1


async def turn_refresh(session: AsyncSession, login_id: str, old: str, new: str) -> bool:
    """Replace the login's refresh token; `False` if `old` is not the one that is good (any more)."""
    now = time.time()
    done = await session.execute(
        update(Login)
        .where(Login.id == login_id, Login.refresh_id == old, Login.revoked_at.is_(None), Login.expires_at > now)
        .values(refresh_id=new, used_at=now)
    )
    return _count(done) == 1


async def forget_old_logins(session: AsyncSession, before: float) -> None:
    """Remove logins that ended before that time."""
    await session.execute(delete(Login).where(Login.expires_at < before))


async def count_users(session: AsyncSession) -> int:
    """How many there are."""
    return (await session.execute(select(func.count()).select_from(User))).scalar_one()


async def list_users(session: AsyncSession, after: int, limit: int) -> list[User]:
    """By number."""
    query = select(User).where(User.id > after).order_by(User.id).limit(limit)
    return list((await session.execute(query)).scalars())


async def keys_of(session: AsyncSession, user_id: int) -> list[ApiKey]:
    """By number."""
    return list((await session.execute(select(ApiKey).where(ApiKey.user_id == user_id).order_by(ApiKey.id))).scalars())


async def remove_key(session: AsyncSession, user_id: int, key_id: int) -> str:
    """Remove a key of that user; answers its prefix.

    Raises:
        NotFoundError: It has no such key; somebody else's is no other case.
    """
    query = select(ApiKey).where(ApiKey.id == key_id, ApiKey.user_id == user_id)
    found = (await session.execute(query)).scalar_one_or_none() if 0 < key_id <= MAX_NUMBER else None
    if found is None:
        raise NotFoundError("There is no such API key.")
    await session.delete(found)
    return found.prefix


async def list_audit(
    session: AsyncSession, before: int | None, limit: int, actor: str | None, action: str | None
) -> list[AuditEntry]:
    """Newest first."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    if actor is not None:
        query = query.where(AuditEntry.actor == actor)
    if action is not None:
        query = query.where(AuditEntry.action == action)
    return list((await session.execute(query)).scalars())


def _count(done: object) -> int:
    return cast("CursorResult[Any]", done).rowcount
