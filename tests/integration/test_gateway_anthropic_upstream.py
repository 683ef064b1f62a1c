"""The gateway in front of Anthropic's API (a double of it): passed through, recorded, labelled not trainable."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import openai
import orjson
import pytest
from starlette.responses import Response

from agentlightning.gateway import AnthropicUpstream, RetryPolicy
from agentlightning.gateway.upstream.anthropic import NOT_REPORTED
from agentlightning.schemas import AttemptedRollout, semconv
from tests.unit.gateway.rig import USER, Rig, running_rig
from tests.unit.gateway.scripted import reply
from tests.unit.gateway.scripted_anthropic import MESSAGE, ScriptedAnthropicServer, events, stream


@asynccontextmanager
async def fronted(**options: Any) -> AsyncGenerator[tuple[Rig, ScriptedAnthropicServer]]:
    options = {"api_key": "secret-key", "retry": RetryPolicy(max_attempts=2, base_s=0.01), **options}
    async with ScriptedAnthropicServer() as server, running_rig([AnthropicUpstream(server.base_url, **options)]) as rig:
        yield rig, server


def client_of(rig: Rig, rollout: AttemptedRollout | None = None) -> Any:
    base_url = rig.base_url(rollout).removesuffix("/v1")
    return anthropic.AsyncAnthropic(base_url=base_url, api_key="the-agents", max_retries=0)


def answering(response: Any) -> Any:
    async def answer(body: dict[str, Any]) -> Response:
        return response()

    return answer


async def test_requests_and_answers_go_on_untouched_and_are_recorded() -> None:
    request = {
        "model": "claude-x",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": USER,
        "stop_sequences": ["END"],
        "x_unknown": [1],
    }
    async with fronted() as (rig, server), httpx.AsyncClient() as raw:
        rollout = await rig.rollout()
        url = f"{rig.base_url(rollout)}/messages"
        answer = await raw.post(url, json=request, headers={"anthropic-beta": "b1", "x-api-key": "the-agents"})
        [call] = await rig.calls(rollout)
        [span] = await rig.spans(rollout)
    assert server.bodies == [request]
    assert (server.headers[0]["x-api-key"], server.headers[0]["anthropic-beta"]) == ("secret-key", "b1")
    assert server.headers[0]["anthropic-version"] == "2023-06-01"
    assert answer.content == orjson.dumps(MESSAGE)
    assert (call.messages, call.response_id) == ([{"role": "system", "content": "s"}, *USER], "msg_up")
    function = {"name": "sql", "arguments": '{"query":"SELECT 1"}'}
    assert call.output == {
        "role": "assistant",
        "content": "hello",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
    }
    assert (call.finish_reason, call.not_trainable_because) == ("tool_calls", NOT_REPORTED)
    assert (span.attributes[semconv.INPUT_TOKENS], span.attributes[semconv.OUTPUT_TOKENS]) == (7, 5)
    assert "secret-key" not in str(span)


async def test_a_stream_goes_on_untouched_and_is_recorded() -> None:
    request: Any = {"model": "claude-x", "max_tokens": 9, "messages": USER}
    async with fronted() as (rig, _):
        rollout = await rig.rollout()
        async with client_of(rig, rollout) as client, client.messages.stream(**request) as streamed:
            final = await streamed.get_final_message()
        async with httpx.AsyncClient() as raw:
            answer = await raw.post(f"{rig.gateway.url}/v1/messages", json=request | {"stream": True})
        [call] = await rig.calls(rollout)
        [span] = await rig.spans(rollout)
    assert answer.content == b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events()
    )
    assert final.content[0].signature == "sig"
    assert (final.content[1].text, final.content[2].input) == ("hello", {"query": "SELECT 1"})
    assert (call.output["content"], call.output["reasoning_content"]) == ("hello", "hm")
    assert call.output["tool_calls"][0]["function"]["arguments"] == '{"query": "SELECT 1"}'
    assert (call.response_id, call.not_trainable_because) == ("msg_up", NOT_REPORTED)
    assert (span.attributes[semconv.INPUT_TOKENS], span.attributes[semconv.OUTPUT_TOKENS]) == (7, 5)


async def test_what_only_the_server_understands_is_passed_through() -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        async with client_of(rig, rollout) as client:
            await client.messages.create(
                model="claude-x", max_tokens=2048, messages=USER, tools=tools, thinking=thinking
            )
        [call] = await rig.calls(rollout)
    assert (server.bodies[0]["tools"], server.bodies[0]["thinking"]) == (tools, thinking)
    assert (call.messages, call.tools) == (USER, tools)


async def test_the_sampling_policy_and_the_models_name_are_applied() -> None:
    async with fronted(model="claude-real") as (rig, server):
        rollout = await rig.rollout()
        overrides = {"temperature": 0.3, "stop": "END", "max_tokens": 5}
        rig.gateway.sampling.register([rollout.rollout_id], overrides)
        async with client_of(rig, rollout) as client:
            await client.messages.create(model="claude-real", max_tokens=9, messages=USER)
            assert [model.id async for model in client.models.list()] == ["claude-real"]
    [body] = server.bodies
    assert (body["model"], body["temperature"], body["stop_sequences"], body["max_tokens"]) == (
        "claude-real",
        0.3,
        ["END"],
        5,
    )


async def test_tokens_are_counted_by_the_server() -> None:
    async with fronted() as (rig, server), client_of(rig) as client:
        assert (await client.messages.count_tokens(model="claude-x", messages=USER)).input_tokens == 42
        server.script = [answering(lambda: reply({"x": 1}))]
        with pytest.raises(anthropic.InternalServerError, match="no count of tokens"):
            await client.messages.count_tokens(model="claude-x", messages=USER)


async def test_other_dialects_are_told_where_to_go() -> None:
    async with fronted() as (rig, server), rig.client() as client:
        with pytest.raises(openai.BadRequestError, match="use /v1/messages"):
            await client.chat.completions.create(model="claude-x", messages=USER)
        with pytest.raises(openai.BadRequestError, match="use /v1/messages"):
            await client.responses.create(model="claude-x", input="hi")
        with pytest.raises(openai.InternalServerError, match="makes no embeddings"):
            await client.embeddings.create(model="claude-x", input="hi")
    assert server.bodies == []


@pytest.mark.parametrize(
    ("status", "kind", "exception"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (529, "overloaded_error", anthropic.InternalServerError),
    ],
)
async def test_its_refusals_raise_the_right_exception(status: int, kind: str, exception: Any) -> None:
    refusal = {"type": "error", "error": {"type": kind, "message": "no way"}}
    async with fronted() as (rig, server), client_of(rig) as client:
        server.script = [answering(lambda: reply(refusal, status))] * 2
        with pytest.raises(exception, match="no way") as caught:
            await client.messages.create(model="claude-x", max_tokens=9, messages=USER)
    assert caught.value.body["error"]["type"] == kind
    assert len(server.bodies) == (1 if status == 400 else 2)


async def test_a_wrong_key_is_not_the_agents_fault() -> None:
    refusal = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
    async with fronted() as (rig, server), client_of(rig) as client:
        server.script = [answering(lambda: reply(refusal, 401))]
        with pytest.raises(anthropic.InternalServerError, match="Give the gateway a valid key"):
            await client.messages.create(model="claude-x", max_tokens=9, messages=USER)


@pytest.mark.parametrize("garbage", [b"<html>", b"[]", b'{"content": null}'])
async def test_garbage_is_a_502(garbage: bytes) -> None:
    async with fronted() as (rig, server), client_of(rig) as client:
        server.script = [answering(lambda: Response(garbage))]
        with pytest.raises(anthropic.InternalServerError, match="no message") as caught:
            await client.messages.create(model="claude-x", max_tokens=9, messages=USER)
    assert caught.value.status_code == 502


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ([], "ended before the answer did"),
        ([{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}], "Overloaded"),
    ],
)
async def test_a_stream_that_goes_wrong_raises_and_what_came_is_recorded(
    tail: list[dict[str, Any]], message: str
) -> None:
    async with fronted() as (rig, server):
        server.script = [answering(lambda: stream([*events()[:8], *tail]))]
        rollout = await rig.rollout()
        async with client_of(rig, rollout) as client:
            with pytest.raises(anthropic.APIStatusError, match=message):
                async with client.messages.stream(model="claude-x", max_tokens=9, messages=USER) as streamed:
                    await streamed.get_final_message()
        [span] = await rig.spans(rollout)
    assert span.status.status_code == "ERROR"
    assert '"hel' in span.attributes[semconv.CALL_OUTPUT_MESSAGES]
