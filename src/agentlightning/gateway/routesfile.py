"""A routing table, prices and caps from a TOML file. Keys come from the environment; the file has only their names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.config.routes import CapsTable, RoutesConfig, RouteTable, TargetTable
from agentlightning.config.tomlfile import TomlText
from agentlightning.gateway.account import Caps
from agentlightning.gateway.breaker import BreakerPolicy
from agentlightning.gateway.budgets import BudgetPolicy, Budgets
from agentlightning.gateway.prices import Price, PriceTable, find_cost_map
from agentlightning.gateway.routing import Route, RoutingTable
from agentlightning.gateway.target import Target, TargetSettings
from agentlightning.gateway.upstream.anthropic import AnthropicUpstream
from agentlightning.gateway.upstream.base import Upstream
from agentlightning.gateway.upstream.openai import OpenAIUpstream
from agentlightning.gateway.upstream.retry import RetryPolicy
from agentlightning.kit.errors import ConfigError

_ANTHROPIC = "https://api.anthropic.com"

_Fault = tuple[tuple[str | int, ...], str]


class Routes(msgspec.Struct, frozen=True):
    """What a file says, ready for `Gateway(store, routes.table, budgets=routes.budgets)`."""

    table: RoutingTable
    budgets: Budgets | None


def load_routes(
    path: Path | str,
    *,
    table: RoutingTable | None = None,
    provided: Mapping[str, Upstream] | None = None,
    ledger: Path | str | None = None,
) -> Routes:
    """Read a file.

    Args:
        path: The file.
        table: Add to this table instead of a new one; the file's routes may name the models in it as targets.
        provided: Further targets that its routes may name, such as the engine of this process.
        ledger: Where what keys have used is kept across restarts; see `Budgets`.

    Raises:
        ConfigError: It cannot be read, has faults (told with line and field), or a variable with a key is not set.
        MissingExtraError: A target needs LiteLLM.
        StorageError: The ledger cannot be used.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The routes cannot be read from {path}: {error}.") from error
    return parse_routes(text, path.name, table=table, provided=provided, ledger=ledger)


def parse_routes(
    text: str,
    source: str,
    *,
    table: RoutingTable | None = None,
    provided: Mapping[str, Upstream] | None = None,
    ledger: Path | str | None = None,
) -> Routes:
    """The same from text; `source` is its name in messages."""
    document = TomlText(text, source)
    config = document.parse(RoutesConfig)
    table = table or RoutingTable(may_be_empty=True)
    targets = {name: table.find(name).targets[0] for name in table.names()}
    targets |= {name: Target(name, upstream) for name, upstream in (provided or {}).items()}
    faults = list(_faults(config, {*config.targets, *targets}))
    if faults:
        raise document.error(faults)
    for name, settings in config.targets.items():
        targets[name] = Target(name, _upstream(name, settings), _settings(settings))
    _fill(table, config, targets)
    return Routes(table, _budgets(config, ledger))


def _faults(config: RoutesConfig, names: set[str]) -> Iterator[_Fault]:
    """What pydantic cannot see: references, and the environment."""
    for name, target in config.targets.items():
        variable = target.api_key_env
        if variable is not None and not os.environ.get(variable):
            yield ("targets", name, "api_key_env"), f"the environment variable {variable} is not set"
    known = ", ".join(sorted(names)) or "none"
    for name, route in config.routes.items():
        listed = [("targets", i, t if isinstance(t, str) else t.target) for i, t in enumerate(route.targets)]
        listed += [("fallbacks", i, t) for i, t in enumerate(route.fallbacks)]
        for field, position, wanted in listed:
            if wanted not in names:
                yield ("routes", name, field, position), f"there is no target {wanted!r}; there are: {known}"
    yield from _faults_of_names(config)
    limits = config.limits
    if limits is None or config.prices or config.litellm_prices:
        return
    for place, caps in _caps(config):
        if caps.max_usd is not None:
            yield ("limits", *place, "max_usd"), "a cap on money needs [prices], or litellm_prices = true"


