"""Where rollouts run, as the trainer's argument says it."""

from __future__ import annotations

from pathlib import Path

import pytest

import agentlightning as agl
from agentlightning.kit.errors import ConfigError
from agentlightning.runner import RunnerPool
from agentlightning.trainer.placement import Placement


def test_name_and_mapping_say_the_same() -> None:
    assert Placement.parse(None) == Placement.parse("process") == Placement()
    assert Placement.parse("ray") == Placement.parse({"type": "ray"})
    full = Placement.parse({"type": "ray", "address": "h:1", "num_cpus": 2, "working_dir": "."})
    assert (full.address, full.num_cpus, full.working_dir) == ("h:1", 2.0, Path())
    assert Placement.parse({"type": "subprocess"}).default_runners >= 1
    assert Placement.parse("ray").default_runners == 1


@pytest.mark.parametrize(
    ("runner", "says"),
    [
        ("kubernetes", "process, subprocess, ray"),
        ({"type": "process", "num_cpus": 2}, "runner='ray' only: num_cpus"),
        ({"type": "ray", "cpus": 2}, "cpus"),
        ({"type": "ray", "num_cpus": "many"}, "num_cpus"),
        ({"address": "h:1"}, "address"),
    ],
)
def test_what_has_no_effect_is_refused(runner: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        agl.Trainer(runner=runner)  # type: ignore[arg-type]


def test_runner_in_this_process_has_no_place() -> None:
    with pytest.raises(ConfigError, match="strategy='shm'"):
        agl.Trainer(strategy="shm", runner="subprocess")


def test_pools_of_this_machine(tmp_path: Path) -> None:
    common = {"store_url": "http://127.0.0.1:9", "n_runners": 3, "spool": tmp_path, "log_path": tmp_path / "log"}
    many = Placement().open(print, max_concurrency=5, **common)
    one = Placement.parse("subprocess").open(print, max_concurrency=5, **common)
    assert isinstance(many, RunnerPool)
    assert isinstance(one, RunnerPool)
    assert (many._options["max_concurrency"], one._options["max_concurrency"]) == (5, 1)
    assert (many._isolated, one._isolated) == (False, True)
