"""Which upstream answers for which name."""

from __future__ import annotations

import pytest

from agentlightning.gateway import EngineUpstream, OpenAIUpstream
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.routing import RoutingTable
from agentlightning.kit.errors import ConfigError
from tests.unit.gateway.scripted import ScriptedEngine


def test_an_engine_answers_for_its_name_and_for_what_is_loaded() -> None:
    engine = ScriptedEngine()
    upstream = EngineUpstream(engine, name="mine")
    table = RoutingTable([upstream])
    assert table.resolve("mine") is table.resolve("scripted-1") is upstream
    engine.info.model = "other"
    assert table.resolve("other") is upstream
    with pytest.raises(CallError, match=r"'scripted-1' does not exist\. Models here: 'mine', 'other'"):
        table.resolve("scripted-1")


def test_a_server_without_a_name_answers_for_what_no_other_knows() -> None:
    engine, server = EngineUpstream(ScriptedEngine()), OpenAIUpstream("http://x/v1")
    table = RoutingTable([engine, server])
    assert table.resolve("default") is engine
    assert table.resolve("anything") is server
    with pytest.raises(ConfigError, match="Only one upstream"):
        RoutingTable([server, OpenAIUpstream("http://y/v1")])


def test_any_model_can_be_accepted() -> None:
    engine = EngineUpstream(ScriptedEngine())
    for table in (
        RoutingTable([engine], accept_any_model=True),
        RoutingTable({"a": engine, "b": engine}, accept_any_model=True),
    ):
        assert table.resolve("gpt-9") is engine
    with pytest.raises(ConfigError):
        RoutingTable([engine, EngineUpstream(ScriptedEngine())], accept_any_model=True)


def test_routes_can_be_added() -> None:
    table = RoutingTable({"a": EngineUpstream(ScriptedEngine(), name="x")})
    other = OpenAIUpstream("http://x/v1")
    table.add("b", other)
    assert table.resolve("b") is other
    assert table.names() == ["a", "b", "x", "scripted-1"]


def test_no_upstream_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no upstream"):
        RoutingTable([])
