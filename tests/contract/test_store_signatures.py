"""The interface has 0.3's methods and parameters; what we add cannot break a call written for 0.3."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from agentlightning.store import UNSET, LightningStore, Unset
from agentlightning.store.bulk import Bulk
from agentlightning.store.history import History
from agentlightning.store.judgements import Judgements

_RECORDED = json.loads((Path(__file__).parent / "data" / "store_v03_signatures.json").read_text())["methods"]
_ADDED_METHODS = {"close"}


@pytest.mark.parametrize("name", sorted(_RECORDED))
def test_method_accepts_what_03_accepts(name: str) -> None:
    recorded: dict[str, Any] = _RECORDED[name]
    member = inspect.getattr_static(LightningStore, name)
    assert isinstance(member, property) == recorded["property"]
    if recorded["property"]:
        return
    assert inspect.iscoroutinefunction(member) == recorded["async"]
    ours = list(inspect.signature(member).parameters.values())[1:]
    theirs = recorded["parameters"]
    for position, (mine, their) in enumerate(zip(ours, theirs, strict=False)):
        assert mine.name == their["name"], position
        expected = (
            inspect.Parameter.KEYWORD_ONLY if their["kind"] == "keyword" else inspect.Parameter.POSITIONAL_OR_KEYWORD
        )
        assert mine.kind == expected, mine.name
        default = None if mine.default is inspect.Parameter.empty else repr(mine.default)
        assert default == their["default"], mine.name
    for extra in ours[len(theirs) :]:
        assert extra.kind == inspect.Parameter.KEYWORD_ONLY
        assert extra.default is not inspect.Parameter.empty


def test_nothing_else_is_public() -> None:
    ours = {name for name in vars(LightningStore) if not name.startswith("_")}
    assert ours == set(_RECORDED) | _ADDED_METHODS


def test_judgements_go_beyond_03() -> None:
    ours = {name for name in vars(Judgements) if not name.startswith("_")}
    assert ours & set(_RECORDED) == set()
    for name in ours:
        assert inspect.iscoroutinefunction(getattr(LightningStore, name))


def test_history_goes_beyond_03() -> None:
    ours = {name for name in vars(History) if not name.startswith("_")}
    assert ours == {"query_events", "watch_events"}
    assert ours & set(_RECORDED) == set()


def test_bulk_goes_beyond_03() -> None:
    ours = {name for name in vars(Bulk) if not name.startswith("_")}
    assert ours == {"query_many_spans", "update_many_attempts"}
    assert ours & set(_RECORDED) == set()


def test_unset_is_a_singleton_that_survives_pickling() -> None:
    assert isinstance(UNSET, Unset)
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert repr(UNSET) == "UNSET"


async def test_interface_alone_implements_nothing() -> None:
    bare = LightningStore()
    with pytest.raises(NotImplementedError, match="LightningStore"):
        await bare.get_latest_resources()
    assert not any(bare.capabilities.values())
    await bare.close()
