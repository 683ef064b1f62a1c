"""LiteLLM's exceptions as call errors, told by their attributes; the library itself is not needed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from agentlightning.gateway import LiteLLMUpstream
from agentlightning.gateway.errors import CallError, invalid
from agentlightning.gateway.upstream.litellm_errors import failure_of, headers_of, status_of
from agentlightning.kit.errors import MissingExtraError


def raised(kind: str, message: str, status: Any = None, **attributes: Any) -> Exception:
    """An exception as LiteLLM's look."""
    error = type(kind, (Exception,), {})(message)
    for name, value in {"message": message, "status_code": status, **attributes}.items():
        setattr(error, name, value)
    return error


def failure(error: Exception, **options: Any) -> CallError:
    return failure_of("p/m", error, **{"timeout_s": 3.0, **options})


@pytest.mark.parametrize(
    ("error", "status", "reason", "message"),
    [
        (
            raised("RateLimitError", 'litellm.RateLimitError: X - {"error": {"message": "slow down"}}', 429),
            429,
            None,
            "slow down",
        ),
        (raised("BadRequestError", "litellm.BadRequestError: PException - not so", 400), 400, None, "not so"),
        (raised("BadRequestError", 'X - {"error": "flat"}', 400), 400, None, "flat"),
        (raised("BadRequestError", "X - {no json}", 400), 400, None, "X - {no json}"),
        (raised("ContentPolicyViolationError", "no", 400), 400, "content_policy_violation", "no"),
        (raised("Timeout", "t", 408), 504, "timeout", "silent for 3 s"),
        (TimeoutError(), 504, "timeout", "silent for 3 s"),
        (raised("APIConnectionError", "odd", 500), 502, "upstream_failed", "odd"),
        (ValueError("a bug"), 502, "upstream_failed", "a bug"),
        (raised("InternalServerError", "", 500), 502, None, "InternalServerError"),
        (
            raised("APIConnectionError", "a bug\nTraceback (most recent call last)", 500),
            502,
            "upstream_failed",
            "a bug.",
        ),
        (raised("Strange", "x", 99), 502, "upstream_failed", "x"),
    ],
)
def test_every_error_has_a_status_a_reason_and_the_providers_words(
    error: Exception, status: int, reason: str | None, message: str
) -> None:
    found = failure(error)
    assert (found.status, found.reason) == (status, reason)
    assert message in found.message


def test_a_refused_connection_is_told_from_a_bug() -> None:
    error = raised("APIConnectionError", "x", 500)
    error.__cause__ = httpx.ConnectError("refused")
    assert (failure(error).status, failure(error).reason) == (503, "upstream_unreachable")


def test_our_own_errors_stay_as_they_are() -> None:
    error = invalid("x")
    assert failure(error) is error


def test_keys_do_not_get_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "from-the-environment")
    monkeypatch.setenv("SHORT_KEY", "is")
    error = raised("BadRequestError", "this is given-key and from-the-environment", 400)
    assert failure(error, secrets=["given-key"]).message == "this is *** and ***"


def test_headers_come_from_wherever_they_are() -> None:
    assert headers_of(raised("A", "", 429, litellm_response_headers={"retry-after": "3"}))["Retry-After"] == "3"
    assert headers_of(raised("A", "", 429, response=httpx.Response(429, headers={"x": "y"})))["X"] == "y"
    assert dict(headers_of(ValueError())) == {}
    assert status_of(ValueError()) is None


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"agentlightning\[litellm\]"):
        LiteLLMUpstream("gemini/x")
