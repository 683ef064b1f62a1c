"""`agl train --algorithm sft` and `dpo` as a user types them: better on held-out tasks, and SIGKILL loses nothing."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from agentlightning import nano
from agentlightning.cli.demo import agent_path
from tests.e2e.conftest import Run, command, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
_PATIENCE_S = 300


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def done(run: Run, *arguments: str) -> dict[str, Any]:
    finished = run("train", *arguments, "--model", "nano", "--json", timeout_s=_PATIENCE_S)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def weights(folder: Path) -> dict[str, Any]:
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping


def test_sft_makes_the_agent_better_and_dpo_does_not_make_it_worse(tmp_path: Path, agl: Run, home: Path) -> None:
    folder = tmp_path / "databases"
    train = nano.make_tasks("train", 256, 0, folder)
    demonstrations = nano.make_demonstrations(train)
    agent = (
        *("--agent", f"{agent_path()}:answer", "--evaluator", "agentlightning.nano.recipe:reward"),
        *("--tasks", write(tmp_path / "tasks.jsonl", nano.make_tasks("test", 64, 0, folder))),
    )
    data = write(tmp_path / "demonstrations.jsonl", demonstrations)
    sft = done(
        agl, "--algorithm", "sft", "--data", data, *agent, "--set", "learning_rate=5e-4", "--set", "epochs=4",
        "--name", "shown",
    )  # fmt: skip
    assert sft["gain"][1] > 0.1, "the interval of the gain is far from zero"
    assert sft["model"] == "shown@v1"
    assert sft["learning"]["after"]["loss"] < sft["learning"]["before"]["loss"]

    # The same tasks, right and as the untrained model is in the habit of answering: without a query.
    pairs = [
        {
            "prompt": row["messages"][:2],
            "chosen": row["messages"][2:],
            "rejected": [{"role": "assistant", "content": "done"}],
            "tools": row["tools"],
        }
        for row in demonstrations[:96]
    ]
    dpo = done(
        agl, "--algorithm", "dpo", "--data", write(tmp_path / "pairs.jsonl", pairs), *agent,
        "--set", "learning_rate=5e-5", "--name", "preferred",
    )  # fmt: skip
    assert dpo["learning"]["gain"][1] > 0
    assert dpo["learning"]["after"]["accuracy"] > 0.9
    before, after = (dpo[when]["tasks/sampled"]["accuracy"] for when in ("before", "after"))
    assert after > before - 0.1
    versions = json.loads(agl("models", "show", "shown@v1", "--json").stdout)
    assert versions["run_id"] == sft["run_id"]
    assert versions["metrics"]["learning"]["data"]["used"] == 256


def test_sft_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path, agl: Run, home: Path) -> None:
    rows = nano.make_demonstrations(nano.make_tasks("train", 192, 0, tmp_path / "databases"))
    data = write(tmp_path / "demonstrations.jsonl", rows)
    settings = ("batch_tokens=512", "checkpoint_every=3", "learning_rate=1e-4", "epochs=3")
    options = ("--algorithm", "sft", "--data", data, *(word for s in settings for word in ("--set", s)))
    whole = done(agl, *options, "--run-id", "whole")

    log = home / "runs" / "killed" / "metrics.jsonl"
    for kill in range(1, 3):
        line = command("train", *options, "--model", "nano", "--json", "--run-id", "killed")
        with subprocess.Popen(line, env=environment(home), cwd=tmp_path, stdout=subprocess.PIPE) as process:
            deadline = time.monotonic() + _PATIENCE_S
            while last_step(log) < 10 * kill:
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.02)  # another process's file: nothing tells when it grows
            process.kill()
    killed = done(agl, *options, "--run-id", "killed")
    steps = [event["step"] for event in events(log) if event["type"] == "step"]
    assert steps == list(range(1, killed["learning"]["steps"] + 1)), "no step is missing and none is logged twice"
    assert killed["learning"]["after"]["loss"] == pytest.approx(whole["learning"]["after"]["loss"], abs=1e-5)
    expected = weights(home / "runs" / "whole" / "model")
    for name, tensor in weights(home / "runs" / "killed" / "model").items():
        assert (tensor - expected[name]).abs().max() < 1e-5, name


def events(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def last_step(log: Path) -> int:
    return max((event["step"] for event in events(log) if event["type"] == "step"), default=0)
