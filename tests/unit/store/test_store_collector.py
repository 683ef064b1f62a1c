"""The cycle collector while stores are open."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from agentlightning.kit import collector
from agentlightning.store import InMemoryLightningStore


@pytest.fixture(autouse=True)
def default_threshold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collector, "_servers", 0)  # other tests may have left a store open
    monkeypatch.setattr(collector, "_before", None)
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


async def test_it_runs_less_often_until_the_last_store_is_closed() -> None:
    one, two = InMemoryLightningStore(), InMemoryLightningStore()
    assert gc.get_threshold()[0] == 10_000
    await one.close()
    await one.close()  # again: counts once
    assert gc.get_threshold()[0] == 10_000
    await two.close()
    assert gc.get_threshold() == (700, 10, 10)


def test_a_store_that_nobody_closed_counts_no_longer_once_it_is_gone() -> None:
    store = InMemoryLightningStore()
    restore = store._restore_collector
    store._database.close_now()
    assert gc.get_threshold()[0] == 10_000
    restore()  # what the garbage collector does
    assert not restore.alive
    assert gc.get_threshold() == (700, 10, 10)
