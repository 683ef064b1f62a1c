"""CrewAI against the gateway: its own OpenAI client whole and streamed, a crew of two, a tool. Runs where CrewAI is:
`make frameworks` builds that environment, `make test-all` runs this file there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.integration.frameworks.lab import close_clients
from tests.unit.gateway.rig import Rig, running_rig

os.environ.update({"CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false"})
pytest.importorskip("crewai", reason="CrewAI is not installed; `make frameworks` does it")

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@tool("sql")
def sql(query: str) -> str:
    """Run one query."""
    return f"1 row: {query}"


@pytest.fixture(autouse=True)
async def closed_clients() -> AsyncGenerator[None]:
    yield
    await close_clients()


@pytest.fixture
async def rig() -> AsyncGenerator[Rig]:
    async with running_rig() as rig:
        yield rig


def model(rig: Rig, rollout: Any, **options: Any) -> LLM:
    return LLM(model="default", provider="openai", base_url=rig.base_url(rollout), api_key="any", **options)


@pytest.mark.parametrize("streams", [False, True])
async def test_its_client_is_answered_and_recorded(rig: Rig, streams: bool) -> None:
    rollout = await rig.rollout()
    llm = model(rig, rollout, stream=streams, temperature=0.5)
    assert await asyncio.to_thread(llm.call, "hi you") == "echo 0 None hi you"
    [call] = await rig.calls(rollout)
    assert (call.trainable, call.temperature) == (True, 0.5)


async def test_a_crew_of_two_stays_on_one_rollout(rig: Rig) -> None:
    rollout = await rig.rollout()
    llm = model(rig, rollout)
    members = [Agent(role=name, goal="help", backstory="old", llm=llm, max_iter=2) for name in ("one", "two")]
    tasks = [Task(description=f"task of {m.role}", expected_output="text", agent=m) for m in members]
    result = await Crew(agents=members, tasks=tasks).kickoff_async()
    calls = await rig.calls(rollout)
    assert len(calls) == 2
    assert all(call.trainable for call in calls)
    assert "task of one" in str(calls[0].messages)
    assert "task of two" in str(calls[1].messages)
    assert result.raw


async def test_its_tool_is_called(rig: Rig) -> None:
    rollout = await rig.rollout()
    answer = await asyncio.to_thread(
        model(rig, rollout).call,
        [{"role": "user", "content": "use the tool"}],
        tools=[{"type": "function", "function": {"name": "sql", "parameters": {"type": "object", "properties": {}}}}],
        available_functions={"sql": lambda query: f"1 row: {query}"},
    )
    assert answer == "1 row: SELECT 1"
    assert (await rig.calls(rollout))[0].output["tool_calls"]
