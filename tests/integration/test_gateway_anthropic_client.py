"""The official Anthropic client, unmodified, against the gateway on a real socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any

import anthropic
import httpx
import pytest

from agentlightning.gateway import CallLimits
from agentlightning.schemas import AttemptedRollout, semconv
from tests.unit.gateway.fronted import fronted
from tests.unit.gateway.rig import USER, Rig, running_rig
from tests.unit.gateway.scripted import (
    TOOL_CALL,
    always,
    chunks,
    completion,
    reply,
    sse,
    token_ids,
)

TOOL = {"name": "sql", "description": "Run SQL", "input_schema": {"type": "object"}}
USE_TOOL = [{"role": "user", "content": "use the tool"}]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def client_of(rig: Rig, rollout: AttemptedRollout | None = None, **options: Any) -> Any:
    """The official asynchronous client, as ANTHROPIC_BASE_URL makes it: no `/v1`; `Any`, so that plain dicts pass."""
    base_url = rig.base_url(rollout).removesuffix("/v1")
    return anthropic.AsyncAnthropic(base_url=base_url, api_key="any", **{"max_retries": 0, **options})


async def ask(client: Any, **arguments: Any) -> Any:
    return await client.messages.create(**{"model": "default", "max_tokens": 20, "messages": USER, **arguments})


@pytest.fixture
async def rig() -> AsyncGenerator[Rig]:
    async with running_rig() as rig:
        yield rig


async def test_a_message_is_answered_and_recorded_exactly_as_the_engine_sampled_it(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with client_of(rig, rollout) as client:
        # In the body: which of them the client still has as arguments depends on its version.
        sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 7}
        answer = await ask(client, system="be brief", tools=[TOOL], stop_sequences=["END"], extra_body=sampling)
    assert isinstance(answer, anthropic.types.Message)
    assert [block.model_dump(exclude_none=True) for block in answer.content] == [
        {"type": "text", "text": "echo 0 None hi you"}
    ]
    assert (answer.stop_reason, answer.stop_sequence, answer.role) == ("end_turn", None, "assistant")
    [request] = rig.engine.requests
    result = rig.engine.results[request.request_id]
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.stop) == (
        0.5,
        0.9,
        7,
        20,
        ["END"],
    )
    function = {"name": "sql", "description": "Run SQL", "parameters": {"type": "object"}}
    assert request.tools == [{"type": "function", "function": function}]
    assert request.messages == [{"role": "system", "content": "be brief"}, *USER]
    assert answer.usage.input_tokens == len(result.prompt_token_ids)
    assert answer.usage.output_tokens == len(result.choices[0].token_ids)
    assert (answer.usage.cache_creation_input_tokens, answer.usage.cache_read_input_tokens) == (0, 0)
    [call] = await rig.calls(rollout)
    assert call.prompt_token_ids == result.prompt_token_ids
    assert call.response_token_ids == result.choices[0].token_ids
    assert call.response_logprobs == result.choices[0].logprobs
    assert (call.messages, call.output["content"]) == (request.messages, "echo 0 None hi you")
    assert (call.response_id, call.temperature, call.trainable) == (answer.id, 0.5, True)
    [span] = await rig.spans(rollout)
    assert (span.name, span.attributes["agentlightning.call.api"]) == (semconv.MODEL_CALL, "messages")


async def test_a_system_message_between_turns_stays_where_it_is(rig: Rig) -> None:
    rollout = await rig.rollout()
    messages: Any = [*USER, {"role": "system", "content": [{"type": "text", "text": "be brief"}]}]
    async with client_of(rig, rollout) as client:
        await client.messages.create(model="default", max_tokens=9, messages=messages)
    [request] = rig.engine.requests
    assert request.messages == [*USER, {"role": "system", "content": "be brief"}]


async def test_the_synchronous_client_works_streamed_and_not(rig: Rig) -> None:
    rollout = await rig.rollout()

    def talk() -> list[str]:
        messages: Any = USER
        base_url = rig.base_url(rollout).removesuffix("/v1")
        with anthropic.Anthropic(base_url=base_url, api_key="any") as client:
            whole = client.messages.create(model="default", max_tokens=9, messages=messages)
            with client.messages.stream(model="default", max_tokens=9, messages=messages) as stream:
                text = "".join(stream.text_stream)
        assert whole.content[0].type == "text"
        return [whole.content[0].text, text]

    assert await asyncio.to_thread(talk) == ["echo 0 None hi you"] * 2
    assert [call.trainable for call in await rig.calls(rollout)] == [True, True]


async def test_a_stream_has_the_official_sequence_and_comes_piece_by_piece(rig: Rig) -> None:
    rollout = await rig.rollout()
    rig.engine.gate.clear()
    async with client_of(rig, rollout) as client:
        asked = asyncio.ensure_future(ask(client, stream=True))
        await asyncio.sleep(0.02)
        rig.engine.gate.set()
        events: list[Any] = []
        async for event in await asked:
            events.append(event)
            if event.type == "content_block_delta":
                # Held here: the next piece can only come once this one has been read.
                rig.engine.gate.clear()
                asyncio.get_running_loop().call_later(0.005, rig.engine.gate.set)
    names = [event.type for event in events]
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    [call] = await rig.calls(rollout)
    start, end = events[0], events[-2]
    assert (start.message.id, start.message.content, start.message.stop_reason) == (call.response_id, [], None)
    assert start.message.model == "default"
    assert events[1].content_block.text == ""
    assert "".join(event.delta.text for event in events[2:7]) == "echo 0 None hi you"
    assert end.delta.stop_reason == "end_turn"
    result = rig.engine.results[call.response_id]
    assert (end.usage.input_tokens, end.usage.output_tokens) == (len(result.prompt_token_ids), 5)
    assert (call.response_token_ids, call.response_logprobs) == (
        result.choices[0].token_ids,
        result.choices[0].logprobs,
    )
    assert call.trainable


async def test_a_tool_is_called_whole_and_streamed_and_its_result_goes_back(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with client_of(rig, rollout) as client:
        whole = await ask(client, messages=USE_TOOL, tools=[TOOL], tool_choice={"type": "auto"})
        async with client.messages.stream(model="default", max_tokens=9, messages=USE_TOOL, tools=[TOOL]) as stream:
            streamed = await stream.get_final_message()
        for answer in (whole, streamed):
            [block] = answer.content
            assert (block.type, block.id, block.name, block.input) == (
                "tool_use",
                "call_1",
                "sql",
                {"query": "SELECT 1"},
            )
            assert answer.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "1 row"}]}
        messages = [
            *USE_TOOL,
            {"role": "assistant", "content": whole.content},
            {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
        ]
        await ask(client, messages=messages, tools=[TOOL])
    calls = await rig.calls(rollout)
    assert calls[0].output["tool_calls"] == calls[1].output["tool_calls"] == [TOOL_CALL]
    assert calls[0].response_token_ids == calls[1].response_token_ids
    assert all(call.trainable for call in calls)
    sent = {**TOOL_CALL, "function": {"name": "sql", "arguments": '{"query":"SELECT 1"}'}}
    assert rig.engine.requests[2].messages == [
        *USE_TOOL,
        {"role": "assistant", "content": None, "tool_calls": [sent]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1 row"},
        {"role": "user", "content": "and now?"},
    ]


async def test_the_stop_sequence_that_ended_it_is_told() -> None:
    async def stopped(request: Any, body: dict[str, Any]) -> Any:
        answer = completion(body)
        answer["choices"][0]["stop_reason"] = "END"
        return reply(answer)

    async with fronted() as (rig, server), client_of(rig) as client:
        server.script = [stopped]
        answer = await ask(client, stop_sequences=["END"])
    assert server.bodies[0]["stop"] == ["END"]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")


async def test_every_url_form_reaches_it_and_names_its_rollout(rig: Rig) -> None:
    rollout = await rig.rollout()
    scoped = f"rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}"
    forms = ["", scoped, f"proxy/{scoped}/mode/train/anthropic", f"proxy/{scoped}/mode/val/openai"]
    for form in forms:
        async with anthropic.AsyncAnthropic(base_url=f"{rig.gateway.url}/{form}", api_key="any") as client:
            answer = await ask(client)
            assert answer.content[0].text == "echo 0 None hi you"
    assert len(await rig.calls(rollout)) == 3
    assert rig.gateway.stats()["unattributed"] == 1


async def test_the_base_url_of_the_environment_is_enough(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = await rig.rollout()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", rig.base_url(rollout).removesuffix("/v1"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", os.environ.get("ANTHROPIC_API_KEY", "unused"))
    async with anthropic.AsyncAnthropic() as client:
        await ask(client)
    assert len(await rig.calls(rollout)) == 1


async def test_tokens_are_counted_without_a_record(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with client_of(rig, rollout) as client:
        count = await client.messages.count_tokens(model="default", messages=USER, tools=[TOOL], system="be brief")
        answer = await ask(client, tools=[TOOL], system="be brief")
    assert count.input_tokens == answer.usage.input_tokens
    assert rig.engine.requests[0].params.max_tokens == 1
    assert len(await rig.spans(rollout)) == 1


async def test_models_are_listed_in_its_shape(rig: Rig) -> None:
    async with client_of(rig) as client:
        assert [model.id async for model in client.models.list()] == ["default", "scripted-1"]
        assert (await client.models.retrieve("default")).display_name == "default"
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await client.models.retrieve("huge")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "?"}]}]}, "reads text only"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "cannot be told to think"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "only custom tools"),
        ({"messages": [*USER, {"role": "assistant", "content": "So,"}]}, "cannot continue an assistant message"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "robot", "content": "?"}]}, "must be 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\].content\[0\].*`text`"),
        ({"messages": [{"role": "user", "content": [{"type": "tune", "text": "?"}]}]}, "Invalid value 'tune'"),
        ({"messages": [{"role": "user", "content": []}]}, "must not be empty"),
        ({"extra_body": {"mcp_servers": [{}]}}, "only a model behind an AnthropicUpstream"),
        ({"extra_body": {"logit_bias": {"1": 2}}}, "does not support 'logit_bias'"),
        ({"extra_body": {"temperature": 3.0}}, "between 0 and 2"),
    ],
)
async def test_what_cannot_be_honoured_is_a_bad_request_that_says_so(
    rig: Rig, arguments: dict[str, Any], message: str
) -> None:
    rollout = await rig.rollout()
    async with client_of(rig, rollout) as client:
        with pytest.raises(anthropic.BadRequestError, match=message) as caught:
            await ask(client, **arguments)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    [call] = await rig.calls(rollout)
    assert call.not_trainable_because == "the call failed"
    assert rig.engine.requests == []


async def test_errors_raise_the_clients_own_exceptions(rig: Rig) -> None:
    async with client_of(rig) as client:
        with pytest.raises(anthropic.NotFoundError, match=r"'huge' does not exist.*'default'") as caught:
            await ask(client, model="huge")
        assert caught.value.body["error"]["type"] == "not_found_error"
        rig.engine.error = ConnectionError("gone")
        with pytest.raises(anthropic.InternalServerError, match="not reachable"):
            await ask(client)
        with pytest.raises(anthropic.InternalServerError, match="not reachable"):
            await ask(client, stream=True)
        with pytest.raises(anthropic.InternalServerError, match="not reachable"):
            await client.messages.count_tokens(model="default", messages=USER)
    async with httpx.AsyncClient() as raw:
        answer = await raw.post(f"{rig.gateway.url}/v1/messages", json={"model": "default", "messages": USER})
        broken = await raw.post(f"{rig.gateway.url}/v1/messages", content=b"{")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "max_tokens: Field required")
    assert broken.json()["error"]["type"] == "invalid_request_error"


async def test_a_full_gateway_is_a_rate_limit_or_overload() -> None:
    limits = CallLimits(max_in_flight=1, queue_timeout_s=0.05)
    async with running_rig(limits=limits) as rig, client_of(rig) as client:
        rig.engine.gate.clear()
        first = asyncio.ensure_future(ask(client))
        await asyncio.sleep(0.02)
        with pytest.raises(anthropic.APIStatusError) as caught:
            await ask(client)
        rig.engine.gate.set()
        await first
    assert caught.value.status_code in (429, 503)


# --- in front of an OpenAI-compatible server ------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_is_asked_in_its_own_language_and_captured(stream: bool) -> None:
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        async with client_of(rig, rollout) as client:
            if stream:
                async with client.messages.stream(model="m", max_tokens=9, messages=USER, system="s") as events:
                    answer = await events.get_final_message()
            else:
                answer = await ask(client, model="m", max_tokens=9, system="s")
        [call] = await rig.calls(rollout)
        [span] = await rig.spans(rollout)
    [body] = server.bodies
    assert (body["messages"], body["max_tokens"]) == ([{"role": "system", "content": "s"}, *USER], 9)
    assert answer.content[0].text == "hello there"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2)
    assert answer.id.startswith("msg_")
    assert (call.response_id, call.response_token_ids, call.prompt_token_ids) == (answer.id, [11, 12], [1, 2, 3])
    assert call.trainable
    assert span.attributes["agentlightning.call.upstream_response_id"].startswith("chatcmpl-")


async def test_images_and_tool_results_with_images_are_passed_through() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "see"}, IMAGE]}
    web = {"type": "image", "source": {"type": "url", "url": "https://x.invalid/a.png"}}
    messages = [
        {"role": "user", "content": [IMAGE, web, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
        {"role": "user", "content": [result]},
    ]
    async with fronted() as (rig, server), client_of(rig) as client:
        await ask(client, messages=messages)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    sent = server.bodies[0]["messages"]
    assert sent[0]["content"] == [
        picture,
        {"type": "image_url", "image_url": {"url": "https://x.invalid/a.png"}},
        {"type": "text", "text": "what?"},
    ]
    assert sent[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "see"},
        {"role": "user", "content": [picture]},
    ]


async def test_parallel_tool_calls_that_come_interleaved_arrive_in_order() -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    def call(index: int, arguments: str, **head: Any) -> dict[str, Any]:
        function = {"arguments": arguments} | ({"name": f"tool_{index}"} if head else {})
        return chunk({"tool_calls": [{"index": index, **head, "function": function}]})

    events = [
        chunk({"role": "assistant", "content": "Let me see"}),
        call(0, '{"a":', id="c0"),
        call(1, '{"b"', id="c1"),
        call(0, "1}"),
        call(1, ":2}"),
        chunk({}, "tool_calls"),
    ]

    async def answer(request: Any, body: dict[str, Any]) -> Any:
        return sse([*events, "[DONE]"])

    async with fronted(capture="none") as (rig, server):
        server.script = [answer]
        rollout = await rig.rollout()
        async with client_of(rig, rollout) as client:
            seen: list[Any] = []
            async with client.messages.stream(model="m", max_tokens=9, messages=USER, tools=[TOOL]) as stream:
                async for event in stream:
                    seen.append(event)
                final = await stream.get_final_message()
        [call_record] = await rig.calls(rollout)
    assert [(b.type, getattr(b, "input", None)) for b in final.content] == [
        ("text", None),
        ("tool_use", {"a": 1}),
        ("tool_use", {"b": 2}),
    ]
    blocks = [event.type[14:] for event in seen if event.type in ("content_block_start", "content_block_stop")]
    assert blocks == ["start", "stop"] * 3
    assert final.stop_reason == "tool_use"
    assert [c["function"]["arguments"] for c in call_record.output["tool_calls"]] == ['{"a":1}', '{"b":2}']
    assert call_record.not_trainable_because == "the upstream does not report token ids"


@pytest.mark.parametrize(
    ("status", "exception", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_a_servers_refusal_raises_the_right_exception(status: int, exception: Any, kind: str) -> None:
    async with fronted() as (rig, server), client_of(rig) as client:
        server.script = [always({"error": {"message": "no way"}}, status)]
        with pytest.raises(exception, match="no way") as caught:
            await ask(client)
    assert caught.value.body["error"]["type"] == kind


async def test_a_stream_that_breaks_raises_and_what_came_is_recorded() -> None:
    async def answer(request: Any, body: dict[str, Any]) -> Any:
        return sse(chunks({})[:2], breaks=True)

    async with fronted() as (rig, server):
        server.script = [answer]
        rollout = await rig.rollout()
        async with client_of(rig, rollout) as client:
            stream = await ask(client, stream=True)

            async def read() -> None:
                async for _ in stream:
                    pass

            with pytest.raises(anthropic.APIStatusError, match="connection broke"):
                await read()
        [span] = await rig.spans(rollout)
    assert span.status.status_code == "ERROR"
    assert '"hello"' in span.attributes[semconv.CALL_OUTPUT_MESSAGES]


async def test_tokens_are_counted_by_the_server_and_refused_where_it_does_not_say() -> None:
    async def without_usage(request: Any, body: dict[str, Any]) -> Any:
        return reply({**completion(body), "usage": None})

    async with fronted() as (rig, server), client_of(rig) as client:
        assert (await client.messages.count_tokens(model="m", messages=USER)).input_tokens == 3
        server.script = [without_usage]
        with pytest.raises(anthropic.InternalServerError, match="does not report"):
            await client.messages.count_tokens(model="m", messages=USER)
    assert server.bodies[0]["max_tokens"] == 1


async def test_forty_parallel_streams_are_each_captured(rig: Rig) -> None:
    rollouts = [await rig.rollout() for _ in range(8)]
    rig.engine.delay_s = 0.005

    async def talk(number: int) -> None:
        async with client_of(rig, rollouts[number % 8]) as client:
            messages = [{"role": "user", "content": f"say {number}"}]
            async with client.messages.stream(model="default", max_tokens=9, messages=messages) as stream:
                assert (await stream.get_final_message()).content[0].text == f"echo 0 None say {number}"

    await asyncio.gather(*(talk(number) for number in range(40)))
    for position, rollout in enumerate(rollouts):
        calls = await rig.calls(rollout)
        assert sorted(call.messages[0]["content"] for call in calls) == sorted(
            f"say {number}" for number in range(position, 40, 8)
        )
        for call in calls:
            assert call.response_token_ids == token_ids(str(call.output["content"]))
            assert call.trainable
