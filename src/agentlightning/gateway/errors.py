"""Errors of a model call, and their form on the wire. Knows nothing of HTTP frameworks."""

from __future__ import annotations

from typing import Any

from agentlightning.kit.errors import AgentLightningError


class CallError(AgentLightningError):
    """A call that is answered with an error.

    Attributes:
        kind: OpenAI's `error.type`.
        param: The request parameter at fault, if one is.
        reason: OpenAI's `error.code`, e.g. `"context_length_exceeded"`.
        retry_after_s: When the client may try again; sent as `Retry-After`.
        is_retryable: `False` tells the official clients not to repeat a request that cannot succeed or that
            the gateway has repeated already.
        is_unexpected: It stems from an error that nobody foresaw, so it is logged with its traceback.
    """

    code = "CALL_FAILED"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str | None = None,
        param: str | None = None,
        reason: str | None = None,
        retry_after_s: float | None = None,
        is_retryable: bool | None = None,
        is_unexpected: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.param = param
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.is_retryable = is_retryable
        self.is_unexpected = is_unexpected

    def as_openai(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.reason}}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """HTTP headers that belong to it."""
        headers: list[tuple[bytes, bytes]] = []
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, round(self.retry_after_s))).encode()))
        if self.is_retryable is not None:
            headers.append((b"x-should-retry", b"true" if self.is_retryable else b"false"))
        return headers


class ClientGoneError(CallError):
    """The connection was closed before the answer was complete."""

    def __init__(self) -> None:
        super().__init__(
            "The connection was closed before the answer was complete.",
            status=499,
            reason="client_disconnected",
        )


def invalid(message: str, param: str | None = None, reason: str | None = None) -> CallError:
    """A 400: the request is wrong."""
    return CallError(message, status=400, param=param, reason=reason)


def unsupported(param: str, message: str) -> CallError:
    """A 400: the request is fine elsewhere, but this upstream cannot honour the parameter."""
    return invalid(message, param, "unsupported_parameter")


def timed_out(timeout_s: float, what: str = "The model did not answer") -> CallError:
    """A 504: no answer in time."""
    return CallError(f"{what} within {timeout_s:g} s.", status=504, reason="timeout", is_retryable=False)


def as_call_error(error: Exception) -> CallError:
    """The error an upstream or the store raised, as the client shall see it."""
    if isinstance(error, CallError):
        return error
    failure = _translated(error)
    failure.__cause__ = error
    return failure


def _translated(error: Exception) -> CallError:
    if isinstance(error, AgentLightningError):
        reason = error.code.lower()
        if "max_context" in error.details:
            return invalid(str(error), "messages", "context_length_exceeded")
        return CallError(str(error), status=400 if error.status == 422 else error.status, reason=reason)
    if isinstance(error, TimeoutError):
        return CallError(
            f"The model server did not answer in time{f': {error}' if str(error) else ''}.",
            status=504,
            reason="timeout",
            is_retryable=False,
        )
    if isinstance(error, ConnectionError | EOFError):
        return CallError(
            f"The model server is not reachable: {error or type(error).__name__}.",
            status=503,
            reason="upstream_unreachable",
        )
    return CallError(
        f"The model server failed: {type(error).__name__}: {error}",
        status=502,
        reason="upstream_failed",
        is_unexpected=True,
    )
