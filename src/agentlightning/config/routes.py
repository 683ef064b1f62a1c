"""The gateway's routing table as data: targets, routes, prices and caps. See docs/how-to/route-limit-budget.md."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fault = Literal["connect", "timeout", "rate_limit", "server_error", "context_length", "content_filter"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RetryTable(_Table):
    """When the same target is tried again."""

    max_attempts: int = Field(default=3, ge=1)
    """Tries in all."""
    base_s: float = Field(default=0.25, gt=0)
    max_s: float = Field(default=8.0, gt=0)
    max_retry_after_s: float = Field(default=30.0, ge=0)
    """A server that asks for more is not waited for."""


class BreakerTable(_Table):
    """When a target counts as broken."""

    failure_ratio: float = Field(default=0.5, gt=0, le=1)
    min_calls: int = Field(default=20, ge=0)
    """0 switches the breaker off."""
    window_s: float = Field(default=30.0, gt=0)
    cool_down_s: float = Field(default=10.0, gt=0)
    probes: int = Field(default=1, ge=1)


class TargetTable(_Table):
    """A model server, and how it is used."""

    kind: Literal["openai", "anthropic", "litellm"] = "openai"
    base_url: str | None = None
    """Required for `openai`; Anthropic's own and LiteLLM's choice where it is left out."""
    api_key_env: str | None = None
    """Name of the environment variable with the server's key. The key itself does not stand in the file."""
    model: str | None = None
    """Model name to send instead of the agent's; for `litellm` LiteLLM's name, e.g. `bedrock/…`, and required."""
    defaults: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    max_in_flight: int | None = Field(default=None, ge=1)
    timeout_s: float | None = Field(default=None, gt=0)
    first_token_timeout_s: float | None = Field(default=None, gt=0)
    connect_timeout_s: float = Field(default=10.0, gt=0)
    idle_timeout_s: float = Field(default=300.0, gt=0)
    retry: RetryTable = RetryTable()
    breaker: BreakerTable = BreakerTable()
    capture: Literal["auto", "vllm", "none"] = "auto"
    has_processed_logprobs: bool = False
    price: str | None = None
    """Model name under which its price is looked up."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind == "openai" and self.base_url is None:
            raise ValueError("kind = 'openai' needs base_url")
        if self.kind == "litellm" and self.model is None:
            raise ValueError("kind = 'litellm' needs model, LiteLLM's name of it")
        return self


class WeightedTable(_Table):
    """A target of a route with its share."""

    target: str
    weight: float = Field(default=1.0, gt=0)


class RouteTable(_Table):
    """Who answers for a model name."""

    targets: list[str | WeightedTable] = Field(min_length=1)
    fallbacks: list[str] = []
    fallback_on: list[Fault] = ["connect", "timeout", "rate_limit", "server_error"]
    aliases: list[str] = []


class PriceTable(_Table):
    """US dollars per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0)


class CapsTable(_Table):
    """The most that somebody may use."""

    max_calls: int | None = Field(default=None, ge=0)
    max_input_tokens: int | None = Field(default=None, ge=0)
    max_output_tokens: int | None = Field(default=None, ge=0)
    max_total_tokens: int | None = Field(default=None, ge=0)
    max_usd: float | None = Field(default=None, ge=0)
    requests_per_minute: int | None = Field(default=None, ge=0)
    tokens_per_minute: int | None = Field(default=None, ge=0)


class LimitsTable(_Table):
    """Who may use how much."""

    total: CapsTable | None = None
    per_key: CapsTable | None = None
    keys: dict[str, CapsTable] = {}
    per_rollout: CapsTable | None = None
    per_attempt: CapsTable | None = None
    reserved_output_tokens: int = Field(default=1024, ge=0)


class RoutesConfig(_Table):
    """The whole file."""

    targets: dict[str, TargetTable] = {}
    routes: dict[str, RouteTable]
    accept_any_model: bool | str = False
    """Name of the route for names that no other one knows; `true` where there is only one."""
    seed: int | None = None
    """Makes the choice among weighted targets depend on the rollout alone."""
    prices: dict[str, PriceTable] = {}
    litellm_prices: bool = False
    """Look up prices that are not listed in the cost map of the installed LiteLLM."""
    limits: LimitsTable | None = None
