"""`agl models` on a registry on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentlightning.cli.models import app
from agentlightning.kit.errors import ConflictError, NotFoundError
from agentlightning.registry import ModelRegistry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    monkeypatch.setenv("AGL_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    registry = ModelRegistry(tmp_path / "models")
    source = tmp_path / "weights"
    source.mkdir()
    for step in range(3):
        metrics = {when: {"val/sampled": {"accuracy": score}} for when, score in (("before", 0.25), ("after", 0.5))}
        registry.register("demo", source, base="nano", run_id="run-1", step=step, metrics=metrics)
    return registry


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def test_versions_are_listed_and_shown(registry: ModelRegistry) -> None:
    assert "demo@v3" in run("list")
    assert "50.0 %" in run("list", "demo")
    assert [v["ref"] for v in run("list", "--json")] == ["demo@v1", "demo@v2", "demo@v3"]
    run("promote", "demo@v2", "--reason", "better")
    assert "better" in run("show", "demo")
    assert run("show", "demo", "--json")["history"][0]["version"] == "v2"
    with pytest.raises(NotFoundError, match="other"):
        run("list", "other")


def test_stages_change(registry: ModelRegistry) -> None:
    assert run("promote", "demo@v1", "--json")["stage"] == "production"
    assert "production" in run("promote", "demo@v2")
    assert run("rollback", "demo", "--json")["ref"] == "demo@v1"
    with pytest.raises(ConflictError):
        run("archive", "demo@v1")
    assert "archived" in run("archive", "demo@v1", "--force")
    assert "deleted" in run("delete", "demo@v1")
    assert run("delete", "demo@v3", "--json")["stage"] == "deleted"
    assert [v.version for v in registry.versions("demo")] == ["v2"]


def test_an_empty_registry_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_HOME", str(tmp_path))
    assert "No model versions" in run("list")
    assert run("list", "--json") == []
