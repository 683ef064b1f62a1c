"""Steps by tokens, splits by task, data that a run keeps, learning rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlightning.algorithm.supervised.plan import Measure, Prepared, keep, kept, plan_steps, split
from agentlightning.config import DPOConfig, SFTConfig
from agentlightning.kit.errors import ConfigError, StorageError
from agentlightning.schemas.example import TokenExample


def test_each_epoch_takes_everything_once_in_steps_of_so_many_tokens() -> None:
    sizes = [3, 9, 4, 2, 20, 5, 1, 7]
    steps = plan_steps(sizes, epochs=3, batch_tokens=10, seed=1)
    assert sorted(place for step in steps for place in step) == sorted(list(range(8)) * 3)
    assert all(sum(sizes[place] for place in step) <= 10 or len(step) == 1 for step in steps)
    assert steps == plan_steps(sizes, epochs=3, batch_tokens=10, seed=1)
    assert steps != plan_steps(sizes, epochs=3, batch_tokens=10, seed=2)
    assert len(plan_steps(sizes, epochs=2, batch_tokens=1000, seed=1)) == 2
    assert plan_steps([], epochs=2, batch_tokens=10, seed=1) == []


def test_tasks_stay_on_one_side() -> None:
    found = [(f"task {i % 10}", i) for i in range(40)]
    train, held_out = split(found, 0.3, 0)
    assert sorted(train + held_out) == list(range(40))
    assert not {i % 10 for i in train} & {i % 10 for i in held_out}
    assert split(found[:1], 0.3, 0) == ([0], [])
    assert split(found, 0.0, 0) == (list(range(40)), [])


def test_the_learning_rate_rises_and_falls() -> None:
    config = SFTConfig(learning_rate=1.0, warmup_fraction=0.2)
    rates = [config.learning_rate_at(step, 10) for step in range(10)]
    assert rates[:3] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] > 0
    assert SFTConfig(lr_schedule="constant", warmup_fraction=0).learning_rate_at(9, 10) == 1e-5
    assert SFTConfig(lr_schedule="linear", warmup_fraction=0).learning_rate_at(5, 10) == pytest.approx(5e-6)
    assert DPOConfig().learning_rate == 1e-6


def test_what_a_run_keeps_is_for_the_same_settings_only(tmp_path: Path) -> None:
    path = tmp_path / "run" / "examples.msgpack"
    kind = Prepared[TokenExample]
    settings = {"epochs": 2, "checkpoint_every": 5, "train_rows": "abc"}
    assert kept(path, kind, settings) is None
    example = TokenExample(token_ids=[1, 2], loss_mask=[0, 1])
    data = Prepared(
        settings=settings, train=[example], held_out=[], report={}, before=Measure(facts={"loss": 1.0}, values=[-1.0])
    )
    keep(path, data)
    assert kept(path, kind, {**settings, "checkpoint_every": 9}) == data
    with pytest.raises(ConfigError, match=r"epochs 2 \(now 3\), train_rows abc \(now None\)"):
        kept(path, kind, {"epochs": 3, "checkpoint_every": 5})
    path.write_bytes(b"torn")
    with pytest.raises(StorageError, match="Cannot read"):
        kept(path, kind, settings)
