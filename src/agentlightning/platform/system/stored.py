"""Secrets that the platform keeps for its processes, encrypted: keys of providers, search services, MCP servers.

Each has the name of an environment variable and stands for it where that is not set, so whatever reads a key there
finds it. Nobody is ever told one: not by an answer, a log line or the audit log.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.platform.auth.repository import note
from agentlightning.platform.columns import now
from agentlightning.platform.context import current
from agentlightning.platform.crypto import Vaults
from agentlightning.platform.database import Database, outages_told, sync_engine
from agentlightning.platform.secrets import load_secrets
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.system.models import StoredSecret

MAX_CHARS = 16_384

# Not just any variable: some of them say which code a process loads, or where the platform's own data is.
_NAME = re.compile(r"(?!AGL_|LD_|DYLD_|PYTHON)[A-Z][A-Z0-9_]{0,50}_(KEY|KEYS|TOKEN|SECRET|PASSWORD|CREDENTIALS|DSN)")

_given: dict[str, str] = {}
"""What has been put into this process's environment."""
_changing = threading.Lock()


@dataclass(frozen=True, slots=True)
class About:
    """All that is told of a secret."""

    name: str
    updated_at: datetime
    updated_by: str
    key_id: str
    is_readable: bool
    """Whether the key that it was encrypted with is here."""


class StoredSecrets:
    """Over a database."""

    def __init__(self, database: Database, vaults: Vaults) -> None:
        self._database = database
        self._vaults = vaults

    async def list(self) -> list[About]:
        """All of them, by name."""
        async with self._database.read() as session:
            rows = (await session.execute(select(StoredSecret).order_by(StoredSecret.name))).scalars().all()
        known = set(self._vaults.key_ids)
        return [About(row.name, row.updated_at, row.updated_by, row.key_id, row.key_id in known) for row in rows]

    async def set(self, name: str, value: str) -> About:
        """Keep it, in place of what was kept under that name.

        Raises:
            BadInputError: The name is none of a secret, or the value is empty, too long or holds NUL.
            ConflictError: Another process has begun to use a new key.
        """
        check_name(name)
        if not value or len(value) > MAX_CHARS or "\0" in value:
            raise BadInputError(f"A secret has 1 to {MAX_CHARS} characters, none of which is NUL.")
        vault = self._vaults.current
        async with self._database.write() as session:
            await self._check_key(session)
            row = await session.get(StoredSecret, name, with_for_update=True)
            if row is None:
                row = StoredSecret(name=name)
                session.add(row)
            row.sealed, row.key_id = vault.encrypt(value, _place(name)), vault.key_id
            identity = current().identity
            row.updated_at, row.updated_by = now(), "system" if identity is None else identity.username
            note(session, "secret.set", name)
        return About(name, row.updated_at, row.updated_by, row.key_id, True)

    async def delete(self, name: str) -> None:
        """Keep it no longer.

        Raises:
            NotFoundError: There is none of that name.
            BadInputError: The name is none of a secret.
        """
        check_name(name)
        async with self._database.write() as session:
            gone = delete(StoredSecret).where(StoredSecret.name == name).returning(StoredSecret.name)
            if (await session.execute(gone)).scalar_one_or_none() is None:
                raise NotFoundError("There is no secret of that name.", hint="GET /api/v2/system/secrets")
            note(session, "secret.delete", name)

    async def rotate(self) -> int:
        """Encrypt all anew with the key in use, in one transaction; how many were with another one.

        Raises:
            VaultKeyError: The key of one of them is not here; nothing is changed.
            StorageError: One of them is damaged; nothing is changed.
        """
        vault = self._vaults.current
        async with self._database.write() as session:
            others = select(StoredSecret).where(StoredSecret.key_id != vault.key_id).with_for_update()
            rows = (await session.execute(others)).scalars().all()
            for row in rows:
                plain = self._vaults.decrypt(row.sealed, _place(row.name), row.key_id)
                row.sealed, row.key_id = vault.encrypt(plain, _place(row.name)), vault.key_id
            if rows:
                note(session, "secret.rotate", f"{len(rows)} secrets", key_id=vault.key_id)
        return len(rows)

    async def _check_key(self, session: AsyncSession) -> None:
        used = set((await session.execute(select(StoredSecret.key_id).distinct())).scalars())
        if used and not used & set(self._vaults.key_ids):
            raise ConflictError(
                "The stored secrets were encrypted with another key than this process has.",
                hint="Restart it with the AGL_SECRET_KEY in use; or delete those secrets, if their key is lost.",
            )


def check_name(name: str) -> None:
    """Refuse what is not the name of a secret's variable.

    Raises:
        BadInputError: It is not.
    """
    if not _NAME.fullmatch(name):
        raise BadInputError(
            "This is no name of a secret.",
            hint="The name of the variable it stands for, e.g. OPENAI_API_KEY: it ends in _KEY, _TOKEN, _SECRET, "
            "_PASSWORD, _CREDENTIALS or _DSN, and is none of AGL_*.",
        )


def supply(settings: PlatformSettings) -> list[str]:
    """Put what is stored into this process's environment, except where it is set; the names.

    Before anything is made that reads keys there, and again when something has changed: what is stored no longer is
    taken out again. Without tables there is nothing. When it fails, nothing is changed.

    Raises:
        VaultKeyError: The key of one of them is not here.
        StorageError: One of them is damaged.
        DatabaseError: The database does not answer.
        ConfigError: A setting cannot be used.
    """
    with _changing:
        ours = {name for name, value in _given.items() if os.environ.get(name) == value}
        rows = [row for row in _rows(settings.location) if row[0] in ours or not os.environ.get(row[0])]
        vaults = Vaults(load_secrets(settings).stored) if rows else None
        found = {
            name: vaults.decrypt(sealed, _place(name), key_id) for name, sealed, key_id in rows if vaults is not None
        }
        os.environ.update(found)
        for name in ours - found.keys():
            os.environ.pop(name, None)
        _given.clear()
        _given.update(found)
        return sorted(found)


def supplied() -> frozenset[str]:
    """The variables of this process that stored secrets stand for."""
    return frozenset(name for name, value in _given.items() if os.environ.get(name) == value)


def _rows(url: str) -> list[tuple[str, str, str]]:
    engine = sync_engine(url)
    try:
        with outages_told(), engine.connect() as connection:
            if not inspect(connection).has_table(StoredSecret.__tablename__):
                return []
            query = select(StoredSecret.name, StoredSecret.sealed, StoredSecret.key_id).order_by(StoredSecret.name)
            return [(row[0], row[1], row[2]) for row in connection.execute(query)]
    finally:
        engine.dispose()


def _place(name: str) -> str:
    return f"secrets/{name}"
