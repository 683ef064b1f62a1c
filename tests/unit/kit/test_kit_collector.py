"""The collector's setting while servers are up."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from agentlightning.kit import collector
from agentlightning.kit.collector import relax_collector, restore_collector


@pytest.fixture(autouse=True)
def default_threshold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collector, "_servers", 0)  # other tests may have left one up
    monkeypatch.setattr(collector, "_before", None)
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_the_last_server_brings_back_the_setting() -> None:
    relax_collector()
    relax_collector()
    assert gc.get_threshold()[0] == 10_000
    restore_collector()
    assert gc.get_threshold()[0] == 10_000
    restore_collector()
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("own", [(0, 10, 10), (50_000, 10, 10)])
def test_an_own_setting_stays(own: tuple[int, int, int]) -> None:
    gc.set_threshold(*own)
    relax_collector()
    assert gc.get_threshold() == own
    restore_collector()
    assert gc.get_threshold() == own


def test_a_setting_made_while_serving_stays() -> None:
    relax_collector()
    gc.set_threshold(5, 6, 7)
    restore_collector()
    assert gc.get_threshold() == (5, 6, 7)
