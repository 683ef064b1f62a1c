"""Attack case A40: what a plain installation brings, and that LiteLLM, once a way in for thieves, is not in it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ON_REQUEST = {"litellm", "torch", "transformers", "ray", "langchain", "langgraph"}


def installed_with(names: list[str]) -> set[str]:
    """All packages that these need, however deep, without extras of theirs."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            waiting += [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            assert requirement.marker, f"{name} is needed, but not installed"
    return found


def test_a40_the_core_brings_few_packages_and_none_of_those_on_request():
    core = installed_with(PROJECT["dependencies"])
    assert not core & ON_REQUEST
    assert len(core) <= 60, sorted(core)


def test_a40_litellm_is_in_an_extra_of_its_own_only():
    extras = PROJECT["optional-dependencies"]
    assert [name for name, needs in extras.items() if any(need.startswith("litellm") for need in needs)] == ["litellm"]
    pinned = (Path(__file__).parents[2] / "requirements-frameworks.txt").read_text()
    version = re.search(r"^litellm==(\S+)$", pinned, re.M)
    assert version
    assert version[1] not in ("1.82.7", "1.82.8")  # these two carried the thief


def test_a23_bytes_become_code_in_runners_and_in_the_sandbox_only():
    """Runners get agents that their own trainer sent; what stands in stores, caches, checkpoints and files is data."""
    loads = re.compile(
        r"\b((cloud)?pickle|dill|marshal)\.loads?\(|\btorch\.load\(|\byaml\.(unsafe_)?load\(|(?<![\w.])(eval|exec)\(|"
        r"allow_pickle=True|trust_remote_code=True"
    )
    source = ROOT / "src" / "agentlightning"
    found = {str(path.relative_to(source)) for path in source.rglob("*.py") if loads.search(path.read_text("utf-8"))}
    assert found == {"runner/worker.py", "runner/ray_actor.py", "runner/transport.py", "tools/sandbox/inside.py"}
