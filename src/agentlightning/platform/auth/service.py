"""Logging in, staying logged in, logging out, and changing passwords. Knows no HTTP."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from agentlightning.kit.errors import BadInputError, UnauthorizedError
from agentlightning.platform.auth import repository
from agentlightning.platform.auth.models import Login, User
from agentlightning.platform.auth.passwords import PasswordHasher, check_new_password, is_outdated, one_time_password
from agentlightning.platform.auth.tickets import session_data, session_key
from agentlightning.platform.auth.tokens import Claims, InvalidTokenError, Tokens, TokenType, fingerprint
from agentlightning.platform.cache import Cache
from agentlightning.platform.context import Identity, current
from agentlightning.platform.database import Database
from agentlightning.platform.limits import Limiter, TooManyError
from agentlightning.platform.settings import PlatformSettings

_SESSION_CACHE_S = 86_400
_KEEP_ENDED_S = 86_400


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a login is given."""

    access: str
    refresh: str
    access_s: int
    refresh_s: int
    user: User


class WrongLoginError(UnauthorizedError):
    """Name or password is wrong, or the user is disabled: it is not said which."""

    code = "LOGIN_FAILED"


class LoginLockedError(TooManyError):
    """Too many logins failed."""

    code = "LOGIN_LOCKED"


