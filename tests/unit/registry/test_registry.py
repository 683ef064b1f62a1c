"""The model registry keeps versions with their lineage."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.registry import ModelRegistry, ModelVersion


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def register(registry: ModelRegistry, source: Path, run: str = "run-1") -> ModelVersion:
    return registry.register("demo", source, base="nano", run_id=run, step=30, metrics={"gain": [0.5, 0.4, 0.6]})


def test_versions_count_up_and_are_found_by_name_or_ref(tmp_path: Path, source: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    first, second = register(registry, source, "run-1"), register(registry, source, "run-2")
    assert (first.ref, second.ref) == ("demo@v1", "demo@v2")
    assert registry.get("demo").version == "v2"
    found = registry.get("demo@v1")
    assert found == first
    assert (found.path / "model.safetensors").read_bytes() == b"weights"
    assert (found.base, found.run_id, found.step, found.stage) == ("nano", "run-1", 30, "candidate")
    assert registry.names() == ["demo"]


def test_registering_the_same_run_and_step_again_changes_nothing(tmp_path: Path, source: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    assert register(registry, source) == register(registry, source)
    assert len(registry.versions("demo")) == 1


def test_a_half_copied_version_of_a_killed_process_is_no_version(tmp_path: Path, source: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    staging = tmp_path / "models" / "demo" / ".v1"
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(b"torn")
    assert registry.versions("demo") == []
    assert (register(registry, source).path / "model.safetensors").read_bytes() == b"weights"


def test_unknown_names_and_bad_names_are_errors(tmp_path: Path, source: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    with pytest.raises(NotFoundError, match="none yet"):
        registry.get("demo")
    register(registry, source)
    with pytest.raises(NotFoundError, match="demo@v1"):
        registry.get("demo@v9")
    with pytest.raises(BadInputError, match="no model name"):
        registry.register("../evil", source, base="", run_id="r", step=1, metrics={})
