"""LiteLLM's exceptions as the agent shall see them. Knows them by their attributes, so that it needs no import."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx
import orjson

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.upstream.replies import error_of, failed_answer, unreachable
from agentlightning.kit.redaction import Redaction

_CODES = {
    "ContextWindowExceededError": "context_length_exceeded",
    "ContentPolicyViolationError": "content_policy_violation",
    "UnsupportedParamsError": "unsupported_parameter",
}
_PREFIX = re.compile(r"^(?:litellm\.)?(?:\w+(?:Error|Exception|Timeout)\b[:\s-]*(?:litellm\.)?)+")
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
_ADVICE = " To drop these, set"  # settings that are not the agent's
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_SHORTEST_SECRET = 8


def failure_of(model: str, error: Exception, *, timeout_s: float, secrets: Iterable[str] = ()) -> CallError:
    """The error of a call; what looks like a key of this process is not in it.

    Args:
        model: LiteLLM's name of the model.
        error: What LiteLLM raised.
        timeout_s: The time limit that was set.
        secrets: Keys that were given to it, beside those in environment variables.
    """
    if isinstance(error, CallError):
        return error
    kind, status = type(error).__name__, status_of(error)
    message = _without(_message(error), secrets)
    if isinstance(error, TimeoutError) or kind == "Timeout" or status == 408:
        return CallError(
            f"{model} did not answer: it was silent for {timeout_s:g} s.", status=504, reason="timeout",
            is_retryable=False,
        )  # fmt: skip
    if status is None or kind == "APIConnectionError":
        # LiteLLM calls everything so that it did not foresee.
        broken = next((e for e in _chain(error) if isinstance(e, OSError | httpx.TransportError)), None)
        return unreachable(model, broken) if broken is not None else failed_answer(model, message)
    told = {"error": {"message": message, "code": _CODES.get(kind), "param": _parameter(kind, message)}}
    return error_of(model, status, orjson.dumps(told), headers_of(error))


def status_of(error: Exception) -> int | None:
    """The HTTP status it stands for."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and 400 <= status < 600 else None


def headers_of(error: Exception) -> Mapping[str, str]:
    """The headers of the provider's answer."""
    headers = getattr(error, "litellm_response_headers", None) or getattr(
        getattr(error, "response", None), "headers", None
    )
    return httpx.Headers(headers or {})


def _message(error: Exception) -> str:
    """The provider's own words out of LiteLLM's."""
    text = str(getattr(error, "message", None) or error).partition("\nTraceback")[0]
    found = _OBJECT.search(text)
    if found:
        try:
            body = orjson.loads(found[0])
        except orjson.JSONDecodeError:
            body = None
        told = body.get("error", body) if isinstance(body, dict) else None
        inner: Any = told.get("message") if isinstance(told, dict) else told
        if isinstance(inner, str) and inner:
            return inner
    return _PREFIX.sub("", text).partition(_ADVICE)[0].strip() or type(error).__name__


def _parameter(kind: str, message: str) -> str | None:
    found = re.search(r"\['(\w+)'", message) if kind == "UnsupportedParamsError" else None
    return found[1] if found else None


def _without(message: str, secrets: Iterable[str]) -> str:
    kept = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    return Redaction((*secrets, *kept), "***", shortest=_SHORTEST_SECRET).text(message)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
