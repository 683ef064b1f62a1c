"""LangChain's model classes against the gateway: each way of calling a model arrives, answers and is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from tests.integration.frameworks.lab import close_clients
from tests.unit.gateway.fronted import fronted
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import TOOL_CALL, completion, reply

pytest.importorskip("langchain_openai", reason="LangChain is not installed; pip install 'agentlightning[frameworks]'")

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI


class Car(BaseModel):
    """A car."""

    name: str
    wheels: int


CAR = {"name": "Fiat", "wheels": 4}


@tool
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


def chat(rig: Rig, rollout: Any, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="default", base_url=rig.base_url(rollout), api_key="any", max_retries=0, **options)


async def test_every_way_of_asking_is_recorded(rig: Rig) -> None:
    rollout = await rig.rollout()
    model = chat(rig, rollout, temperature=0.5, seed=3)
    answers = [
        (await asyncio.to_thread(model.invoke, "hi you")).content,
        (await model.ainvoke([("system", "be brief"), ("user", "hi you")])).content,
        "".join(await asyncio.to_thread(lambda: [chunk.text for chunk in model.stream("hi you")])),
        "".join([chunk.text async for chunk in model.astream("hi you")]),
        *[answer.content for answer in await model.abatch(["hi you", "hi you"])],
    ]
    assert answers == ["echo 0 3 hi you"] * 6
    calls = await rig.calls(rollout)
    assert [call.output["content"] for call in calls] == answers
    assert all(call.trainable and call.temperature == 0.5 for call in calls)
    assert [request.params.seed for request in rig.engine.requests] == [3] * 6


async def test_streamed_usage_and_logprobs_come_when_asked_for(rig: Rig) -> None:
    model = chat(rig, await rig.rollout(), stream_usage=True, logprobs=True)
    chunks = [chunk async for chunk in model.astream("hi you")]
    [usage] = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert usage["output_tokens"] == 5
    whole = await model.ainvoke("hi you")
    assert len(whole.response_metadata["logprobs"]["content"]) == 5


async def test_tools_are_called_whole_and_streamed(rig: Rig) -> None:
    rollout = await rig.rollout()
    model = chat(rig, rollout).bind_tools([sql], parallel_tool_calls=True)
    whole = await model.ainvoke("use the tool")
    streamed: Any = None
    async for chunk in model.astream("use the tool"):
        streamed = chunk if streamed is None else streamed + chunk
    for message in (whole, streamed):
        [call] = message.tool_calls
        assert (call["name"], call["args"], call["id"]) == ("sql", {"query": "SELECT 1"}, "call_1")
    assert [call.output["tool_calls"] for call in await rig.calls(rollout)] == [[TOOL_CALL]] * 2


async def test_the_responses_api_serves_it_too(rig: Rig) -> None:
    rollout = await rig.rollout()
    model = chat(rig, rollout, use_responses_api=True)
    assert (await model.ainvoke("hi you")).text == "echo 0 None hi you"
    assert "".join([chunk.text async for chunk in model.astream("hi you")]) == "echo 0 None hi you"
    [call] = (await model.bind_tools([sql]).ainvoke("use the tool")).tool_calls
    assert (call["name"], call["args"]) == ("sql", {"query": "SELECT 1"})
    spans = await rig.spans(rollout)
    assert [span.attributes["agentlightning.call.api"] for span in spans] == ["responses"] * 3


async def test_anthropics_classes_reach_the_same_model(rig: Rig) -> None:
    rollout = await rig.rollout()
    model: Any = ChatAnthropic(
        model_name="default", base_url=rig.base_url(rollout).removesuffix("/v1"), api_key="any", max_retries=0
    )
    assert (await model.ainvoke([("system", "be brief"), ("user", "hi you")])).content == "echo 0 None hi you"
    assert "".join([chunk.text async for chunk in model.astream("hi you")]) == "echo 0 None hi you"
    [call] = (await model.bind_tools([sql]).ainvoke("use the tool")).tool_calls
    assert (call["name"], call["args"]) == ("sql", {"query": "SELECT 1"})
    calls = await rig.calls(rollout)
    assert len(calls) == 3
    assert all(call.trainable for call in calls)


async def test_text_completions_work(rig: Rig) -> None:
    rollout = await rig.rollout()
    model = OpenAI(model="default", base_url=rig.base_url(rollout), api_key="any", max_retries=0)
    assert (await model.ainvoke("hi you")).startswith("echo")
    assert len(await rig.calls(rollout)) == 1


async def test_an_agent_loops_over_its_tool(rig: Rig) -> None:
    rollout = await rig.rollout()
    agent: Any = create_agent(chat(rig, rollout), tools=[sql], system_prompt="be brief")
    state = await agent.ainvoke({"messages": [("user", "use the tool")]})
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"]
    assert state["messages"][-1].content == "echo 0 None 1 row: SELECT 1"
    first, second = await rig.calls(rollout)
    assert first.output["tool_calls"] == [TOOL_CALL]
    assert [message["role"] for message in second.messages] == ["system", "user", "assistant", "tool"]


def says(message: dict[str, Any]) -> Any:
    async def answer(request: Request, body: dict[str, Any]) -> Response:
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        answer = completion(body)
        answer["choices"][0] |= {"message": {"role": "assistant", "content": None} | message, "finish_reason": finish}
        return reply(answer)

    return answer


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_structured_output_is_asked_for_as_the_server_knows_it(method: str) -> None:
    text = '{"name": "Fiat", "wheels": 4}'
    call = {"id": "c", "type": "function", "function": {"name": "Car", "arguments": text}}
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        server.script.append(says({"tool_calls": [call]} if method == "function_calling" else {"content": text}))
        model: Any = chat(rig, rollout).with_structured_output(Car, method=method)
        assert (await model.ainvoke("a car, as JSON")).model_dump() == CAR
        [body] = server.bodies
        _check_wish(method, body)
        [recorded] = await rig.calls(rollout)
        assert recorded.trainable
        assert text in str(recorded.output.get("content") or recorded.output["tool_calls"])


def _check_wish(method: str, body: dict[str, Any]) -> None:
    if method == "function_calling":
        assert body["tool_choice"]["function"]["name"] == "Car"
        assert body["parallel_tool_calls"] is False
    elif method == "json_schema":
        assert body["response_format"]["json_schema"]["strict"] is True
    else:
        assert body["response_format"] == {"type": "json_object"}


async def test_images_go_through_to_the_server() -> None:
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
        await chat(rig, rollout).ainvoke([("user", [{"type": "text", "text": "what is it?"}, image])])
        assert server.bodies[0]["messages"][0]["content"][1] == image
