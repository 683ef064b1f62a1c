"""What the gateway counts is on its page."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from agentlightning.gateway.cache import CacheStats
from agentlightning.gateway.continuity import History
from agentlightning.gateway.meter import GatewayStats
from agentlightning.gateway.spooling import RecordingStats
from agentlightning.gateway.target import TargetState
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "gateway.md").read_text(encoding="utf-8")
FIELDS = [
    (kind.__name__, name)
    for kind in (GatewayStats, RecordingStats, CacheStats, TargetState)
    for name in inspect.get_annotations(kind)
]


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_every_counter_is_documented(kind: str, name: str) -> None:
    section = PAGE.split("## Health and statistics")[1].split("\n## ")[0]
    assert f"`{name}`" in section, f"{kind}.{name}"


@pytest.mark.parametrize("name", get_args(History))
def test_every_history_is_documented(name: str) -> None:
    assert f"| `{name}` |" in PAGE
