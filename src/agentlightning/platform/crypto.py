"""Secrets at rest: AES-256-GCM, bound to the place where they are kept. Knows no tables."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentlightning.kit.errors import StorageError

_VERSION = "v1."
_NONCE_BYTES = 12


class Vault:
    """Encrypts and decrypts with a key made from `secret` (HKDF-SHA256).

    Attributes:
        key_id: Names the key, and tells nothing of it.
    """

    def __init__(self, secret: str) -> None:
        self._cipher = AESGCM(_derived(secret, b"agentlightning stored secrets v1", 32))
        self.key_id = _derived(secret, b"agentlightning stored secrets key id", 8).hex()

    def encrypt(self, plain: str, place: str) -> str:
        """Text that `decrypt` takes for the same `place` (e.g. `"tools/7/token"`) only."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, plain.encode(), place.encode())
        return _VERSION + base64.urlsafe_b64encode(nonce + sealed).decode()

    def decrypt(self, sealed: str, place: str) -> str:
        """The text.

        Raises:
            StorageError: It was changed, moved from another place, or encrypted with another key.
        """
        try:
            raw = base64.urlsafe_b64decode(sealed.removeprefix(_VERSION).encode())
            if not sealed.startswith(_VERSION) or len(raw) < _NONCE_BYTES:
                raise ValueError("not a sealed value")
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], place.encode()).decode()
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise StorageError(
                "A stored secret cannot be decrypted.", hint="Was AGL_SECRET_KEY changed? Restore it, or set it anew."
            ) from error


class VaultKeyError(StorageError):
    """What is stored was encrypted with a key that is not here."""

    code = "SECRET_KEY_WRONG"
    status = 503


class Vaults:
    """The key in use, and earlier ones that still decrypt.

    Args:
        secrets: The one in use first.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._vaults = {vault.key_id: vault for vault in map(Vault, reversed(secrets))}
        self.current = Vault(secrets[0])

    @property
    def key_ids(self) -> list[str]:
        """Of all keys."""
        return list(self._vaults)

    def decrypt(self, sealed: str, place: str, key_id: str) -> str:
        """The text.

        Raises:
            VaultKeyError: No key with that id is here.
            StorageError: It was changed, or moved from another place.
        """
        vault = self._vaults.get(key_id)
        if vault is None:
            raise VaultKeyError(
                f"{place} was encrypted with another key ({key_id}; here is {self.current.key_id}).",
                hint="Start with the AGL_SECRET_KEY of then, or put that one into AGL_OLD_SECRET_KEYS and run: agl "
                "platform secrets rotate. If it is lost: agl platform secrets delete NAME, then set it again.",
            )
        return vault.decrypt(sealed, place)


def _derived(secret: str, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose).derive(secret.encode())
