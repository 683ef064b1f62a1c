"""What tokens cost, by model name. Knows no provider: prices are given by the user, or read from LiteLLM's cost map."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson

from agentlightning.kit.errors import ConfigError

_COST_MAP = "model_prices_and_context_window_backup.json"
_MILLION = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per million tokens."""

    input: float
    output: float
    cached_input: float | None = None
    """For prompt tokens that the server had in its cache; `None`: the same as the others."""

    def cost_usd(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """The cost of one call; `cached_tokens` are part of `input_tokens`."""
        cached = self.input if self.cached_input is None else self.cached_input
        cached_tokens = min(cached_tokens, input_tokens)
        fresh = (input_tokens - cached_tokens) * self.input
        return (fresh + cached_tokens * cached + output_tokens * self.output) / _MILLION


class PriceTable:
    """Prices by model name or pattern; the given ones come before LiteLLM's.

    Args:
        prices: By model name; a `*` in a name stands for anything. The pattern with the most letters wins.
        cost_map: LiteLLM's file of prices, see `find_cost_map`.

    Raises:
        ConfigError: The cost map cannot be read.
    """

    def __init__(self, prices: Mapping[str, Price] | None = None, *, cost_map: Path | None = None) -> None:
        self._exact = {name: price for name, price in (prices or {}).items() if "*" not in name}
        patterns = [(name, price) for name, price in (prices or {}).items() if "*" in name]
        patterns.sort(key=lambda pair: pair[0].count("*") - len(pair[0]))
        self._patterns = [(_pattern(name), price) for name, price in patterns]
        self._others = _read_cost_map(cost_map) if cost_map is not None else {}

    def find(self, model: str) -> Price | None:
        """The price of a model; `None` when it is not known, which is not the same as 0."""
        price = self._exact.get(model)
        if price is not None:
            return price
        for pattern, price in self._patterns:
            if pattern.fullmatch(model):
                return price
        return self._others.get(model)


def find_cost_map() -> Path:
    """The cost map of the installed LiteLLM; the package itself is not loaded.

    Raises:
        ConfigError: It is not installed, or has no such file.
    """
    found = importlib.util.find_spec("litellm")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / _COST_MAP
        if path.exists():
            return path
    raise ConfigError(
        "LiteLLM's prices are asked for, but it is not installed.",
        hint="pip install 'agentlightning[litellm]', or list the prices yourself.",
    )


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", ".*"), re.DOTALL)


def _read_cost_map(path: Path) -> dict[str, Price]:
    try:
        entries = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"The cost map {path} cannot be read: {error}.") from error
    found = {name: _from_litellm(entry) for name, entry in entries.items() if isinstance(entry, dict)}
    return {name: price for name, price in found.items() if price is not None}


def _from_litellm(entry: dict[str, Any]) -> Price | None:
    cost_in, cost_out = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if not isinstance(cost_in, int | float):
        return None
    cached = entry.get("cache_read_input_token_cost")
    return Price(
        input=cost_in * _MILLION,
        output=(cost_out if isinstance(cost_out, int | float) else 0.0) * _MILLION,
        cached_input=cached * _MILLION if isinstance(cached, int | float) else None,
    )
