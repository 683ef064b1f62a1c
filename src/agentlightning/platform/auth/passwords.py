"""Passwords: bcrypt with 12 rounds, off the event loop. Knows no users.

bcrypt reads no more than 72 bytes: longer passwords are refused rather than cut.
"""

from __future__ import annotations

import asyncio
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

from agentlightning.kit.errors import BadInputError

T = TypeVar("T")

ROUNDS = 12
MIN_LENGTH = 12
MAX_BYTES = 72

_THREADS = 4  # bcrypt lets go of the interpreter; more would only take the processor from everybody else
_COMMON = frozenset({"password", "passwort", "qwertz", "qwerty", "123456", "letmein", "iloveyou", "admin", "welcome"})


def check_new_password(password: str, username: str) -> None:
    """Refuse a password that is bad from the start.

    Raises:
        BadInputError: It is too short or long, holds NUL, the user's name, or hardly more than a common word.
    """
    problem = ""
    lowered = password.lower()
    rest = lowered
    for word in sorted({*_COMMON, username.lower()}, key=len, reverse=True):
        rest = rest.replace(word, "")
    if len(password) < MIN_LENGTH:
        problem = f"has fewer than {MIN_LENGTH} characters"
    elif len(_bytes(password)) > MAX_BYTES:
        problem = f"has more than {MAX_BYTES} bytes"
    elif "\0" in password:
        problem = "holds a NUL character"
    elif len(set(lowered)) < 5 or len(rest) < MIN_LENGTH // 2:
        problem = "can be guessed"
    if problem:
        raise BadInputError(f"The new password {problem}.", hint="Take a few unrelated words.")


def one_time_password() -> str:
    """A random one (about 119 bits)."""
    return secrets.token_urlsafe(15)


def is_outdated(hashed: str) -> bool:
    """Whether it was made elsewhere with fewer rounds, and is to be made anew when the password is at hand."""
    return _rounds(hashed.encode()) < ROUNDS


class PasswordHasher:
    """Hashes and checks on threads of its own, so that a flood of logins holds up nobody else's work."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="agl-bcrypt")
        self._nobody = self._pool.submit(lambda: bcrypt.hashpw(secrets.token_hex(16).encode(), bcrypt.gensalt(ROUNDS)))

    async def hash(self, password: str) -> str:
        """The hash to keep."""
        raw = _bytes(password)
        hashed = await self._run(lambda: bcrypt.hashpw(raw, bcrypt.gensalt(ROUNDS)))
        return hashed.decode()

    async def verify(self, password: str, hashed: str | None) -> bool:
        """Whether it is the password; takes as long when there is no such user (`hashed` is `None`)."""
        raw = _bytes(password)
        fits = len(raw) <= MAX_BYTES and b"\0" not in raw
        against = hashed.encode() if hashed is not None else await asyncio.wrap_future(self._nobody)
        same = await self._run(lambda: _check(raw if fits else b"", against))
        return same and fits and hashed is not None

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _check(raw: bytes, against: bytes) -> bool:
    """Compare; in the time of `ROUNDS` also where there are fewer, or the time would tell that there is such a user."""
    same = bcrypt.checkpw(raw, against)
    for rounds in range(_rounds(against), ROUNDS):  # 2^r + 2^r + 2^(r+1) + ... + 2^(ROUNDS-1) = 2^ROUNDS
        bcrypt.hashpw(b"", bcrypt.gensalt(rounds))
    return same


def _rounds(hashed: bytes) -> int:
    return int(hashed.split(b"$")[2])


def _bytes(password: str) -> bytes:
    # One password however the keyboard composes its accents; lone surrogates cannot be encoded otherwise.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
