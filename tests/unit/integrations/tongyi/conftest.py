"""A workspace with notes, a home of its own, and no model or settings of the person who runs the tests."""

import os
from pathlib import Path

import pytest

from agentlightning.integrations.tongyi.config import TongyiConfig
from tests.scripted_researcher import NOTES


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    for name in list(os.environ):
        if name.startswith(("TONGYI_", "OPENAI_", "ANTHROPIC_", "AGL_", "SEARXNG_", "BRAVE_", "TAVILY_")):
            monkeypatch.delenv(name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "dragons.md").write_text(NOTES)
    (tmp_path / ".env").write_text("SECRET=dragon\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config() -> TongyiConfig:
    return TongyiConfig()
