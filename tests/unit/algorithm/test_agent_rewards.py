"""An agent's evaluation set as tasks and reward."""

import json

import pytest

from agentlightning.algorithm.agent_rewards import AgentReward, tasks_of
from agentlightning.algorithm.rewards.base import FunctionReward
from agentlightning.platform.agents.shipped import shipped


async def test_cases_are_tasks_that_survive_json_and_their_references_are_right():
    definition = shipped("review_agent")
    reward = AgentReward(definition)
    tasks = json.loads(json.dumps(tasks_of(definition, "train")))
    assert {task["input"] for task in tasks}.isdisjoint(task["input"] for task in tasks_of(definition, "held_out"))
    for task in tasks:
        assert await reward(task, task["case"]["reference"]) == 1.0
        assert await reward(task, {"output": task["case"]["reference"], "tools_used": ["files"]}) == 1.0
        assert (await reward(task, task["case"]["wrong"]) or 0.0) < 1.0
    assert await reward(tasks[0], None) is None


async def test_what_cannot_be_told_is_no_reward_and_rewards_add_up():
    definition = shipped("code_agent")
    task = tasks_of(definition, "train")[0]
    assert await AgentReward(definition)(task, "```python\npass\n```") is None
    short = FunctionReward(lambda output: float(len(output) < 10))
    finance = shipped("finance_agent")
    both = 0.5 * AgentReward(finance) + 0.5 * short
    assert await both(tasks_of(finance, "train")[0], "Answer: 1") == pytest.approx(0.5)
