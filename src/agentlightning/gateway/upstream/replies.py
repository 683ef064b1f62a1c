"""A model server's errors as the agent shall see them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.upstream.retry import retry_after_s


def error_of(base_url: str, status: int, raw: bytes, headers: Mapping[str, str] | None = None) -> CallError:
    """The error for a bad answer: the server's own words where it has any."""
    told = _told(raw)
    message = str(told.get("message") or raw[:300].decode(errors="replace").strip() or f"HTTP {status}")
    if status in (401, 403):
        # The key is the gateway's, not the agent's: its own credentials are not what is wrong.
        return CallError(
            f"{base_url} refused the gateway's API key (HTTP {status}). Give the gateway a valid key.",
            status=502,
            reason="upstream_auth_failed",
            is_retryable=False,
        )
    if 300 <= status < 400:
        return failed_answer(base_url, f"it redirects (HTTP {status}); give the gateway the final URL")
    error = CallError(
        message,
        status=502 if status == 500 else status,
        kind=_text(told.get("type")),
        param=_text(told.get("param")),
        reason=_reason(told, message),
        retry_after_s=retry_after_s(headers or {}),
    )
    if status >= 500:
        error.message = f"{base_url} failed (HTTP {status}): {message}"
        error.is_retryable = False
    return error


def failed_answer(base_url: str, why: str) -> CallError:
    """A 502: there was an answer, but it is unusable."""
    return CallError(f"{base_url} gave no usable answer: {why}.", status=502, reason="upstream_failed")


def unreachable(base_url: str, error: Exception) -> CallError:
    """A 503: nobody answers there."""
    return CallError(
        f"{base_url} is not reachable: {error}. Is the server running?",
        status=503,
        reason="upstream_unreachable",
        is_retryable=False,
    )


def _told(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(body, dict):
        return {}
    error = body.get("error", body)
    return cast(dict[str, Any], error) if isinstance(error, dict) else {"message": str(error)}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _reason(told: dict[str, Any], message: str) -> str | None:
    # vLLM and llama.cpp have no code for a prompt that is too long; clients look for OpenAI's.
    if "maximum context length" in message or "exceed_context_size" in str(told.get("type")):
        return "context_length_exceeded"
    return _text(told.get("code"))
