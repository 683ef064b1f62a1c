"""`agl optimize` and `agl lineage` as they are typed, cut by SIGKILL and continued, before a scripted model server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_model import PROPOSER, SEED, ScriptedModel, tasks

ROOT = Path(__file__).resolve().parents[2]
AGENT = f'''
import agentlightning as agl
from tests.integration.prompt_agents import ask

PROMPT = agl.PromptTemplate(template="{SEED}")


@agl.rollout
async def solve(task, prompt_template, llm):
    return float(await ask(llm, prompt_template.format(question=task["question"])) == task["expected"])


async def plain(question, prompt_template, llm):
    return await ask(llm, prompt_template.format(question=question))
'''


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel(delay_s=0.05) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(task) for task in tasks(48)))
    return tmp_path


def command(server: ScriptedModel, *more: str) -> list[str]:
    settings = ["beam_width=2", "branch_factor=2", "beam_rounds=4", "val_batch_size=8"]
    return [
        *("optimize", "agent.py:solve", "--data", "tasks.jsonl", "--optimizer", "apo", "--concurrency", "4"),
        *("--base-url", server.url, "--model", "task", "--proposer", PROPOSER),
        *(part for setting in settings for part in ("--set", setting)),
        *more,
    ]


def environment(folder: Path, home: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AGL_", "OPENAI_"))}
    return {**kept, "AGL_HOME": str(folder / home), "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def start(folder: Path, home: str, arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agentlightning.cli.main", *arguments],
        cwd=folder,
        env=environment(folder, home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def agl(folder: Path, home: str, arguments: list[str], *, code: int = 0) -> str:
    process = start(folder, home, arguments)
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, f"{out}\n{err}"
    return out if code == 0 else err


def asked(server: ScriptedModel) -> Counter[str]:
    return Counter(json.dumps(body["messages"]) for body in server.bodies)


@pytest.mark.slow
def test_it_finds_a_better_prompt_and_shows_where_it_came_from(folder: Path, server: ScriptedModel) -> None:
    out = agl(folder, "home", command(server, "--out", "best.json", "--price", "task=1/1", "--price", "proposer=1/1"))
    assert "rule" in out
    assert "test (held out, n=12): " in out
    assert "USD" in out
    assert "round 1/4  best" in out
    best = json.loads((folder / "best.json").read_text())
    assert best["spent"]["calls"] == server.total
    run = best["run_id"]
    tree = agl(folder, "home", ["lineage", run, "--picture", "tree.png"])
    assert f"★ {best['best']['id']}" in tree
    assert "The prompt lacks rule" in tree
    assert (folder / "tree.png").read_bytes().startswith(b"\x89PNG")
    nodes = json.loads(agl(folder, "home", ["lineage", run[:12], "--json"]))["nodes"]
    assert best["best"]["id"] in nodes
    shown = agl(folder, "home", ["lineage", run, "--candidate", best["best"]["id"]])
    assert "+Answer the question {question}." in shown.replace("\n", "")
    assert "no optimisation 'other'" in agl(folder, "home", ["lineage", "other"], code=1)
    paid = server.total
    again = json.loads(agl(folder, "home", command(server, "--json", "--budget-calls", "9999")))
    assert again["best"] == best["best"]
    assert server.total == paid
    continued = [
        "--prompt",
        "best.json",
        "--optimizer",
        "edit",
        "--set",
        "rounds=1",
        "--fresh",
        "--flat-start",
        "--json",
    ]
    more = json.loads(agl(folder, "home", [*command(server)[:4], *command(server)[8:14], *continued]))
    assert more["start"]["prompts"] == best["best"]["prompts"]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_pays_for_nothing_twice(folder: Path, server: ScriptedModel) -> None:
    whole = json.loads(agl(folder, "whole", command(server, "--json")))
    calls = server.total
    server.bodies.clear()
    kills = 0
    for share in (0.15, 0.4, 0.6, 0.85):
        process = start(folder, "cut", command(server, "--json"))
        until = time.monotonic() + 120
        while len(asked(server)) < share * calls and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        time.sleep(0.2)  # what is in flight is counted
    cut = json.loads(agl(folder, "cut", command(server, "--json")))
    assert cut["best"] == whole["best"]
    assert cut["comparisons"] == whole["comparisons"]
    assert cut["spent"]["calls"] == whole["spent"]["calls"]
    # Repeated is at most what was in flight, or answered and not recorded yet, when the process died.
    assert len(server.bodies) - calls <= kills * 8
    assert max(asked(server).values()) <= 1 + kills


def test_rewards_and_prompts_by_name(folder: Path, server: ScriptedModel) -> None:
    (folder / "prompt.txt").write_text("Tell me {question}\n")
    arguments = command(server, "--reward", "exact", "--prompt", "prompt.txt", "--json", "--set", "beam_rounds=1")
    arguments[1] = "agent.py:plain"
    found: dict[str, Any] = json.loads(agl(folder, "home", arguments))
    assert found["start"]["prompts"]["prompt_template"]["template"] == "Tell me {question}"
    assert 0 < found["comparisons"][0]["before"] < 0.5


def test_an_evaluation_takes_the_agents_own_prompt_or_another(folder: Path, server: ScriptedModel) -> None:
    (folder / "better.txt").write_text(f"{SEED} Use rule alpha.")
    shown: list[float] = []
    for agent, more in (
        ("solve", []),
        ("solve", ["--prompt", "better.txt"]),
        ("plain", ["--evaluator", "score.py:same"]),
    ):
        (folder / "score.py").write_text("def same(task, output):\n    return float(output == task['expected'])\n")
        given = ["eval", "--agent", f"agent.py:{agent}", "--data", "tasks.jsonl", "--limit", "12", "--json"]
        done = start(folder, "home", [*given, "--base-url", server.url, "--model", "task", *more])
        told, errors = done.communicate(timeout=100)
        assert done.returncode == 0, errors
        shown.append(json.loads(told)["accuracy"])
    assert shown == [0.25, 0.5, 0.25]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "gone.jsonl"], "no file gone.jsonl"),
        (["--data", "one.jsonl"], "1 different task"),
        (["--prompt", "gone.txt"], "no prompt file"),
        (["--price", "x"], "is no price"),
        (["--reward", "exatc"], "no reward 'exatc'"),
        (["--optimizer", "genetic"], "no algorithm 'genetic'"),
        (["--set", "beam=3"], "beam"),
        (["--prompt", "tasks.json"], "no result of agl optimize"),
    ],
)
def test_wrong_input_is_named(folder: Path, server: ScriptedModel, arguments: list[str], message: str) -> None:
    (folder / "one.jsonl").write_text(json.dumps(tasks(1)[0]))
    (folder / "tasks.json").write_text("[]")
    assert message in agl(folder, "home", command(server, *arguments), code=1)
    assert server.total == 0