def _faults_of_names(config: RoutesConfig) -> Iterator[_Fault]:
    taken = set(config.routes)
    for name, route in config.routes.items():
        for position, alias in enumerate(route.aliases):
            if alias in taken:
                yield ("routes", name, "aliases", position), f"the name {alias!r} is taken"
            taken.add(alias)
    any_model = config.accept_any_model
    if any_model is True and len(config.routes) != 1:
        yield ("accept_any_model",), "with several routes, give the name of one"
    if isinstance(any_model, str) and any_model not in config.routes:
        yield ("accept_any_model",), f"there is no route {any_model!r}"


def _caps(config: RoutesConfig) -> Iterator[tuple[tuple[str, ...], CapsTable]]:
    limits = config.limits
    if limits is None:
        return
    named = {"total": limits.total, "per_key": limits.per_key}
    named |= {"per_rollout": limits.per_rollout, "per_attempt": limits.per_attempt}
    yield from (((name,), caps) for name, caps in named.items() if caps is not None)
    yield from ((("keys", name), caps) for name, caps in limits.keys.items())


def _upstream(name: str, table: TargetTable) -> Upstream:
    # With an empty name upstreams do not look for a key that the file does not mention.
    key: dict[str, Any] = {"api_key_env": table.api_key_env or ""}
    retry = RetryPolicy(**table.retry.model_dump())
    timeouts: dict[str, Any] = {
        "connect_timeout_s": table.connect_timeout_s,
        "idle_timeout_s": table.idle_timeout_s,
    }
    if table.kind == "litellm":
        from agentlightning.gateway.upstream.litellm import LiteLLMUpstream

        assert table.model is not None
        return LiteLLMUpstream(
            table.model, name=name, base_url=table.base_url, timeout_s=table.idle_timeout_s, retry=retry, **key
        )
    if table.kind == "anthropic":
        return AnthropicUpstream(table.base_url or _ANTHROPIC, retry=retry, **key, **timeouts)
    assert table.base_url is not None
    return OpenAIUpstream(
        table.base_url,
        **key,
        capture=table.capture,
        has_processed_logprobs=table.has_processed_logprobs,
        retry=retry,
        **timeouts,
    )


def _settings(table: TargetTable) -> TargetSettings:
    return TargetSettings(
        model=None if table.kind == "litellm" else table.model,
        defaults=table.defaults,
        overrides=table.overrides,
        max_in_flight=table.max_in_flight,
        timeout_s=table.timeout_s,
        first_token_timeout_s=table.first_token_timeout_s,
        price=table.price or (table.model if table.kind == "litellm" else None),
        breaker=BreakerPolicy(**table.breaker.model_dump()),
    )


def _fill(table: RoutingTable, config: RoutesConfig, targets: Mapping[str, Target]) -> None:
    if config.seed is not None:
        table.seed = config.seed
    for name, route in config.routes.items():
        table.add_route(_route(name, route, targets), aliases=route.aliases)
    any_model = config.accept_any_model
    if any_model is not False:
        name = any_model if isinstance(any_model, str) else next(iter(config.routes))
        table.accept_any(table.find(name) if "*" not in name else _route(name, config.routes[name], targets))


def _route(name: str, table: RouteTable, targets: Mapping[str, Target]) -> Route:
    weighted = [(targets[t], 1.0) if isinstance(t, str) else (targets[t.target], t.weight) for t in table.targets]
    fallbacks = [targets[target] for target in table.fallbacks]
    return Route(name, weighted, fallbacks=fallbacks, fallback_on=frozenset(table.fallback_on))


def _budgets(config: RoutesConfig, ledger: Path | str | None) -> Budgets | None:
    limits = config.limits
    if limits is None:
        return None
    prices = {name: Price(**price.model_dump()) for name, price in config.prices.items()}
    cost_map = find_cost_map() if config.litellm_prices else None
    policy = BudgetPolicy(
        total=_runtime_caps(limits.total),
        per_key=_runtime_caps(limits.per_key),
        keys={name: Caps(**caps.model_dump()) for name, caps in limits.keys.items()},
        per_rollout=_runtime_caps(limits.per_rollout),
        per_attempt=_runtime_caps(limits.per_attempt),
        reserved_output_tokens=limits.reserved_output_tokens,
    )
    return Budgets(policy, prices=PriceTable(prices, cost_map=cost_map), ledger=ledger)


def _runtime_caps(table: CapsTable | None) -> Caps | None:
    return None if table is None else Caps(**table.model_dump())
