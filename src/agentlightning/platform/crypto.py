"""Secrets at rest: AES-256-GCM, bound to the place where they are kept. Knows no tables."""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentlightning.kit.errors import StorageError

_VERSION = "v1."
_NONCE_BYTES = 12


class Vault:
    """Encrypts and decrypts with a key made from `secret` (HKDF-SHA256)."""

    def __init__(self, secret: str) -> None:
        kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"agentlightning stored secrets v1")
        self._cipher = AESGCM(kdf.derive(secret.encode()))

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
