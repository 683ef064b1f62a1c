"""The one error hierarchy: every error carries a code, a message that says what to do next, and an HTTP status."""

from __future__ import annotations

from typing import Any


class AgentLightningError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        code: Stable machine-readable identifier, e.g. `"PORT_IN_USE"`.
        status: HTTP status used when the error leaves through an API.
        hint: The next step for the person who reads it; may be empty.
        details: JSON-able facts about the case.
    """

    code = "INTERNAL_ERROR"
    status = 500

    def __init__(self, message: str, *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip() if self.hint else self.message

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form: `{"code", "message", "hint", "details"}`."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


class ConfigError(AgentLightningError):
    """A setting is wrong, unknown, or not honoured by the chosen backend."""

    code = "CONFIG_INVALID"
    status = 400


class BadInputError(AgentLightningError, ValueError):
    """The caller's data cannot be used as it is."""

    code = "BAD_INPUT"
    status = 422


class UnauthorizedError(AgentLightningError):
    """The token is missing or wrong."""

    code = "UNAUTHORIZED"
    status = 401


class ForbiddenError(AgentLightningError):
    """The token or key is known to be wrong, or does not allow this."""

    code = "FORBIDDEN"
    status = 403


class NotFoundError(AgentLightningError, ValueError):
    """The named thing does not exist. A `ValueError` too, as the 0.3 store interface documents."""

    code = "NOT_FOUND"
    status = 404


class ConflictError(AgentLightningError, ValueError):
    """The request contradicts the current state (an illegal status transition, a duplicate with other content)."""

    code = "CONFLICT"
    status = 409


class MissingExtraError(AgentLightningError, ImportError):
    """An optional dependency is needed; the hint names the extra that brings it."""

    code = "EXTRA_MISSING"
    status = 501


class PortInUseError(AgentLightningError, OSError):
    """The port asked for is taken."""

    code = "PORT_IN_USE"
    status = 500


class StorageError(AgentLightningError):
    """The database or the disk refused a write: full, read-only, corrupt or locked."""

    code = "STORAGE_FAILED"
    status = 507


class PayloadError(StorageError):
    """A stored value cannot be put together again: a piece of it is missing or damaged. The message names it."""

    code = "PAYLOAD_UNREADABLE"
    status = 500


class PayloadTooLargeError(BadInputError):
    """A value is larger than the store is set to take."""

    code = "PAYLOAD_TOO_LARGE"
    status = 413


class UpstreamError(AgentLightningError):
    """A model server answered with an error, or did not answer."""

    code = "UPSTREAM_FAILED"
    status = 502


class ModelError(AgentLightningError):
    """A model cannot be loaded or served."""

    code = "MODEL_UNUSABLE"
    status = 400


class SignalError(AgentLightningError):
    """There is nothing to learn from: the signal check failed. The message names what is missing."""

    code = "NO_SIGNAL"
    status = 409


class BusyError(AgentLightningError):
    """Another process holds the resource (two runs in one directory)."""

    code = "BUSY"
    status = 409
