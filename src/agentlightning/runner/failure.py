"""Failures of attempts as data: which class of error it was, and what to keep of it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from agentlightning.agent.errors import BadResultError
from agentlightning.kit.errors import AgentLightningError, StorageError, UpstreamError

ErrorClass = Literal["agent_error", "bad_result", "timeout", "upstream", "no_reward", "crashed", "cancelled"]
ERROR_CLASSES: tuple[str, ...] = get_args(ErrorClass)

MAX_TEXT = 4_000
"""Longest message kept, characters."""
MAX_TRACEBACK = 16_000
"""Longest traceback kept, characters; of a longer one the end."""

_CLIENT_LIBRARIES = frozenset({"openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "litellm", "aiohttp"})
_UPSTREAM_NAMES = frozenset(
    {
        "APIConnectionError",
        "APITimeoutError",
        "InternalServerError",
        "RateLimitError",
        "ServiceUnavailableError",
        "OverloadedError",
        "TransportError",
        "ClientConnectionError",
        "Timeout",
    }
)
_RETRYABLE_STATUS = frozenset({408, 425, 429})
_SERVER_ERROR = 500


class AttemptTimeoutError(AgentLightningError):
    """The agent did not finish in time."""

    code = "ATTEMPT_TIMEOUT"
    status = 504


class RolloutCancelledError(AgentLightningError):
    """The rollout was cancelled, or its runner was stopped."""

    code = "ROLLOUT_CANCELLED"
    status = 409


class NoRewardError(AgentLightningError):
    """The attempt ended without a reward, and the policy asks for one."""

    code = "NO_REWARD"
    status = 422


class AgentExitError(AgentLightningError):
    """The agent called `sys.exit()`."""

    code = "AGENT_EXITED"


class RunnerCrashedError(AgentLightningError):
    """The process that ran the attempt died."""

    code = "RUNNER_CRASHED"


@dataclass
class Failure:
    """Why an attempt did not do its job."""

    error_class: ErrorClass
    type: str
    message: str
    traceback: str = ""
    error: BaseException | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """From what was raised."""
        trace = "".join(traceback.format_exception(error))
        return cls(
            error_class=classify(error),
            type=type(error).__name__,
            message=str(error)[:MAX_TEXT],
            traceback=trace[-MAX_TRACEBACK:],
            error=error,
        )

    def as_metadata(self) -> dict[str, Any]:
        """What is stored with the attempt."""
        return {
            "class": self.error_class,
            "type": self.type,
            "message": self.message,
            "traceback": self.traceback,
        }


_OWN: tuple[tuple[type[BaseException], ErrorClass], ...] = (
    (BadResultError, "bad_result"),
    (AttemptTimeoutError, "timeout"),
    (RolloutCancelledError, "cancelled"),
    (NoRewardError, "no_reward"),
    (RunnerCrashedError, "crashed"),
)


def classify(error: BaseException) -> ErrorClass:
    """The class of an error. Model servers count as `upstream` when they do not answer or are at fault themselves."""
    for kind, error_class in _OWN:
        if isinstance(error, kind):
            return error_class
    return "upstream" if any(_is_upstream(cause) for cause in _causes(error)) else "agent_error"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):  # of a task group: one of its tasks may have met the server
            for part in cast("BaseExceptionGroup[BaseException]", current).exceptions:
                yield from _causes(part)
        current = current.__cause__


def _is_upstream(error: BaseException) -> bool:
    if isinstance(error, UpstreamError | StorageError | ConnectionError):
        return True
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in _CLIENT_LIBRARIES]
    if not kinds:
        return False
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and (status >= _SERVER_ERROR or status in _RETRYABLE_STATUS):
        return True
    return any(kind.__name__ in _UPSTREAM_NAMES for kind in kinds)
