"""AutoGen's OpenAI client against the gateway: whole, streamed, tools, JSON, and a team. Runs where AutoGen is:
`make frameworks` builds that environment, `make test-all` runs this file there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pydantic import BaseModel

from tests.integration.frameworks.lab import close_clients
from tests.unit.gateway.fronted import fronted
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import completion, reply

pytest.importorskip("autogen_agentchat", reason="AutoGen is not installed; `make frameworks` does it")

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ModelFamily, ModelInfo, SystemMessage, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

ABILITIES = ModelInfo(
    vision=True, function_calling=True, json_output=True, structured_output=True, family=ModelFamily.UNKNOWN
)


class Car(BaseModel):
    name: str
    wheels: int


async def sql(query: str) -> str:
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


def model(rig: Rig, rollout: Any) -> Any:
    return OpenAIChatCompletionClient(
        model="default", base_url=rig.base_url(rollout), api_key="any", model_info=ABILITIES, max_retries=0
    )


def ask(text: str) -> list[Any]:
    return [SystemMessage(content="be brief"), UserMessage(content=text, source="user")]


async def test_answers_come_whole_and_streamed(rig: Rig) -> None:
    rollout = await rig.rollout()
    client = model(rig, rollout)
    whole = await client.create(ask("hi you"))
    *pieces, last = [piece async for piece in client.create_stream(ask("hi you"))]
    await client.close()
    assert whole.content == last.content == "".join(pieces) == "echo 0 None hi you"
    assert len(pieces) > 1
    assert (whole.finish_reason, whole.usage.completion_tokens) == ("stop", 5)
    calls = await rig.calls(rollout)
    assert [call.trainable for call in calls] == [True, True]


@pytest.mark.parametrize("streams", [False, True])
async def test_an_agent_uses_its_tool(rig: Rig, streams: bool) -> None:
    rollout = await rig.rollout()
    client = model(rig, rollout)
    agent = AssistantAgent("one", client, tools=[sql], max_tool_iterations=3, model_client_stream=streams)
    result = await agent.run(task="use the tool")
    await client.close()
    assert "SELECT 1" in str(result.messages[-1])
    first, second = await rig.calls(rollout)
    assert first.output["tool_calls"][0]["function"]["name"] == "sql"
    assert second.messages[-1]["role"] == "tool"


async def test_a_team_stays_on_one_rollout(rig: Rig) -> None:
    rollout = await rig.rollout()
    client = model(rig, rollout)
    members: Any = [AssistantAgent(name, client) for name in ("one", "two")]
    await RoundRobinGroupChat(members, termination_condition=MaxMessageTermination(4)).run(task="hi you")
    await client.close()
    calls = await rig.calls(rollout)
    assert len(calls) == 3
    assert all(call.trainable for call in calls)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydantic and of the model's name
async def test_a_structured_answer_is_asked_for() -> None:
    async def car(request: Any, body: dict[str, Any]) -> Any:
        answer = completion(body)
        answer["choices"][0]["message"]["content"] = '{"name": "Fiat", "wheels": 4}'
        return reply(answer)

    async with fronted() as (rig, server):
        server.script.append(car)
        client = model(rig, await rig.rollout())
        result = await client.create(ask("a car"), json_output=Car)
        await client.close()
        assert Car.model_validate_json(result.content) == Car(name="Fiat", wheels=4)
        assert server.bodies[0]["response_format"]["json_schema"]["name"] == "Car"
