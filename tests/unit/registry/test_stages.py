"""Stages of model versions: exactly one in production, history kept, nothing torn by crashes or other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentlightning.kit.errors import BadInputError, BusyError, ConflictError, NotFoundError, StorageError
from agentlightning.kit.files import exclusive_lock
from agentlightning.registry import ModelRegistry, ModelVersion


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(tmp_path / "models")


def add(registry: ModelRegistry, count: int = 1, *, name: str = "demo", base: str = "nano") -> list[ModelVersion]:
    source = registry.root.parent / "weights"
    source.mkdir(exist_ok=True)
    (source / "model.safetensors").write_bytes(b"weights")
    start = len(registry.history(name)) + len(registry.versions(name))
    return [
        registry.register(name, source, base=base, run_id=f"run-{start + i}-{time.time_ns()}", step=i, metrics={})
        for i in range(count)
    ]


def stages(registry: ModelRegistry, name: str = "demo") -> dict[str, str]:
    return {v.version: v.stage for v in registry.versions(name)}


def test_promotion_replaces_the_one_version_in_production(registry: ModelRegistry) -> None:
    add(registry, 3)
    assert registry.get("demo").version == "v3"  # the newest, while none is in production
    registry.promote("demo@v1", reason="first")
    promoted = registry.promote("demo@v2", reason="better by 3 points")
    assert promoted.stage == "production"
    assert stages(registry) == {"v1": "archived", "v2": "production", "v3": "candidate"}
    assert registry.get("demo").version == registry.get("demo@production").version == "v2"
    assert registry.get("demo@candidate").version == registry.get("demo@latest").version == "v3"
    change = registry.history("demo")[-1]
    assert (change.action, change.version, change.replaced, change.reason) == (
        "promote",
        "v2",
        "v1",
        "better by 3 points",
    )
    assert abs(change.at - time.time()) < 60


def test_promoting_twice_is_one_change_and_a_bare_name_is_the_newest(registry: ModelRegistry) -> None:
    add(registry, 2)
    registry.promote("demo")
    assert registry.promote("demo@v2").stage == "production"
    assert [(c.action, c.version) for c in registry.history("demo")] == [("promote", "v2")]


def test_rollback_goes_back_step_by_step(registry: ModelRegistry) -> None:
    add(registry, 3)
    for version in ("v1", "v2", "v3"):
        registry.promote(f"demo@{version}")
    assert registry.rollback("demo", reason="errors").version == "v2"
    assert stages(registry) == {"v1": "archived", "v2": "production", "v3": "archived"}
    assert registry.rollback("demo").version == "v1"
    with pytest.raises(ConflictError, match="no earlier production"):
        registry.rollback("demo")
    registry.promote("demo@v3")
    assert registry.rollback("demo").version == "v1"
    with pytest.raises(NotFoundError, match="No registered model 'other'"):
        registry.rollback("other")


def test_what_is_in_production_is_archived_and_deleted_by_force_only(registry: ModelRegistry) -> None:
    add(registry, 3)
    registry.promote("demo@v1")
    registry.promote("demo@v2")
    for change in (registry.archive, registry.delete):
        with pytest.raises(ConflictError, match="demo@v2 is in production"):
            change("demo@v2")
    registry.archive("demo@v3", reason="worse")
    registry.delete("demo@v1")
    assert stages(registry) == {"v2": "production", "v3": "archived"}
    with pytest.raises(ConflictError, match="no earlier production"):
        registry.rollback("demo")  # the one to go back to is gone
    registry.archive("demo@v2", force=True)
    with pytest.raises(NotFoundError, match="No version of 'demo' is in production"):
        registry.get("demo@production")
    registry.promote("demo@v3")
    registry.delete("demo@v3", force=True)
    assert stages(registry) == {"v2": "archived"}
    assert [c.action for c in registry.history("demo")][-2:] == ["promote", "delete"]


def test_the_number_of_a_deleted_version_is_not_used_again(registry: ModelRegistry) -> None:
    [_, second] = add(registry, 2)
    registry.delete("demo@v2")
    assert not second.path.exists()
    assert add(registry)[0].version == "v3"
    with pytest.raises(NotFoundError, match="demo@v2"):
        registry.get("demo@v2")


def test_lineage_names_the_registered_parent(registry: ModelRegistry) -> None:
    [first] = add(registry)
    [second] = add(registry, base=str(first.path))
    [third] = add(registry, name="other", base="demo@v2")
    assert (first.parent, second.parent, third.parent) == (None, "demo@v1", "demo@v2")
    assert registry.get("other@v1").parent == "demo@v2"
    assert registry.find(first.path) == first
    assert registry.find(registry.root) is None


def test_a_registry_of_an_older_version_is_read_and_changed(registry: ModelRegistry) -> None:
    for number in (1, 2, 10):
        folder = registry.root / "demo" / f"v{number}"
        folder.mkdir(parents=True)
        facts = {
            "name": "demo", "version": f"v{number}", "base": "nano", "run_id": f"r{number}", "step": 30,
            "created_at": 1700000000.5, "stage": "candidate", "metrics": {"gain": [0.1, 0.0, 0.2]}, "unknown": 1,
        }  # fmt: skip
        (folder / "version.json").write_text(json.dumps(facts))
    assert stages(registry) == {"v1": "candidate", "v2": "candidate", "v10": "candidate"}
    assert registry.get("demo").version == "v10"
    assert registry.promote("demo@v2").metrics == {"gain": [0.1, 0.0, 0.2]}
    assert add(registry)[0].version == "v11"


def test_files_that_cannot_be_read_are_named(registry: ModelRegistry) -> None:
    [entry] = add(registry)
    registry.promote("demo@v1")
    (entry.path / "version.json").write_text("{")
    with pytest.raises(StorageError, match=r"version\.json cannot be read"):
        registry.versions("demo")
    (registry.root / "demo" / "stages.json").write_text('{"production": 5}')
    with pytest.raises(StorageError, match=r"stages\.json cannot be read"):
        registry.get("demo")
    with pytest.raises(BadInputError, match="is no directory"):
        registry.register("new", registry.root / "nowhere", base="", run_id="r", step=0, metrics={})


def test_the_mark_changes_with_every_change(registry: ModelRegistry) -> None:
    add(registry, 2)
    marks = [registry.mark("demo")]
    for change in (lambda: registry.promote("demo@v1"), lambda: registry.promote("demo@v2")):
        change()
        marks.append(registry.mark("demo"))
    registry.rollback("demo")
    marks.append(registry.mark("demo"))
    assert len(set(marks)) == len(marks)


def test_a_lock_waits_and_gives_up_in_time(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "lock", purpose="One"):
        started = time.monotonic()
        with pytest.raises(BusyError), exclusive_lock(tmp_path / "lock", purpose="Two", wait_s=0.2):
            pass
        assert time.monotonic() - started >= 0.2


_CHANGER = """
import sys
from pathlib import Path
from agentlightning.registry import ModelRegistry
root, source, mine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
registry = ModelRegistry(root)
print("ready", flush=True)
for i in range(int(sys.argv[4])):
    version = registry.register("demo", source, base="nano", run_id=mine, step=i, metrics={})
    registry.promote(version.ref, reason=mine)
    if i % 3 == 2:
        registry.rollback("demo", reason=mine)