class AuthService:
    """Logins over a database.

    Args:
        limiter: Counts attempts; each is counted before its password is checked, so that many at once do not help.
    """

    def __init__(
        self,
        settings: PlatformSettings,
        database: Database,
        cache: Cache,
        limiter: Limiter,
        tokens: Tokens,
        hasher: PasswordHasher,
    ) -> None:
        self._settings = settings
        self._database = database
        self._cache = cache
        self._limiter = limiter
        self._tokens = tokens
        self._hasher = hasher

    async def login(self, username: str, password: str, client: str) -> TokenPair:
        """Tokens of a new login.

        Raises:
            WrongLoginError: There is no such user with that password.
            LoginLockedError: Too many logins to this account, or from this address, have failed.
        """
        name = username.strip().lower()
        counted = await self._count_attempt(name)
        async with self._database.read() as session:
            user = await repository.user_named(session, name)
        right = await self._hasher.verify(password, user.password_hash if user is not None else None)
        if user is None or not right or user.disabled:
            async with self._database.write() as session:
                repository.note(session, "login.failed", user.username if user else "", actor="anonymous")
            raise WrongLoginError("The username or the password is wrong.")
        await self._worked(counted)
        hashed = await self._renewed(user, password) if is_outdated(user.password_hash) else user.password_hash
        return await self._open(user.id, hashed, client)

    async def _renewed(self, user: User, password: str) -> str:
        """A hash with as many rounds as others have, kept; the one of before if the password is not right any more."""
        hashed = await self._hasher.hash(password)
        async with self._database.write() as session:
            found = await repository.user_by_id(session, user.id, lock=True)
            if found.password_hash == user.password_hash:
                found.password_hash = hashed
                return hashed
            current = found.password_hash  # another login renewed it, or it was changed
        return current if await self._hasher.verify(password, current) else user.password_hash

    async def refresh(self, token: str) -> TokenPair:
        """The next tokens of a login; the refresh token is used up.

        Raises:
            InvalidTokenError: It is not good, or was used before: then the whole login has ended.
        """
        claims = self._tokens.read(token, "refresh")
        new = secrets.token_hex(16)
        user: User | None = None
        login: Login | None = None
        async with self._database.write() as session:
            if await repository.turn_refresh(session, claims.session_id, claims.token_id, new):
                login = await session.get_one(Login, claims.session_id)
                user = await session.get_one(User, login.user_id)
                if user.disabled or user.id != claims.user_id:
                    user = None
            if user is None:  # committed: somebody has a copy of a token, so nobody's is good any more
                await self._stolen(session, claims)
        if user is None or login is None:
            await self._cache.delete(session_key(claims.session_id))
            raise InvalidTokenError("The refresh token is not good any more.", hint="POST /auth/login")
        return await self._pair(user, login, new)

    async def logout(self, identity: Identity, token: str) -> None:
        """End the login that `token` belongs to."""
        assert identity.session_id is not None
        async with self._database.write() as session:
            await repository.end_login(session, identity.session_id, "logout")
            repository.note(session, "logout", identity.username)
        await self._cache.delete(session_key(identity.session_id))
        claims = self._tokens.read(token, "access")
        await self.blacklist(token, claims)

    async def blacklist(self, token: str, claims: Claims) -> None:
        """Have the cache refuse the token until it expires by itself."""
        now = time.time()
        await self._cache.set(f"jwt:blacklist:{fingerprint(token)}", str(int(now)).encode(), claims.expires_at - now)

    async def change_password(self, identity: Identity, old: str, new: str) -> None:
        """Set a new password; all logins of the user end.

        Raises:
            WrongLoginError: The old one is wrong.
            LoginLockedError: That happened too often.
            BadInputError: The new one is bad.
        """
        check_new_password(new, identity.username)
        if new == old:
            raise BadInputError("The new password is the current one.")
        counted = await self._count_attempt(identity.username)
        async with self._database.read() as session:
            before = (await repository.user_by_id(session, identity.user_id)).password_hash
        if not await self._hasher.verify(old, before):
            async with self._database.write() as session:
                repository.note(session, "password.failed", identity.username)
            raise WrongLoginError("The current password is wrong.")
        hashed = await self._hasher.hash(new)
        async with self._database.write() as session:
            user = await repository.user_by_id(session, identity.user_id, lock=True)
            if user.password_hash != before:
                raise WrongLoginError("The password was changed by somebody else meanwhile.")
            user.password_hash, user.must_change_password, user.updated_at = hashed, False, time.time()
            ended = await repository.end_logins(session, user.id, "password changed")
            repository.note(session, "password.change", user.username)
        await self._worked(counted)
        await self.forget_sessions(ended)

    async def forget_sessions(self, ended: list[str]) -> None:
        """Drop what the cache holds of logins that have ended."""
        await self._cache.delete(*map(session_key, ended))

    async def first_admin(self, username: str = "admin") -> str | None:
        """Make the first user, with a one-time password, which is answered; `None` when there are users."""
        async with self._database.read() as session:
            if await repository.count_users(session):
                return None
        password = one_time_password()
        hashed = await self._hasher.hash(password)
        now = time.time()
        async with self._database.write() as session:
            if await repository.count_users(session):
                return None
            session.add(
                User(
                    username=username,
                    password_hash=hashed,
                    role="admin",
                    must_change_password=True,
                    created_at=now,
                    updated_at=now,
                )
            )
            repository.note(session, "user.create", username, role="admin", first=True)
        return password

    async def _count_attempt(self, name: str) -> list[tuple[str, str]]:
        """Count one of each kind, the narrowest first: who is refused there uses up nothing of the others'.

        Raises:
            LoginLockedError: There were too many.
        """
        settings, address = self._settings, current().address
        # A digest: passwords are typed into the field for the name now and then, and keys of limits may be seen.
        account = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        counted: list[tuple[str, str]] = []
        for key, limit in (
            (f"login:pair:{account}:{address}", settings.login_attempts),
            (f"login:address:{address}", settings.login_attempts_per_address),
            (f"login:account:{account}", settings.login_attempts_per_account),
        ):
            verdict = await self._limiter.hit(key, limit, settings.login_window_s, is_lock=True)
            if not verdict.allowed:
                current().headers.update(verdict.headers)
                wait_s = max(1, round(verdict.reset_s))
                raise LoginLockedError("Too many logins have failed.", hint=f"Try again in {wait_s} s.")
            counted.append((key, verdict.name))
        return counted

    async def _worked(self, counted: list[tuple[str, str]]) -> None:
        """What was counted was no failure; and whoever knows the password may have mistyped it before."""
        for key, name in counted:
            await self._limiter.undo(key, name)
        await self._limiter.forget(counted[0][0])

    async def _open(self, user_id: int, password_hash: str, client: str) -> TokenPair:
        now = time.time()
        refresh_id = secrets.token_hex(16)
        async with self._database.write() as session:
            user = await repository.user_by_id(session, user_id, lock=True)
            if user.disabled or user.password_hash != password_hash:  # changed while the password was checked
                raise WrongLoginError("The username or the password is wrong.")
            login = Login(
                id=secrets.token_hex(16),
                user_id=user.id,
                refresh_id=refresh_id,
                created_at=now,
                used_at=now,
                expires_at=now + self._settings.session_s,
                address=current().address[:64],
                client=client[:200],
            )
            session.add(login)
            user.last_login_at = now
            await repository.forget_old_logins(session, now - _KEEP_ENDED_S)
            repository.note(session, "login", user.username, actor=user.username)
        return await self._pair(user, login, refresh_id)

    async def _pair(self, user: User, login: Login, refresh_id: str) -> TokenPair:
        rest = int(login.expires_at - time.time())
        access_s = max(1, min(self._settings.access_token_s, rest))
        refresh_s = max(1, min(self._settings.refresh_token_s, rest))

        def signed(kind: TokenType, token_id: str, ttl_s: int) -> str:
            return self._tokens.sign(
                kind,
                user_id=user.id,
                username=user.username,
                role=user.role,
                session_id=login.id,
                token_id=token_id,
                ttl_s=ttl_s,
            )

        access = signed("access", secrets.token_hex(16), access_s)
        refresh = signed("refresh", refresh_id, refresh_s)
        known = session_data(user.id, user.username, user.role)
        await self._cache.set(session_key(login.id), known, min(_SESSION_CACHE_S, rest))
        return TokenPair(access, refresh, access_s, refresh_s, user)

    async def _stolen(self, session: repository.AsyncSession, claims: Claims) -> None:
        if await repository.end_login(session, claims.session_id, "refresh token used again"):
            repository.note(session, "refresh.reuse", f"user_{claims.user_id}", actor="anonymous")
