"""Agents that are not Python: Node.js with and without packages, and a shell script, each a process per task."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.agent.loading import load_object
from agentlightning.nano.chat import read_schema
from tests.integration.frameworks.lab import ROOT, Lab, sql_tasks, train_nano

pytestmark = pytest.mark.xdist_group("frameworks")
FOLDER = ROOT / "examples" / "other_languages"
SCORE = f"{FOLDER / 'score.py'}:score"
AGENTS = {
    "shell": (["sh", "agent.sh"], "chat.completions", False),
    "node-fetch": (["node", "fetch_agent.mjs"], "chat.completions", False),
    "node-openai": (["node", "openai_agent.mjs"], "chat.completions", True),
    "node-ai-sdk": (["node", "ai_sdk_agent.mjs"], "responses", True),
}
"""Command, the API it speaks, whether it streams (those two need packages)."""


def command_of(name: str) -> list[str]:
    words, _, needs_packages = AGENTS[name]
    for program in ("node",) if words[0] == "node" else ("curl", "jq"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if needs_packages and not (FOLDER / "node_modules" / "openai").exists():
        pytest.skip("the npm packages are not installed; `make frameworks` does it")
    return words


def tasks(folder: Path, n: int) -> list[dict[str, Any]]:
    found = sql_tasks(folder, n)
    for task in found:
        with closing(sqlite3.connect(task["database"])) as connection:
            task["schema"] = read_schema(connection)
    return found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", AGENTS)
async def test_an_agent_of_another_language_is_captured_untouched(lab: Lab, tmp_path: Path, name: str) -> None:
    _, api, streams = AGENTS[name]
    reward = "exit-code" if name == "node-fetch" else load_object(SCORE)
    agent = agl.CommandAgent(command_of(name), reward=reward, cwd=FOLDER, timeout_s=60)
    ids = await lab.enqueue(tasks(tmp_path, 3))
    await lab.run(agent, ids)
    calls = await lab.check(ids)
    assert any(call.output.get("tool_calls") for call in calls)
    for rollout_id in ids:
        spans = [
            span for span in await lab.store.query_spans(rollout_id) if "agentlightning.call.api" in span.attributes
        ]
        assert {span.attributes["agentlightning.call.api"] for span in spans} == {api}
        assert {span.attributes["agentlightning.call.streamed"] for span in spans} == {streams}
        assert len(spans) > 1 or not streams


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shell", "node-openai"])
def test_a_model_is_trained_through_it(tmp_path: Path, name: str) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(json.dumps(task) for task in tasks(tmp_path, 4)))
    words = [*command_of(name)[:-1], str(FOLDER / command_of(name)[-1])]
    steps, run = train_nano(tmp_path, "--command", " ".join(words), "--evaluator", SCORE, "--data", str(data))
    for step in steps:
        assert step["calls"] >= 16
        assert step["rollouts_without_reward"] == 0
        assert step["tokens_trained"] > 0
    assert (run / "model" / "model.safetensors").exists()
