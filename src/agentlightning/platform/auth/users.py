"""Managing users: what an admin does. Every change is noted, and ends what it takes away. Knows no HTTP."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.exc import IntegrityError

from agentlightning.kit.errors import BadInputError, ConflictError
from agentlightning.platform.auth import repository
from agentlightning.platform.auth.models import User
from agentlightning.platform.auth.passwords import PasswordHasher, check_new_password, one_time_password
from agentlightning.platform.auth.permissions import ROLES
from agentlightning.platform.auth.service import AuthService
from agentlightning.platform.database import Database


class UserService:
    """Users over a database.

    Args:
        auth: Is told of logins that end.
    """

    def __init__(self, database: Database, hasher: PasswordHasher, auth: AuthService) -> None:
        self._database = database
        self._hasher = hasher
        self._auth = auth

    async def create(self, username: str, role: str, password: str | None) -> tuple[User, str | None]:
        """A new user, and the one-time password made for it when none was given.

        Raises:
            BadInputError: The password is bad, or there is no such role.
            ConflictError: The name is taken.
        """
        if role not in ROLES:
            raise BadInputError(f"There is no role {role!r}.", hint=f"Roles: {', '.join(ROLES)}")
        made = None if password is not None else one_time_password()
        if password is not None:
            check_new_password(password, username)
        hashed = await self._hasher.hash(password or made or "")
        now = time.time()
        user = User(
            username=username,
            password_hash=hashed,
            role=role,
            disabled=False,
            must_change_password=made is not None,
            created_at=now,
            updated_at=now,
        )
        try:
            async with self._database.write() as session:
                session.add(user)
                await session.flush()
                repository.note(session, "user.create", username, role=role)
        except IntegrityError as error:
            raise ConflictError("There is a user of that name.") from error
        return user, made

    async def change(
        self, user_id: int, *, role: str | None = None, disabled: bool | None = None, reset_password: bool = False
    ) -> tuple[User, str | None]:
        """Change a user; what it loses ends its logins at once. Answers a one-time password if one was made.

        Raises:
            NotFoundError: There is no such user.
            ConflictError: It is the last admin.
            BadInputError: There is nothing to change, or no such role.
        """
        if role is None and disabled is None and not reset_password:
            raise BadInputError("There is nothing to change.", hint="Give role, disabled or reset_password.")
        if role is not None and role not in ROLES:
            raise BadInputError(f"There is no role {role!r}.", hint=f"Roles: {', '.join(ROLES)}")
        made = one_time_password() if reset_password else None
        hashed = await self._hasher.hash(made) if made is not None else None
        async with self._database.write() as session:
            admins = await repository.lock_admins(session)
            user = await repository.user_by_id(session, user_id, lock=True)
            if disabled or role not in (None, "admin"):
                repository.keep_an_admin(admins, user)
            before = {"role": user.role, "disabled": user.disabled}
            user.role = role if role is not None else user.role
            user.disabled = disabled if disabled is not None else user.disabled
            if hashed is not None:
                user.password_hash, user.must_change_password = hashed, True
            user.updated_at = time.time()
            after = {"role": user.role, "disabled": user.disabled}
            ended: list[str] = []
            if after != before or made is not None:
                ended = await repository.end_logins(session, user.id, "changed by an admin")
            changed: dict[str, Any] = {name: value for name, value in after.items() if before[name] != value}
            repository.note(session, "user.change", user.username, **changed, password_reset=made is not None)
        await self._auth.forget_sessions(ended)
        return user, made

    async def delete(self, user_id: int) -> None:
        """Remove a user with its logins and API keys; the audit log keeps its name.

        Raises:
            NotFoundError: There is no such user.
            ConflictError: It is the last admin.
        """
        async with self._database.write() as session:
            admins = await repository.lock_admins(session)
            user = await repository.user_by_id(session, user_id, lock=True)
            repository.keep_an_admin(admins, user)
            ended = await repository.end_logins(session, user.id, "deleted")
            await session.delete(user)
            repository.note(session, "user.delete", user.username)
        await self._auth.forget_sessions(ended)
