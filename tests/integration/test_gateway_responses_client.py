"""The official OpenAI client's Responses API, unmodified, against the gateway on a real socket; and embeddings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest
from starlette.responses import Response

from agentlightning.gateway import EngineUpstream, OpenAIUpstream
from agentlightning.schemas import semconv
from tests.unit.gateway.fronted import fronted
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import TOOL_CALL, ScriptedEngine, ScriptedOpenAIServer, always, chunks, sse

TOOL = {"type": "function", "name": "sql", "description": "Run SQL", "parameters": {"type": "object"}, "strict": None}


async def ask(client: Any, prompt: Any = "hi you", **arguments: Any) -> Any:
    return await client.responses.create(**{"model": "default", "input": prompt, **arguments})


@pytest.fixture
async def rig() -> AsyncGenerator[Rig]:
    async with running_rig() as rig:
        yield rig


async def test_a_response_is_answered_and_recorded_exactly_as_the_engine_sampled_it(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        answer = await ask(
            client,
            instructions="be brief",
            temperature=0.5,
            top_p=0.9,
            max_output_tokens=20,
            store=False,
            tools=[TOOL],
            metadata={"k": "v"},
        )
    assert isinstance(answer, openai.types.responses.Response)
    assert (answer.output_text, answer.status, answer.model) == ("echo 0 None hi you", "completed", "default")
    assert (answer.instructions, answer.metadata, answer.temperature) == ("be brief", {"k": "v"}, 0.5)
    [request] = rig.engine.requests
    result = rig.engine.results[request.request_id]
    assert (request.params.temperature, request.params.top_p, request.params.max_tokens) == (0.5, 0.9, 20)
    assert request.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi you"},
    ]
    function = {"name": "sql", "description": "Run SQL", "parameters": {"type": "object"}}
    assert request.tools == [{"type": "function", "function": function}]
    assert answer.usage.input_tokens == len(result.prompt_token_ids)
    assert answer.usage.output_tokens == len(result.choices[0].token_ids)
    [call] = await rig.calls(rollout)
    assert call.prompt_token_ids == result.prompt_token_ids
    assert call.response_token_ids == result.choices[0].token_ids
    assert call.response_logprobs == result.choices[0].logprobs
    assert (call.response_id, call.trainable, call.messages) == (answer.id, True, request.messages)
    [span] = await rig.spans(rollout)
    assert span.attributes["agentlightning.call.api"] == "responses"


async def test_the_synchronous_client_works_streamed_and_not(rig: Rig) -> None:
    rollout = await rig.rollout()

    def talk() -> list[str]:
        with openai.OpenAI(base_url=rig.base_url(rollout), api_key="any") as client:
            whole = client.responses.create(model="default", input="hi you").output_text
            with client.responses.stream(model="default", input="hi you") as stream:
                return [whole, stream.get_final_response().output_text]

    assert await asyncio.to_thread(talk) == ["echo 0 None hi you"] * 2
    assert [call.trainable for call in await rig.calls(rollout)] == [True, True]


async def test_a_stream_has_the_official_sequence_and_comes_piece_by_piece(rig: Rig) -> None:
    rollout = await rig.rollout()
    rig.engine.gate.clear()
    async with rig.client(rollout) as client:
        asked = asyncio.ensure_future(ask(client, stream=True))
        await asyncio.sleep(0.02)
        rig.engine.gate.set()
        events: list[Any] = []
        async for event in await asked:
            events.append(event)
            if event.type == "response.output_text.delta":
                # Held here: the next piece can only come once this one has been read.
                rig.engine.gate.clear()
                asyncio.get_running_loop().call_later(0.005, rig.engine.gate.set)
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 5,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(13))
    final = events[-1].response
    assert final.output_text == events[9].text == "echo 0 None hi you"
    assert {event.item_id for event in events[3:11]} == {final.output[0].id}
    [call] = await rig.calls(rollout)
    result = rig.engine.results[call.response_id]
    assert events[0].response.id == final.id == call.response_id
    assert (final.usage.input_tokens, final.usage.output_tokens) == (len(result.prompt_token_ids), 5)
    assert (call.response_token_ids, call.response_logprobs) == (
        result.choices[0].token_ids,
        result.choices[0].logprobs,
    )


async def test_a_function_is_called_whole_and_streamed_and_its_output_goes_back(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        whole = await ask(client, "use the tool", tools=[TOOL])
        async with client.responses.stream(model="default", input="use the tool", tools=[TOOL]) as stream:
            seen = [event.type async for event in stream]
            streamed = await stream.get_final_response()
        for answer in (whole, streamed):
            [item] = answer.output
            assert (item.type, item.call_id, item.name) == ("function_call", "call_1", "sql")
            assert json.loads(item.arguments) == {"query": "SELECT 1"}
        output = {"type": "function_call_output", "call_id": "call_1", "output": "1 row"}
        turns = [{"role": "user", "content": "use the tool"}, *whole.output, output]
        await ask(client, turns, tools=[TOOL])
    assert "response.function_call_arguments.delta" in seen
    assert "response.function_call_arguments.done" in seen
    assert rig.engine.requests[2].messages == [
        {"role": "user", "content": "use the tool"},
        {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1 row"},
    ]
    calls = await rig.calls(rollout)
    assert calls[0].output["tool_calls"] == calls[1].output["tool_calls"] == [TOOL_CALL]
    assert all(call.trainable for call in calls)


async def test_a_conversation_goes_on_from_the_record(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        first = await ask(client, "one", instructions="be brief")
        second = await ask(client, "two", previous_response_id=first.id, instructions="be long")
        await ask(client, "three", previous_response_id=second.id)
    assert rig.engine.requests[1].messages == [
        {"role": "system", "content": "be long"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "echo 0 None one"},
        {"role": "user", "content": "two"},
    ]
    said = [message["content"] for message in rig.engine.requests[2].messages or ()]
    assert said == ["one", "echo 0 None one", "two", "echo 0 None two", "three"]
    assert second.previous_response_id == first.id
    assert [len(call.messages) for call in await rig.calls(rollout)] == [2, 4, 5]


async def test_a_conversation_that_is_not_recorded_is_refused(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client() as client, rig.client(rollout) as scoped:
        answer = await ask(client)
        with pytest.raises(openai.BadRequestError, match="on rollout URLs only"):
            await ask(client, previous_response_id=answer.id)
        with pytest.raises(openai.BadRequestError, match="not found on this attempt") as caught:
            await ask(scoped, previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "Only function tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "not supported"),
        ({"background": True}, "'background' is not supported"),
        ({"truncation": "auto"}, "never cut"),
        ({"include": ["message.output_text.logprobs"]}, "Log-probabilities"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "Invalid value 'item_reference'"),
        ({"input": [{"role": "robot", "content": "?"}]}, "cannot be 'robot'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]}, "reads text only"),
        ({"input": []}, "Missing required parameter: 'input'"),
        ({"reasoning": {"effort": "low"}}, "does not support 'reasoning_effort'"),
        ({"text": {"format": {"type": "grammar"}}}, "cannot be 'grammar'"),
        ({"model": "huge"}, "'huge' does not exist"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(rig: Rig, arguments: dict[str, Any], message: str) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=message):
            await ask(client, **arguments)
    assert rig.engine.requests == []
    assert [call.not_trainable_because for call in await rig.calls(rollout)] == ["the call failed"]


async def test_a_server_is_asked_in_its_own_language_and_captured() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    parts = [{"type": "input_image", "image_url": "https://x.invalid/a.png"}, {"type": "input_text", "text": "?"}]
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            answer = await ask(
                client,
                [{"role": "user", "content": parts}],
                text={"format": schema},
                reasoning={"effort": "low"},
                max_output_tokens=9,
                tools=[TOOL],
                tool_choice={"type": "function", "name": "sql"},
            )
        [call] = await rig.calls(rollout)
    [body] = server.bodies
    picture = {"type": "image_url", "image_url": {"url": "https://x.invalid/a.png"}}
    assert body["messages"] == [{"role": "user", "content": [picture, {"type": "text", "text": "?"}]}]
    assert body["response_format"]["json_schema"] == {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert (body["reasoning_effort"], body["max_tokens"]) == ("low", 9)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "sql"}}
    assert (answer.output_text, answer.usage.total_tokens) == ("hello there", 5)
    assert answer.id.startswith("resp_")
    assert (call.response_id, call.response_token_ids, call.trainable) == (answer.id, [11, 12], True)


async def test_an_answer_that_was_cut_is_incomplete_and_reasoning_is_an_item() -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    events = [chunk({"reasoning_content": "hm"}), chunk({"content": "so"}), chunk({}, "length"), "[DONE]"]

    async def answer(request: Any, body: dict[str, Any]) -> Response:
        return sse(events)

    async with fronted(capture="none") as (rig, server), rig.client() as client:
        server.script = [answer]
        last = [event async for event in await ask(client, stream=True)][-1]
        assert last.type == "response.incomplete"
        assert last.response.incomplete_details.reason == "max_output_tokens"
        assert [item.type for item in last.response.output] == ["reasoning", "message"]
        await ask(client, [{"role": "user", "content": "?"}, *last.response.output, {"role": "user", "content": "go"}])
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "so", "reasoning_content": "hm"}


async def test_a_stream_that_breaks_raises() -> None:
    async def answer(request: Any, body: dict[str, Any]) -> Response:
        return sse(chunks({})[:2], breaks=True)

    async with fronted() as (rig, server):
        server.script = [answer]
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            stream = await ask(client, stream=True)

            async def read() -> None:
                async for _ in stream:
                    pass

            with pytest.raises(openai.APIError, match="connection broke"):
                await read()
        [span] = await rig.spans(rollout)
    assert '"hello"' in span.attributes[semconv.CALL_OUTPUT_MESSAGES]


# --- embeddings -----------------------------------------------------------------------------------------------------


async def test_embeddings_pass_through_as_they_are() -> None:
    vectors = {
        "object": "list",
        "model": "e",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}],
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    async with ScriptedOpenAIServer() as server:
        server.script = [always(vectors), always({"error": {"message": "too long"}}, 400)]
        upstreams = {"e": OpenAIUpstream(server.base_url, model="real-e"), "default": EngineUpstream(ScriptedEngine())}
        async with running_rig(upstreams) as rig:
            rollout = await rig.rollout()
            async with rig.client(rollout) as client:
                answer = await client.embeddings.create(model="e", input=["a b"], encoding_format="float")
                with pytest.raises(openai.BadRequestError, match="too long"):
                    await client.embeddings.create(model="e", input="x")
                with pytest.raises(openai.InternalServerError, match="Route an embedding model") as caught:
                    await client.embeddings.create(model="default", input="x")
                with pytest.raises(openai.NotFoundError, match="'huge' does not exist"):
                    await client.embeddings.create(model="huge", input="x")
                with pytest.raises(openai.BadRequestError, match="'input'"):
                    await client.embeddings.create(model="e", input="")
            assert len(await rig.spans(rollout)) == 0
    assert caught.value.status_code == 501
    assert answer.data[0].embedding == [0.5, -1.0]
    assert server.bodies[0] == {"model": "real-e", "input": ["a b"], "encoding_format": "float"}


async def test_an_embedding_server_that_is_broken_is_a_502() -> None:
    async with fronted() as (rig, server), httpx.AsyncClient() as client:
        server.script = [always("oops", 500)]
        answer = await client.post(f"{rig.gateway.url}/v1/embeddings", json={"model": "e", "input": "x"})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (502, "false")
