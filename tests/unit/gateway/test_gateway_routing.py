"""Which upstream answers for which name, and in which order targets are asked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agentlightning.gateway import EngineUpstream, OpenAIUpstream, Route, RoutingTable, Target, TargetSettings
from agentlightning.gateway.call import UpstreamCall
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.target import fault_of
from agentlightning.kit.errors import ConfigError
from tests.unit.gateway.scripted import ScriptedEngine


def engine(name: str = "x") -> EngineUpstream:
    return EngineUpstream(ScriptedEngine(), name=name)


def target(name: str, **settings: Any) -> Target:
    return Target(name, OpenAIUpstream(f"http://{name}/v1"), TargetSettings(**settings))


def test_an_engine_answers_for_its_name_and_for_what_is_loaded() -> None:
    scripted = ScriptedEngine()
    upstream = EngineUpstream(scripted, name="mine")
    table = RoutingTable([upstream])
    assert table.resolve("mine") is table.resolve("scripted-1") is upstream
    scripted.info.model = "other"
    assert table.resolve("other") is upstream
    with pytest.raises(CallError, match=r"'scripted-1' does not exist\. Models here: 'mine', 'other'"):
        table.resolve("scripted-1")


def test_a_server_without_a_name_answers_for_what_no_other_knows() -> None:
    first, server = engine("default"), OpenAIUpstream("http://x/v1")
    table = RoutingTable([first, server])
    assert table.resolve("default") is first
    assert table.resolve("anything") is server
    with pytest.raises(ConfigError, match="Only one upstream"):
        RoutingTable([server, OpenAIUpstream("http://y/v1")])


def test_any_model_can_be_accepted() -> None:
    only = engine()
    for table in (
        RoutingTable([only], accept_any_model=True),
        RoutingTable({"a": only, "b": only}, accept_any_model=True),
    ):
        assert table.resolve("gpt-9") is only
    with pytest.raises(ConfigError):
        RoutingTable([only, engine()], accept_any_model=True)


def test_no_upstream_is_an_error_unless_they_come_later() -> None:
    with pytest.raises(ConfigError, match="no upstream"):
        RoutingTable([])
    table = RoutingTable(may_be_empty=True)
    with pytest.raises(CallError, match="Models here: none"):
        table.find("a")
    table.add("a", engine())
    assert table.names() == ["a", "x", "scripted-1"]


def test_routes_are_added_replaced_and_removed() -> None:
    first, second = engine("first"), OpenAIUpstream("http://x/v1")
    table = RoutingTable({"a": first, "shared": first})
    assert table.add("b", second, aliases=["bee"]) is None
    assert table.resolve("bee") is table.resolve("b") is second
    assert table.add("a", second) is None  # still reached as "shared"
    assert table.remove("shared") is first
    assert table.resolve("a") is second
    assert table.remove("a") is None
    assert table.remove("b") is second
    assert table.remove("b") is None
    for gone in ("a", "b", "bee", "first"):
        with pytest.raises(CallError, match="does not exist"):
            table.find(gone)
    assert table.upstreams == []
    table.add("again", second)  # a retired upstream may come back
    assert table.resolve("again") is second


async def test_a_replaced_upstream_is_idle_when_its_last_call_has_ended() -> None:
    first, second = engine(), engine()
    table = RoutingTable({"a": first})
    [busy] = table.find("a").targets
    await busy.places.take(1, "", 1)
    assert table.add("a", second) is first
    with pytest.raises(TimeoutError):
        await table.wait_idle(first, timeout_s=0.01)
    busy.places.leave()
    await table.wait_idle(first, timeout_s=1)
    await table.wait_idle(OpenAIUpstream("http://never-routed/v1"), timeout_s=1)


def test_patterns_come_after_names_and_the_most_specific_first() -> None:
    mini, gpt, named = OpenAIUpstream("http://1/v1"), OpenAIUpstream("http://2/v1"), OpenAIUpstream("http://3/v1")
    table = RoutingTable({"gpt-*": gpt, "gpt-*-mini": mini, "gpt-5": named})
    assert table.resolve("gpt-5") is named
    assert table.resolve("gpt-5-mini") is mini
    assert table.resolve("gpt-4.1") is gpt
    with pytest.raises(CallError, match=r"'gpt-5', 'gpt-\*-mini', 'gpt-\*'"):
        table.resolve("claude")
    assert table.names() == ["gpt-5"]
    assert table.remove("gpt-*") is gpt
    with pytest.raises(CallError):
        table.resolve("gpt-4.1")


def test_an_alias_may_lead_to_a_pattern() -> None:
    table = RoutingTable(may_be_empty=True)
    table.add_route(Route("gpt-*", [(target("t"), 1)]), aliases=["default"])
    assert table.find("default").name == "gpt-*"


def test_targets_are_chosen_by_weight() -> None:
    a, b, spare = target("a"), target("b"), target("spare")
    route = Route("m", [(a, 3), (b, 1)], fallbacks=[spare, a])
    firsts = Counter(route.order(None, None)[0].name for _ in range(4000))
    assert 0.70 < firsts["a"] / 4000 < 0.80
    assert set(route.order(None, None)) == {a, b, spare}
    assert route.order(None, None)[-1] is spare


def test_with_a_seed_a_rollout_sticks_to_its_order() -> None:
    a, b, c = target("a"), target("b"), target("c")
    route = Route("m", [(a, 3), (b, 1)])
    orders = {rollout: route.order(7, rollout) for rollout in map(str, range(2000))}
    assert all(route.order(7, rollout) == order for rollout, order in orders.items())
    share = sum(order[0] is a for order in orders.values()) / 2000
    assert 0.70 < share < 0.80
    assert any(route.order(8, rollout) != order for rollout, order in orders.items())
    # A third target takes from the others and moves nobody between them.
    wider = Route("m", [(a, 3), (b, 1), (c, 1)])
    for rollout, order in orders.items():
        assert wider.order(7, rollout)[0] in (order[0], c)


@pytest.mark.parametrize("targets", [[], [0.0], [-1.0], [float("nan")], [float("inf")]])
def test_a_route_needs_targets_with_weights(targets: list[float]) -> None:
    with pytest.raises(ConfigError, match="weights above 0"):
        Route("m", [(target("t"), weight) for weight in targets])


def call(**body: object) -> UpstreamCall:
    return UpstreamCall(call_id="1", kind="chat", body={"model": "m", **body})


def test_a_target_without_settings_passes_the_call_on_as_it_is() -> None:
    asked = call(temperature=1)
    assert target("t").request(asked, None) is asked


def test_a_target_sends_its_own_model_and_parameters_and_the_record_keeps_the_agents_name() -> None:
    asked = call(temperature=1, top_p=None)
    settings = {"model": "real", "defaults": {"top_p": 0.5, "temperature": 0}, "overrides": {"max_tokens": 9}}
    sent = target("t", **settings).request(asked, None)
    assert sent.body == {"model": "real", "temperature": 1, "top_p": 0.5, "max_tokens": 9}
    assert asked.body == {**sent.body, "model": "m"}
    assert asked.replaced == {"max_tokens": None}
    assert target("t", **settings).request_body({"model": "m", "input": "x"}, None)["model"] == "real"


def test_the_star_of_a_pattern_is_put_into_the_targets_model() -> None:
    route = Route("local/*", [(target("t", model="hub/*"), 1)])
    [only] = route.targets
    assert only.model_for("local/a/b", route.star("local/a/b")) == "hub/a/b"
    assert route.star("other") is None


def test_a_native_request_gets_what_only_its_own_dialect_knows() -> None:
    asked = call()
    asked.api, asked.native = "anthropic", {"model": "m", "thinking": None, "service_tier": "auto"}
    shaped = Target(
        "t", OpenAIUpstream("http://x/v1"), TargetSettings(model="r", overrides={"thinking": 1, "top_k": 2})
    )
    assert shaped.request(asked, None).native == {**asked.native, "model": "r"}  # a translated one gets the body alone
    shaped.upstream.api = "anthropic"
    sent = shaped.request(asked, None)
    assert sent.native == {"model": "r", "thinking": 1, "service_tier": "auto"}
    assert sent.body["top_k"] == 2


@pytest.mark.parametrize(
    ("status", "reason", "fault"),
    [
        (503, "upstream_unreachable", "connect"),
        (504, "timeout", "timeout"),
        (408, None, "timeout"),
        (429, None, "rate_limit"),
        (400, "context_length_exceeded", "context_length"),
        (400, "content_filter", "content_filter"),
        (502, "upstream_failed", "server_error"),
        (529, None, "server_error"),
        (400, None, None),
        (404, "model_not_found", None),
        (501, "embeddings_not_supported", None),
        (507, "record_failed", None),
    ],
)
def test_errors_are_told_apart(status: int, reason: str | None, fault: str | None) -> None:
    assert fault_of(CallError("x", status=status, reason=reason)) == fault
