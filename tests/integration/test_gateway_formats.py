"""Structured answers and forced tool calls through the official clients, from the embedded model."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, Literal

import anthropic
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from agentlightning import nano
from agentlightning.gateway import EngineUpstream
from agentlightning.gateway.upstream.engine import CONSTRAINED
from agentlightning.learner.client import EngineClient
from tests.unit.gateway.rig import Rig, running_rig

pytestmark = pytest.mark.asyncio(loop_scope="module")
MESSAGES: Any = [{"role": "user", "content": "How many cars are from Japan?"}]


class Verdict(BaseModel):
    """What the answer has to be."""

    label: Literal["good", "bad"]
    points: list[bool]
    sure: bool


PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
OTHER: Any = {"type": "function", "function": {"name": "other", "parameters": PARAMETERS}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncGenerator[EngineClient]:
    async with await EngineClient.start(str(nano.model_path()), threads=1, device="cpu") as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def rig(engine: EngineClient) -> AsyncGenerator[Rig]:
    async with running_rig([EngineUpstream(engine)]) as rig:
        yield rig


@pytest.mark.slow
async def test_a_pydantic_model_comes_back_parsed_and_is_labelled(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        for seed in range(3):
            answer = await client.chat.completions.parse(
                model="default", messages=MESSAGES, response_format=Verdict, seed=seed, max_tokens=300
            )
            assert isinstance(answer.choices[0].message.parsed, Verdict)
        async with client.chat.completions.stream(
            model="default", messages=MESSAGES, response_format=Verdict, seed=5, max_tokens=300
        ) as stream:
            final = await stream.get_final_completion()
        assert isinstance(final.choices[0].message.parsed, Verdict)
        await client.chat.completions.create(model="default", messages=MESSAGES, max_tokens=5)
    calls = await rig.calls(rollout)
    assert [call.not_trainable_because for call in calls] == [CONSTRAINED] * 4 + [None]
    assert all(call.response_token_ids and call.response_logprobs for call in calls)


@pytest.mark.slow
async def test_the_responses_api_gives_structured_output(rig: Rig) -> None:
    async with rig.client() as client:
        answer = await client.responses.parse(model="default", input="?", text_format=Verdict, max_output_tokens=300)
    assert isinstance(answer.output_parsed, Verdict)


async def test_an_answer_that_is_cut_ends_for_its_length(rig: Rig) -> None:
    async with rig.client() as client:
        with pytest.raises(openai.LengthFinishReasonError):
            await client.chat.completions.parse(
                model="default", messages=MESSAGES, response_format=Verdict, max_tokens=2
            )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_forced_tool_is_called(rig: Rig, stream: bool) -> None:
    async with rig.client() as client:
        for choice, names in (
            ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
            ("required", {"weather", "other"}),
        ):
            answer = await client.chat.completions.create(
                model="default", messages=MESSAGES, tools=[WEATHER, OTHER], tool_choice=choice,
                parallel_tool_calls=False, stream=stream,
            )  # fmt: skip
            if stream:
                chunks = [chunk.choices[0] async for chunk in answer if chunk.choices]
                [call] = [c for chunk in chunks for c in chunk.delta.tool_calls or ()]
                assert chunks[-1].finish_reason == "tool_calls"
            else:
                [call] = answer.choices[0].message.tool_calls
                assert answer.choices[0].finish_reason == "tool_calls"
            assert call.function.name in names
            arguments = json.loads(call.function.arguments)
            assert arguments["city"] in ("Paris", "Rome")
            assert 1 <= arguments["days"] <= 9


async def test_anthropics_client_forces_a_tool(rig: Rig) -> None:
    tool: Any = {"name": "weather", "input_schema": PARAMETERS}
    async with anthropic.AsyncAnthropic(base_url=rig.gateway.url, api_key="any") as client:
        choices: Any = ({"type": "any"}, {"type": "tool", "name": "weather"})
        for choice in choices:
            answer = await client.messages.create(
                model="default",
                max_tokens=200,
                messages=MESSAGES,
                tools=[tool],
                tool_choice=choice,
            )
            block = answer.content[0]
            assert block.type == "tool_use"
            assert block.input["city"] in ("Paris", "Rome")
            assert answer.stop_reason == "tool_use"


async def test_a_schema_that_cannot_be_enforced_is_a_400_that_says_why(rig: Rig) -> None:
    schema = {"name": "n", "schema": {"type": "array", "uniqueItems": True}}
    async with rig.client() as client:
        with pytest.raises(openai.BadRequestError, match="uniqueItems"):
            await client.chat.completions.create(
                model="default", messages=MESSAGES, response_format={"type": "json_schema", "json_schema": schema}
            )


@pytest.mark.parametrize("number", [2**53 + 1, 2**64 + 1])
async def test_a_number_that_would_become_its_neighbour_is_a_400_that_names_its_place(rig: Rig, number: int) -> None:
    schema = {"name": "n", "schema": {"type": "object", "properties": {"id": {"enum": [7, number]}}}}
    async with rig.client() as client:
        with pytest.raises(openai.BadRequestError, match=r"2\^53 at /properties/id/enum/1 of the JSON schema"):
            await client.chat.completions.create(
                model="default", messages=MESSAGES, response_format={"type": "json_schema", "json_schema": schema}
            )
