"""A target: an upstream with the name, limits and parameters under which routes use it. Knows no model names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from agentlightning.gateway.breaker import Breaker, BreakerPolicy
from agentlightning.gateway.call import UpstreamCall
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.limits import Places
from agentlightning.gateway.upstream.base import Upstream

Fault = Literal["connect", "timeout", "rate_limit", "server_error", "context_length", "content_filter"]
"""What can go wrong at a target so that another one may do better."""

FAULTS_OF_THE_SERVER: frozenset[Fault] = frozenset({"connect", "timeout", "server_error"})
_CONTENT_FILTERS = frozenset({"content_filter", "content_policy_violation", "content_filtered"})
# What Anthropic's upstream takes over from the canonical body by itself.
_CANONICAL = frozenset(
    {"temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "model"}
)


def fault_of(error: CallError) -> Fault | None:
    """The kind of fault that an error is; `None` for one that is the request's own."""
    by_reason: dict[str | None, Fault] = {
        "upstream_unreachable": "connect",
        "context_length_exceeded": "context_length",
        **dict.fromkeys(_CONTENT_FILTERS, "content_filter"),
    }
    by_status: dict[int, Fault] = {429: "rate_limit", 408: "timeout", 504: "timeout"}
    fault = by_reason.get(error.reason) or by_status.get(error.status)
    if fault is None and error.status >= 500 and error.status not in (501, 507):
        return "server_error"
    return fault


class TargetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a target is used."""

    model: str | None = None
    """Model name to send instead of the agent's. Where the route has a `*`, a `*` in it stands for the same text."""
    defaults: dict[str, Any] = {}
    """Parameters for requests that do not give them."""
    overrides: dict[str, Any] = {}
    """Parameters that win over the request's."""
    max_in_flight: int | None = None
    """Calls at once; `None` takes `CallLimits.max_in_flight`."""
    timeout_s: float | None = None
    """Longest time for one answer, waiting for a place included; `None` leaves it to `CallLimits.call_timeout_s`."""
    first_token_timeout_s: float | None = None
    """Longest time until a streamed answer begins."""
    price: str | None = None
    """Model name under which its price is looked up, where that is not the one sent."""
    breaker: BreakerPolicy = BreakerPolicy()


class TargetState(msgspec.Struct):
    """A target as `/health` shows it."""

    name: str
    state: str
    in_flight: int
    waiting: int
    calls: int
    failures: int
    opened: int
    retry_after_s: float
    last_failure: str


class Target:
    """One upstream, and what is known of how it is doing."""

    def __init__(self, name: str, upstream: Upstream, settings: TargetSettings | None = None) -> None:
        self.name = name
        self.upstream = upstream
        self.settings = settings or TargetSettings()
        self.breaker = Breaker(self.settings.breaker)
        self.places = Places()
        self.is_retired = False
        """No route leads here any more; calls that are under way go on."""
        self.calls = 0
        self.failures = 0
        self._changes = bool(self.settings.model or self.settings.defaults or self.settings.overrides)

    def __repr__(self) -> str:
        return f"Target({self.name!r}, {self.upstream!r})"

    def state(self) -> TargetState:
        """As it is now."""
        breaker = self.breaker
        return TargetState(
            name=self.name,
            state=breaker.state,
            in_flight=self.places.taken,
            waiting=self.places.waiting,
            calls=self.calls,
            failures=self.failures,
            opened=breaker.opened,
            retry_after_s=round(breaker.retry_after_s(), 1),
            last_failure=breaker.last_failure,
        )

    def model_for(self, model: str, star: str | None) -> str:
        """The model name it is sent; `star` is what the `*` of the route stood for."""
        sent = self.settings.model
        if sent is None:
            return model
        return sent.replace("*", star) if star is not None else sent

    def request(self, call: UpstreamCall, star: str | None) -> UpstreamCall:
        """The call as its upstream gets it; the call's own `body` is given the parameters, for the record."""
        if not self._changes:
            return call
        call.body, replaced = self._with_parameters(call.body)
        call.replaced = {**replaced, **call.replaced}
        body, native = call.body, call.native
        if native is not None and self.upstream.api == call.api:
            native = self._native(native)
        model = self.model_for(call.model, star)
        if model != call.model:
            body = {**body, "model": model}
            native = None if native is None else {**native, "model": model}
        return msgspec.structs.replace(call, body=body, native=native)

    def request_body(self, body: dict[str, Any], star: str | None) -> dict[str, Any]:
        """The same for a request that is passed on as it is, such as one for embeddings."""
        if not self._changes:
            return body
        changed, _ = self._with_parameters(body)
        return {**changed, "model": self.model_for(str(body.get("model")), star)}

    def _with_parameters(self, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        missing = {name: value for name, value in self.settings.defaults.items() if body.get(name) is None}
        overrides = self.settings.overrides
        replaced = {name: body.get(name) for name, value in overrides.items() if body.get(name) != value}
        return {**body, **missing, **overrides}, replaced

    def _native(self, native: Mapping[str, Any]) -> dict[str, Any]:
        def own(parameters: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in parameters.items() if name not in _CANONICAL}

        return {**own(self.settings.defaults), **native, **own(self.settings.overrides)}
