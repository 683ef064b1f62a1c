"""API keys: random, shown once, kept as a hash. A key may do what its user may do now, or less. Knows no HTTP."""

from __future__ import annotations

import secrets
import time

from agentlightning.kit.errors import BadInputError, ConflictError
from agentlightning.platform.auth import repository
from agentlightning.platform.auth.identify import KEY_PREFIX, key_hash
from agentlightning.platform.auth.models import ApiKey
from agentlightning.platform.auth.permissions import may
from agentlightning.platform.context import Identity
from agentlightning.platform.database import Database

MAX_KEYS = 50
"""Of one user."""
SHOWN = 12
"""Characters of a key that are kept to recognise it."""


class KeyService:
    """API keys over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, who: Identity, name: str, expires_in_s: int | None, permissions: list[str] | None
    ) -> tuple[ApiKey, str]:
        """A new key of that user, and the key itself, which nobody can look up again (256 random bits).

        Raises:
            BadInputError: It would be allowed what its user is not.
            ConflictError: The user has too many.
        """
        for wanted in permissions or ():
            if not may(who.role, None, wanted):
                raise BadInputError(f"You do not have the permission {wanted} yourself.")
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        made = ApiKey(
            user_id=who.user_id,
            name=name,
            prefix=key[:SHOWN],
            hash=key_hash(key),
            permissions=permissions,
            created_at=now,
            expires_at=None if expires_in_s is None else now + expires_in_s,
        )
        async with self._database.write() as session:
            await repository.user_by_id(session, who.user_id, lock=True)  # so that keys are counted one by one
            if len(await repository.keys_of(session, who.user_id)) >= MAX_KEYS:
                raise ConflictError(f"{MAX_KEYS} API keys are the most.", hint="Remove one that is unused.")
            session.add(made)
            await session.flush()
            repository.note(session, "key.create", f"{made.prefix}…", name=name)
        return made, key

    async def of(self, who: Identity) -> list[ApiKey]:
        """The user's keys."""
        async with self._database.read() as session:
            return await repository.keys_of(session, who.user_id)

    async def remove(self, who: Identity, key_id: int) -> None:
        """Remove one; it is refused from now on.

        Raises:
            NotFoundError: The user has no such key.
        """
        async with self._database.write() as session:
            prefix = await repository.remove_key(session, who.user_id, key_id)
            repository.note(session, "key.delete", f"{prefix}…")
