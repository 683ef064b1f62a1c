"""Agents of five frameworks that know nothing of us, with the real libraries, in front of the real engine."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

import agentlightning as agl
from agentlightning.agent.loading import load_object
from tests.integration.frameworks.lab import EXAMPLES, FRAMEWORKS, ROOT, Lab, sql_tasks, train_nano

pytestmark = pytest.mark.xdist_group("frameworks")
SCORE = f"{EXAMPLES / 'score.py'}:score"
N_PROGRAMS, N_IN_PROCESS = 2, 8
EACH = [pytest.param(name, marks=pytest.mark.slow if name == "crewai" else ()) for name in FRAMEWORKS]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", EACH)
async def test_a_program_that_knows_only_a_base_url_is_captured(lab: Lab, tmp_path: Path, name: str) -> None:
    framework = FRAMEWORKS[name]
    words = [framework.python(), str(EXAMPLES / framework.file), "--database", "{database}", "{question}"]
    env = {**lab.client_env(), **framework.env}
    del env["OPENAI_BASE_URL"], env["OPENAI_MODEL"]  # the runner sets them, to the rollout's own
    agent = agl.CommandAgent(words, reward=load_object(SCORE), env=env, timeout_s=90)
    asked_for_tools = False
    for _ in range(4):  # an untrained model answers at once now and then
        ids = await lab.enqueue(sql_tasks(tmp_path, N_PROGRAMS))
        await lab.run(agent, ids)
        calls = await lab.check(ids, keeps_history=framework.keeps_history)
        asked_for_tools = any(call.output.get("tool_calls") for call in calls)
        if asked_for_tools:
            break
    assert asked_for_tools


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", EACH)
@pytest.mark.slow
async def test_many_rollouts_in_one_process_do_not_mix(lab: Lab, tmp_path: Path, name: str) -> None:
    framework = FRAMEWORKS[name]
    ids = await lab.enqueue(sql_tasks(tmp_path, N_IN_PROCESS))
    process = await asyncio.create_subprocess_exec(
        framework.python(),
        str(Path(__file__).with_name("remote_runner.py")),
        lab.url,
        f"{EXAMPLES / framework.file}:answer",
        SCORE,
        str(N_IN_PROCESS),
        env={**os.environ, **lab.client_env(), **framework.env, "PYTHONPATH": str(ROOT / "src")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, output.decode()[-4000:]
    calls = await lab.check(ids, keeps_history=framework.keeps_history)
    assert any(call.output.get("tool_calls") for call in calls)
    assert lab.gateway.stats()["unattributed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["langchain", "openai-agents-responses"])
def test_a_model_is_trained_through_it(tmp_path: Path, name: str) -> None:
    framework = FRAMEWORKS[name]
    framework.python()
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(json.dumps(task) for task in sql_tasks(tmp_path, 4)))
    agent = f"{EXAMPLES / framework.file}:answer"
    steps, _ = train_nano(tmp_path, "--agent", agent, "--evaluator", SCORE, "--data", str(data))
    for step in steps:
        assert step["calls"] > 16  # several turns
        assert (step["rollouts_without_reward"], step["rollouts_not_trainable"]) == (0, 0)
        assert step["tokens_trained"] > 0
