"""The gateway in front of the real engine: what is recorded is what the engine sampled, token for token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from agentlightning.gateway import EngineUpstream
from agentlightning.learner.client import EngineClient
from agentlightning.schemas import GenerateRequest, SamplingParams
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.learner.tiny import save_model

MESSAGES = [{"role": "user", "content": "how many rows are there"}]
pytestmark = pytest.mark.asyncio(loop_scope="module")  # loading torch once is enough
TOOL = {"type": "function", "function": {"name": "sql", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_path: Path) -> AsyncGenerator[EngineClient]:
    async with await EngineClient.start(str(model_path), threads=1, device="cpu") as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def rig(engine: EngineClient) -> AsyncGenerator[Rig]:
    async with running_rig([EngineUpstream(engine)]) as rig:
        yield rig


async def ask(rig: Rig, rollout: Any, **arguments: Any) -> Any:
    async with rig.client(rollout) as client:
        return await client.chat.completions.create(model="default", messages=MESSAGES, **arguments)


async def test_the_record_is_what_the_engine_sampled(rig: Rig, engine: EngineClient) -> None:
    rollout = await rig.rollout()
    whole = await ask(rig, rollout, tools=[TOOL], temperature=0.8, max_tokens=12, seed=5, n=2)
    async with rig.client(rollout) as client:
        stream = await client.chat.completions.create(
            model="default", messages=MESSAGES, tools=[TOOL], temperature=0.8, max_tokens=12, seed=5, n=2, stream=True
        )
        texts = ["", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    params = SamplingParams(temperature=0.8, max_tokens=12, seed=5, n=2)
    direct = await engine.generate(GenerateRequest(messages=MESSAGES, tools=[TOOL], params=params))
    calls = await rig.calls(rollout)
    assert [call.choice for call in calls] == [0, 1, 0, 1]
    for call in calls:
        expected = direct.choices[call.choice]
        assert call.prompt_token_ids == direct.prompt_token_ids
        assert call.response_token_ids == expected.token_ids
        assert call.response_logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert call.trainable
        assert call.model_version == engine.info.model_version
    assert [choice.message.content or "" for choice in whole.choices] == texts
    assert whole.usage.completion_tokens == sum(len(choice.token_ids) for choice in direct.choices)


async def test_a_prompt_that_is_too_long_is_openais_error(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="context") as caught:
                await client.chat.completions.create(
                    model="default", messages=[{"role": "user", "content": "hello world " * 500}], stream=stream
                )
            assert caught.value.code == "context_length_exceeded"


async def test_many_calls_at_once_are_recorded_each_on_its_rollout(rig: Rig) -> None:
    rollouts = [await rig.rollout() for _ in range(16)]
    rig.gateway.sampling.register([r.rollout_id for r in rollouts], {"max_tokens": 8}, seed_base=3)
    answers = await asyncio.gather(*(ask(rig, rollout) for rollout in rollouts))
    for rollout, answer in zip(rollouts, answers, strict=True):
        [call] = await rig.calls(rollout)
        assert call.response_id == answer.id
        assert (call.output.get("content") or "") == (answer.choices[0].message.content or "")
    assert len({tuple(call.response_token_ids or ()) for r in rollouts for call in await rig.calls(r)}) > 8


@pytest.mark.slow
async def test_anthropic_and_responses_calls_are_recorded_as_openais(rig: Rig) -> None:
    rollout = await rig.rollout()
    rig.gateway.sampling.register([rollout.rollout_id], {"max_tokens": 12, "seed": 5, "temperature": 0.8})
    await ask(rig, rollout)
    base_url = rig.base_url(rollout)
    request: Any = {"model": "default", "max_tokens": 12, "messages": MESSAGES}
    async with anthropic.AsyncAnthropic(base_url=base_url.removesuffix("/v1"), api_key="any") as client:
        whole = await client.messages.create(**request)
        async with client.messages.stream(**request) as stream:
            streamed = await stream.get_final_message()
        counted = await client.messages.count_tokens(model="default", messages=request["messages"])
        text = "".join(block.text for block in whole.content if block.type == "text")
        halted = await client.messages.create(**request, stop_sequences=[text[2:4]])
    async with rig.client(rollout) as client:
        response = await client.responses.create(model="default", input=MESSAGES)
    first, *others = await rig.calls(rollout)
    assert len(others) == 4
    for call in (others[0], others[1], others[3]):
        assert call.prompt_token_ids == first.prompt_token_ids
        assert call.response_token_ids == first.response_token_ids
        assert call.response_logprobs == pytest.approx(first.response_logprobs, abs=1e-4)
        assert call.trainable
    assert [block.model_dump() for block in streamed.content] == [block.model_dump() for block in whole.content]
    assert response.output_text == text == first.output["content"]
    assert counted.input_tokens == whole.usage.input_tokens == len(first.prompt_token_ids or ())
    assert (halted.stop_reason, halted.stop_sequence) == ("stop_sequence", text[2:4])


async def test_a_dead_engine_is_a_502_with_its_reason(rig: Rig, engine: EngineClient) -> None:
    rollout = await rig.rollout()  # the last test: nobody uses the engine afterwards
    engine._process.kill()  # pyright: ignore[reportPrivateUsage]
    async with rig.client(rollout) as client:
        with pytest.raises(openai.InternalServerError, match="died") as caught:
            await client.chat.completions.create(model="default", messages=MESSAGES)
    assert caught.value.status_code == 502
