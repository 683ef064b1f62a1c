"""`@algo` injects by name and refuses what it cannot fill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithm import RunContext
from agentlightning.kit.errors import ConfigError


def context(tmp_path: Path) -> RunContext:
    return RunContext(run_id="r", directory=tmp_path, store="the store")  # type: ignore[arg-type]


def test_arguments_are_injected_by_name(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    @agl.algo
    def mine(*, store: Any, train_dataset: Any, context: Any, extra: int = 3) -> None:
        seen.update(store=store, train=train_dataset, run=context.run_id, extra=extra)

    mine.set_context(context(tmp_path))
    mine.run(train_dataset=[1], val_dataset=[2])
    assert seen == {"store": "the store", "train": [1], "run": "r", "extra": 3}
    assert not mine.is_async()
    assert not mine.trains_weights


async def test_async_functions_and_keyword_catch_alls_work(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    @agl.algo
    async def mine(**everything: Any) -> None:
        seen.update(everything)

    mine.set_context(context(tmp_path))
    assert mine.is_async()
    await mine.run(train_dataset=[1], val_dataset=None)  # type: ignore[misc]
    assert seen == {"store": "the store", "train_dataset": [1], "val_dataset": None}


def test_asking_for_the_engine_marks_it_as_weight_training() -> None:
    @agl.algo
    def mine(*, engine: Any) -> None: ...

    assert mine.trains_weights


def test_a_parameter_that_cannot_be_filled_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot fill the parameter\(s\) dataset .*mine"):

        @agl.algo
        def mine(dataset: Any) -> None: ...


def test_the_function_stays_callable() -> None:
    @agl.algo
    def double(store: int) -> int:
        return 2 * store

    assert double(store=4) == 8


def test_a_run_without_model_or_context_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model to train"):
        context(tmp_path).require_engine()
    with pytest.raises(ValueError, match=r"Trainer\.fit"):
        agl.GRPO().get_context()
    for getter in ("get_store", "get_adapter", "get_trainer"):
        with pytest.raises(ValueError, match="is set"):
            getattr(agl.Baseline(), getter)()


def test_check_raises_when_stopped_or_failed(tmp_path: Path) -> None:
    run = context(tmp_path)
    run.check()
    run.failure = lambda: agl.AgentLightningError("runners are gone")
    with pytest.raises(agl.AgentLightningError, match="gone"):
        run.check()
    run.stopping.set()
    with pytest.raises(agl.AgentLightningError, match="stopped"):
        run.check()


def test_baseline_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match="train_split"):
        agl.Baseline(train_split=1.0)
