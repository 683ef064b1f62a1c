"""`agl ab` as it is typed, before a scripted model server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_optimize import AGENT, ROOT
from tests.scripted_model import SEED, ScriptedModel, tasks


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agent.py").write_text(AGENT)
    rows = [{**task, "user": f"u{number}"} for number, task in enumerate(tasks(80))]
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "old.txt").write_text(SEED)
    (tmp_path / "new.txt").write_text(f"{SEED} Use rule alpha. Use rule beta. Use rule gamma.")
    return tmp_path


def agl(folder: Path, server: ScriptedModel, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentlightning.cli.main", "ab", "agent.py:solve", "--data", "tasks.jsonl"]
    command += ["--base-url", server.url, "--model", "task", *arguments]
    environment = {**os.environ, "AGL_HOME": str(folder / "home"), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.slow
def test_the_new_prompt_is_shown_to_be_better_and_nothing_is_asked_twice(folder: Path, server: ScriptedModel) -> None:
    both = ("--control", "old.txt", "--treatment", "new.txt")
    first = agl(folder, server, *both)
    assert first.returncode == 0, first.stderr
    assert "the treatment is better" in first.stdout
    assert "mean reward 1.000" in first.stdout
    asked = server.total
    again = agl(folder, server, *both, "--json")
    assert server.total == asked, "finished rollouts are not run again"
    verdict = json.loads(again.stdout)
    assert verdict["winner"] == "treatment"
    assert verdict["ci_low"] > 0
    assert (folder / "home" / "runs" / verdict["run_id"] / "abtest.json").is_file()


@pytest.mark.slow
def test_by_user_and_bad_input(folder: Path, server: ScriptedModel) -> None:
    both = ("--control", "old.txt", "--treatment", "new.txt")
    keyed = agl(folder, server, *both, "--key", "user", "--most", "60", "--json")
    assert sum(json.loads(keyed.stdout)["n"].values()) <= 60
    for arguments, said in (
        (("--control", "old.txt", "--treatment", "old.txt"), "are the same"),
        (("--control", "old.txt", "--treatment", "none.txt"), "no prompt file none.txt"),
        ((*both, "--most", "10"), "experiment_duration"),
        ((*both, "--ratio", "1.5"), "control_ratio"),
        ((*both, "--key", "nothing"), "nothing"),
    ):
        refused = agl(folder, server, *arguments)
        assert refused.returncode == 1
        assert said in refused.stderr
        assert "next:" in refused.stderr
