"""`agl chat` as it is typed, beside the keys of a gateway that others use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(150)
@pytest.mark.parametrize("options", [(), ("--plain",)])
@pytest.mark.slow
def test_a_question_is_answered_where_the_gateway_asks_for_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("AGL_HOME", str(tmp_path))
    monkeypatch.setenv("AGL_GATEWAY_KEYS", "colleague=0123456789abcdef0123456789")
    command = [sys.executable, "-m", "agentlightning.cli.main", "chat", "--model", "nano", *options]
    done = subprocess.run(
        [*command, "How many cars are there?"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    greeting, *answer = done.stdout.strip().splitlines()
    assert greeting.startswith("model ")
    assert answer, "the model said nothing"
    if not options:
        assert "COUNT(*) FROM cars" in done.stdout