"""


def start_changer(registry: ModelRegistry, name: str, rounds: int) -> subprocess.Popen[str]:
    source = str(registry.root.parent / "weights")
    return subprocess.Popen(
        [sys.executable, "-c", _CHANGER, str(registry.root), source, name, str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_change_one_model_at_once_lose_nothing(registry: ModelRegistry) -> None:
    add(registry)
    processes = [start_changer(registry, f"p{i}", 6) for i in range(3)]
    for process in processes:
        with process:
            process.communicate(timeout=100)
            assert process.returncode == 0
    versions = registry.versions("demo")
    assert [v.number for v in versions] == list(range(1, 20))
    assert sum(v.stage == "production" for v in versions) == 1
    assert [c.action for c in registry.history("demo")].count("promote") == 18
    assert [c.action for c in registry.history("demo")].count("rollback") == 6


def test_a_process_killed_at_any_moment_leaves_a_whole_registry(registry: ModelRegistry) -> None:
    add(registry)
    (registry.root.parent / "weights" / "more.bin").write_bytes(os.urandom(1 << 20))
    for delay_s in (0.0, 0.01, 0.03, 0.08):
        with start_changer(registry, f"killed-{delay_s}", 1000) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
        for version in registry.versions("demo"):
            assert (version.path / "model.safetensors").read_bytes() == b"weights"
        replay = [c.version for c in registry.history("demo")]
        assert sum(v.stage == "production" for v in registry.versions("demo")) == (1 if replay else 0)
    numbers = [v.number for v in registry.versions("demo")]
    assert add(registry)[0].number == max(numbers) + 1
    assert not list((registry.root / "demo").glob(".unfinished-*"))


def test_pruning_leaves_the_newest_candidates_and_whatever_was_in_production(registry: ModelRegistry) -> None:
    add(registry, 6)
    for version in ("v2", "v4"):
        registry.promote(f"demo@{version}")
    assert registry.prune("demo", keep=4) == []
    pruned = registry.prune("demo", keep=1, reason="old")
    assert [version.version for version in pruned] == ["v1", "v3", "v5"]
    assert stages(registry) == {"v2": "archived", "v4": "production", "v6": "candidate"}
    assert (registry.history("demo")[-1].action, registry.history("demo")[-1].reason) == ("delete", "old")
    assert [version.version for version in registry.prune("demo", keep=0)] == ["v6"]
    assert registry.prune("nobody", keep=0) == []


class _Stages(RuleBasedStateMachine):
    """Any order of changes against a model of a few lines."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.registry = ModelRegistry(Path(self.folder.name) / "models")
        self.stack: list[str] = []
        self.known: list[str] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule()
    def register(self) -> None:
        self.known.append(add(self.registry)[0].version)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.known))
        self.registry.promote(f"demo@{version}")
        if not self.stack or self.stack[-1] != version:
            self.stack.append(version)

    @precondition(lambda self: len(self.stack) > 1)
    @rule()
    def rollback(self) -> None:
        self.stack.pop()
        assert self.registry.rollback("demo").version == self.stack[-1]

    @precondition(lambda self: len(self.stack) == 1)
    @rule()
    def rollback_too_far(self) -> None:
        with pytest.raises(ConflictError):
            self.registry.rollback("demo")

    @precondition(lambda self: set(self.known) - set(self.stack[-1:]))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(set(self.known) - set(self.stack[-1:]))))
        self.registry.delete(f"demo@{version}")
        self.known.remove(version)
        self.stack = [v for v in self.stack if v != version]
        self.stack = [v for i, v in enumerate(self.stack) if [v] != self.stack[i + 1 : i + 2]]

    @invariant()
    def production_is_the_top(self) -> None:
        production = [v.version for v in self.registry.versions("demo") if v.stage == "production"]
        assert production == self.stack[-1:]
        assert [v.version for v in self.registry.versions("demo")] == self.known


TestStages = _Stages.TestCase
TestStages.settings = hypothesis_settings(max_examples=25, stateful_step_count=15, deadline=None)
