"""Routes, prices and caps from TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentlightning.config.routes import RoutesConfig
from agentlightning.gateway import AnthropicUpstream, EngineUpstream, OpenAIUpstream
from agentlightning.gateway.breaker import BreakerPolicy
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.routesfile import load_routes, parse_routes
from agentlightning.kit.errors import ConfigError
from tests.docs.pages import ROOT, read_page
from tests.unit.gateway.scripted import ScriptedEngine

HOW_TO = ROOT / "docs" / "how-to" / "route-limit-budget.md"

SECRET = "sk-of-the-provider"
FULL = """
seed = 7
accept_any_model = "fast"

[targets.local]
base_url = "http://127.0.0.1:1/v1"
model = "llama3.2:3b"
max_in_flight = 8
timeout_s = 60
first_token_timeout_s = 5.5
overrides = { temperature = 0.2 }
retry = { max_attempts = 1 }
breaker = { min_calls = 5, cool_down_s = 2 }

[targets.remote]
base_url = "http://127.0.0.1:2/v1"
api_key_env = "PROVIDER_KEY"

[targets.claude]
kind = "anthropic"
api_key_env = "PROVIDER_KEY"

[routes.fast]
aliases = ["small", "default"]
targets = ["local", { target = "remote", weight = 3 }]
fallbacks = ["claude"]
fallback_on = ["connect", "context_length"]

[routes."gpt-*"]
targets = ["remote"]

[routes.own]
targets = ["engine"]

[prices]
"gpt-*" = { input = 2.5, output = 10, cached_input = 1.25 }

[limits]
per_rollout = { max_calls = 2 }
keys.alice = { max_usd = 5, tokens_per_minute = 1000 }
"""


def test_everything_in_a_file_takes_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_KEY", SECRET)
    path = tmp_path / "routes.toml"
    path.write_text(FULL)
    engine = EngineUpstream(ScriptedEngine(), name="engine")
    table, budgets = (routes := load_routes(path, provided={"engine": engine})).table, routes.budgets
    fast = table.find("fast")
    assert table.find("small") is table.find("default") is fast
    assert [target.name for target in fast.targets] == ["local", "remote", "claude"]
    assert fast.order(table.seed, "r")[-1].name == "claude"
    assert fast.falls_back_on(CallError("x", status=400, reason="context_length_exceeded"))
    assert not fast.falls_back_on(CallError("x", status=500))
    local, remote, claude = fast.targets
    assert (local.settings.model, local.settings.max_in_flight, local.settings.first_token_timeout_s) == (
        "llama3.2:3b",
        8,
        5.5,
    )
    assert local.settings.breaker == BreakerPolicy(min_calls=5, cool_down_s=2)
    assert isinstance(remote.upstream, OpenAIUpstream)
    assert isinstance(claude.upstream, AnthropicUpstream)
    assert table.find("gpt-9").targets == (remote,)
    assert table.resolve("own") is engine
    assert table.find("whatever").targets == fast.targets
    assert table.names() == ["fast", "own", "small", "default"]
    assert budgets is not None
    assert SECRET not in repr([table.targets, table.routes, table.states(), budgets])


def test_the_smallest_file_needs_a_target_and_a_route() -> None:
    routes = parse_routes(
        'accept_any_model = true\n[targets.t]\nbase_url = "http://x/v1"\n[routes.m]\ntargets = ["t"]', "f"
    )
    assert routes.budgets is None
    assert routes.table.find("other").targets == routes.table.find("m").targets


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["line 1: routes: Field required"]),
        ("routes = 1", ["line 1: routes: Input should be a valid dictionary"]),
        (
            '[targets.t]\nbase_url = "u"\nmax_inflight = 3\n[routes.m]\ntargets = []',
            [
                "line 3: targets.t.max_inflight: there is no such setting; did you mean 'max_in_flight'?",
                "line 5: routes.m.targets: ",
            ],
        ),
        ("[targets.t]\n[routes.m]\ntargets = ['t']", ["line 1: targets.t: kind = 'openai' needs base_url"]),
        (
            "[targets.t]\nkind = 'litellm'\n[routes.m]\ntargets = ['t']",
            ["line 1: targets.t: kind = 'litellm' needs model"],
        ),
        (
            "[targets.t]\nkind = 'anthropic'\napi_key_env = 'NOT_SET_ANYWHERE'\n[routes.m]\ntargets = ['t']",
            ["line 3: targets.t.api_key_env: the environment variable NOT_SET_ANYWHERE is not set"],
        ),
        (
            "[targets.t]\nbase_url = 'u'\n[routes.m]\ntargets = [\n  't',\n  {target = 'x'},\n]\nfallbacks = ['y']",
            ["line 4: routes.m.targets[1]: there is no target 'x'; there are: t", "line 8: routes.m.fallbacks[0]: "],
        ),
        (
            "[targets.t]\nbase_url = 'u'\n[routes.m]\ntargets = [{target = 't', weight = 0}]",
            ["line 4: routes.m.targets[0].weight: Input should be greater than 0"],
        ),
        (
            "accept_any_model = 'z'\n[targets.t]\nbase_url = 'u'\n[routes.m]\ntargets = ['t']\naliases = ['m']",
            ["line 1: accept_any_model: there is no route 'z'", "line 6: routes.m.aliases[0]: the name 'm' is taken"],
        ),
        (
            "accept_any_model = true\n[targets.t]\nbase_url = 'u'\n[routes]\na.targets = ['t']\nb.targets = ['t']",
            ["line 1: accept_any_model: with several routes, give the name of one"],
        ),
        (
            "[targets.t]\nbase_url = 'u'\n[routes.m]\ntargets = ['t']\n[limits.keys.bob]\nmax_usd = 1",
            ["line 6: limits.keys.bob.max_usd: a cap on money needs [prices], or litellm_prices = true"],
        ),
        (
            "[targets.t]\nbase_url = 'u'\n[routes.m]\ntargets = ['t']\nfallback_on = ['500']",
            ["line 5: routes.m.fallback_on[0]: Input should be 'connect', "],
        ),
    ],
)
def test_a_fault_is_told_with_its_line_and_field(text: str, faults: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_routes(text, "routes.toml")
    for fault in faults:
        assert fault in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read from .*none\.toml"):
        load_routes(tmp_path / "none.toml")


def test_a_key_is_taken_from_the_variable_named_and_from_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-not-meant-for-this-server")
    text = "[targets.a]\nbase_url = 'http://x/v1'\n[targets.b]\nkind = 'anthropic'\n[routes.m]\ntargets = ['a', 'b']"
    for target in parse_routes(text, "f").table.targets:
        upstream: Any = target.upstream
        assert "sk-not" not in str(vars(upstream._server))


def test_credentials_in_an_address_are_not_shown() -> None:
    upstream = OpenAIUpstream("http://me:my-password@127.0.0.1:9/v1")
    assert "my-password" not in repr(upstream)
    assert "127.0.0.1:9/v1" in repr(upstream)


def test_the_file_in_the_documentation_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    shown, small = (block.code for block in read_page(HOW_TO).blocks if block.language == "toml")
    table = parse_routes(shown, "routes.toml").table
    assert [target.name for target in table.find("anything").targets] == ["local", "openai", "claude"]
    assert set(RoutesConfig.model_fields) - {"litellm_prices"} == set(tomllib.loads(shown))
    assert parse_routes(small, "f", provided={"engine": EngineUpstream(ScriptedEngine())}).budgets is not None
