"""The OpenAI Agents SDK against the gateway: both its model classes, streamed and not, tools, handoffs, schemas."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from agentlightning.agent.adapter import merge_calls
from tests.integration.frameworks.lab import close_clients
from tests.unit.gateway.fronted import fronted
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import ScriptedOpenAIServer, completion, reply

pytest.importorskip("agents", reason="openai-agents is not installed; pip install 'agentlightning[frameworks]'")

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)

MODELS = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
EACH = pytest.mark.parametrize("kind", MODELS)
UNTRACED = RunConfig(tracing_disabled=True)


class Car(BaseModel):
    name: str
    wheels: int


@function_tool
def sql(query: str) -> str:
    """Run one query."""
    return f"1 row: {query}"


@pytest.fixture(autouse=True)
async def closed_clients() -> AsyncGenerator[None]:
    yield
    await close_clients()


@pytest.fixture
async def rig() -> AsyncGenerator[Rig]:
    """In front of a scripted engine."""
    async with running_rig() as rig:
        yield rig


def agent(rig: Rig, rollout: Any, kind: str, **options: Any) -> Agent[Any]:
    client = openai.AsyncOpenAI(base_url=rig.base_url(rollout), api_key="any", max_retries=0)
    model: Any = MODELS[kind](model="default", openai_client=client)
    return Agent(**{"name": "one", "instructions": "be brief", "model": model, **options})


@EACH
async def test_a_run_is_answered_and_recorded(rig: Rig, kind: str) -> None:
    rollout = await rig.rollout()
    settings = ModelSettings(temperature=0.5, max_tokens=20, store=False, metadata={"a": "b"}, parallel_tool_calls=True)
    one = agent(rig, rollout, kind, model_settings=settings, tools=[sql])
    result = await Runner.run(one, "hi you", run_config=UNTRACED)
    assert result.final_output == "echo 0 None hi you"
    [call] = await rig.calls(rollout)
    assert (call.trainable, call.temperature) == (True, 0.5)
    assert [message["role"] for message in call.messages] == ["system", "user"]
    [request] = rig.engine.requests
    assert request.params.max_tokens == 20


@EACH
@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_go_round(rig: Rig, kind: str, streamed: bool) -> None:
    rollout = await rig.rollout()
    one = agent(rig, rollout, kind, tools=[sql], model_settings=ModelSettings(include_usage=True))
    if streamed:
        result: Any = Runner.run_streamed(one, "use the tool", run_config=UNTRACED)
        events = [event async for event in result.stream_events()]
        deltas = [e.data for e in events if e.type == "raw_response_event" and e.data.type.endswith("text.delta")]
        assert "".join(delta.delta for delta in deltas) == "echo 0 None 1 row: SELECT 1"
        items = [event.name for event in events if event.type == "run_item_stream_event"]
        assert items == ["tool_called", "tool_output", "message_output_created"]
    else:
        result = await Runner.run(one, "use the tool", run_config=UNTRACED)
    assert result.final_output == "echo 0 None 1 row: SELECT 1"
    assert result.context_wrapper.usage.requests == 2
    assert result.context_wrapper.usage.output_tokens == 5 + 7
    first, second = await rig.calls(rollout)
    assert first.output["tool_calls"][0]["function"]["arguments"] == '{"query": "SELECT 1"}'
    assert [message["role"] for message in second.messages] == ["system", "user", "assistant", "tool"]
    assert second.messages[2]["tool_calls"] == first.output["tool_calls"]


def script(server: ScriptedOpenAIServer, *messages: dict[str, Any]) -> None:
    """What the server says, in this order."""

    def says(message: dict[str, Any]) -> Any:
        async def answer(request: Request, body: dict[str, Any]) -> Response:
            answer = completion(body)
            finish = "tool_calls" if message.get("tool_calls") else "stop"
            whole = {"role": "assistant", "content": None} | message
            answer["choices"][0] |= {"message": whole, "finish_reason": finish}
            return reply(answer)

        return answer

    server.script += [says(message) for message in messages]


def calls_function(name: str, arguments: str = "{}", call_id: str = "c1") -> dict[str, Any]:
    return {"tool_calls": [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}]}


@EACH
async def test_a_handoff_lands_on_the_same_rollout(kind: str) -> None:
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        clerk = agent(rig, rollout, kind, name="clerk", instructions="you are the clerk")
        desk = agent(rig, rollout, kind, name="desk", handoffs=[clerk])
        script(server, calls_function("transfer_to_clerk"), {"content": "done by the clerk"})
        result = await Runner.run(desk, "help", run_config=UNTRACED)
        assert (result.final_output, result.last_agent.name) == ("done by the clerk", "clerk")
        first, second = await rig.calls(rollout)
        assert first.tools[0]["function"]["name"] == "transfer_to_clerk"
        assert second.messages[0] == {"role": "system", "content": "you are the clerk"}
        assert len(merge_calls([first, second])) >= 1


@EACH
async def test_an_output_type_becomes_a_json_schema(kind: str) -> None:
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        script(server, {"content": '{"name": "Fiat", "wheels": 4}'})
        one = agent(rig, rollout, kind, output_type=Car)
        result = await Runner.run(one, "a car", run_config=UNTRACED)
        assert result.final_output == Car(name="Fiat", wheels=4)
        wish = server.bodies[0]["response_format"]
        assert (wish["type"], wish["json_schema"]["strict"]) == ("json_schema", True)
        assert set(wish["json_schema"]["schema"]["properties"]) == {"name", "wheels"}


@EACH
async def test_parallel_calls_and_a_forced_choice_go_through(kind: str) -> None:
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        both = calls_function("sql", '{"query": "A"}', "c1")["tool_calls"]
        both += calls_function("sql", '{"query": "B"}', "c2")["tool_calls"]
        script(server, {"tool_calls": both}, {"content": "done"})
        one = agent(rig, rollout, kind, tools=[sql], model_settings=ModelSettings(tool_choice="sql"))
        result = await Runner.run(one, "both", run_config=UNTRACED)
        assert result.final_output == "done"
        assert server.bodies[0]["tool_choice"] == {"type": "function", "function": {"name": "sql"}}
        answers = [message for message in server.bodies[1]["messages"] if message["role"] == "tool"]
        assert [(m["tool_call_id"], m["content"]) for m in answers] == [("c1", "1 row: A"), ("c2", "1 row: B")]
        [asking] = [message for message in server.bodies[1]["messages"] if message["role"] == "assistant"]
        assert len(asking["tool_calls"]) == 2


async def test_a_conversation_continues_from_the_record(rig: Rig) -> None:
    rollout = await rig.rollout()
    one = agent(rig, rollout, "responses")
    first = await Runner.run(one, "hi you", run_config=UNTRACED)
    second = await Runner.run(one, "and me", previous_response_id=first.last_response_id, run_config=UNTRACED)
    assert second.final_output == "echo 0 None and me"
    _, last = await rig.calls(rollout)
    assert [message["role"] for message in last.messages] == ["system", "user", "assistant", "user"]
