"""The command line as a user runs it: a process of its own, a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agentlightning.cli.main", *arguments]


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AGL_", "OPENAI_", "COV_CORE"))}
    return {**kept, "AGL_HOME": str(home), "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def agl(tmp_path: Path, home: Path) -> Run:
    """Run `agl ...` to its end in an empty folder."""

    def run(*arguments: str, timeout_s: float = 110) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
