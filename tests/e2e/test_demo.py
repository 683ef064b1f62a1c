"""The demo from outside: it learns, it resumes after SIGKILL, it knows when it is finished."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, command, environment

SMALL = ("demo", "--json", "--steps", "3", "--eval-tasks", "32")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_demo_learns_registers_and_can_be_looked_at(agl: Run, home: Path) -> None:
    done = agl("demo", "--json", "--steps", "8", "--eval-tasks", "64", timeout_s=400)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((home / "demo" / "result.json").read_text())
    assert result["steps"] == 8
    for side in ("before", "after"):
        assert 0 <= result[side]["ci_low"] <= result[side]["accuracy"] <= result[side]["ci_high"] <= 1
        assert result[side]["n"] == 64
    assert result["gain"]["ci_low"] > 0, result
    assert (home / "demo" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert result["model"] == "demo@v1"

    again = agl("demo")
    assert again.returncode == 0
    assert "--fresh" in again.stdout

    runs = json.loads(agl("runs", "--json").stdout)
    assert [run["status"] for run in runs] == ["succeeded"]
    rollouts = json.loads(agl("rollouts", "--json", "--mode", "train", "--limit", "5").stdout)
    assert len(rollouts) == 5
    shown = agl("show", rollouts[0]["rollout_id"], "--spans")
    assert shown.returncode == 0
    assert "reward:" in shown.stdout
    assert "SELECT" in shown.stdout
    asked = agl("chat", "How many cars are there?")
    assert asked.returncode == 0, asked.stderr
    assert "SELECT" in asked.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_demo_killed_three_times_resumes_and_loses_or_doubles_nothing(tmp_path: Path, home: Path, agl: Run) -> None:
    rng = random.Random(os.environ.get("AGL_KILL_SEED", "0"))
    for _ in range(3):
        process = subprocess.Popen(
            command(*SMALL),
            cwd=tmp_path,
            env=environment(home),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(rng.uniform(5, 22))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = agl(*SMALL, timeout_s=400)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["after"]["n"] == 32

    with sqlite3.connect(home / "store.db") as connection:
        rows = connection.execute("SELECT rollout_id, status FROM rollouts").fetchall()
    ids = [row[0] for row in rows]
    assert len(ids) == len(set(ids))
    assert {row[1] for row in rows} == {"succeeded"}
    train = [i for i in ids if ".t0" in i]
    assert len(train) == 3 * 32 * 8
    metrics = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in metrics if e["type"] == "step"] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_stops_cleanly_and_two_demos_at_once_are_refused(tmp_path: Path, home: Path, agl: Run) -> None:
    process = subprocess.Popen(
        command("demo", "--steps", "3", "--eval-tasks", "32"),
        cwd=tmp_path,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(12)
    second = agl("demo", "--steps", "3", "--eval-tasks", "32")
    assert second.returncode == 1
    assert "already running" in second.stderr
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "continue" in stderr
    # Nothing of it is left running.
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(home) not in left
    other = agl("demo", "--steps", "4", "--eval-tasks", "32")
    assert other.returncode == 1
    assert "--fresh" in other.stderr
