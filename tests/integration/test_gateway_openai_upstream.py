"""The gateway in front of an OpenAI-compatible server on a real socket, well-behaved and not."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from starlette.requests import Request
from starlette.responses import Response

from agentlightning.gateway import OpenAIUpstream, RetryPolicy
from agentlightning.schemas import semconv
from tests.unit.gateway.rig import USER, Rig, running_rig
from tests.unit.gateway.scripted import ScriptedOpenAIServer, always, chunks, completion, sse

FAST = RetryPolicy(base_s=0.01)
PATH = "/chat/completions"


@asynccontextmanager
async def fronted(owned_by: str = "someone", **options: Any) -> AsyncGenerator[tuple[Rig, ScriptedOpenAIServer]]:
    async with ScriptedOpenAIServer(owned_by) as server:
        upstream = OpenAIUpstream(server.base_url, **{"api_key": "sk-secret", "retry": FAST, **options})
        async with running_rig([upstream]) as rig:
            yield rig, server


async def test_requests_and_answers_pass_through_untouched_and_are_recorded() -> None:
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        body = {"model": "m", "messages": USER, "x_new": [1, {"a": None}], "temperature": 1}
        async with httpx.AsyncClient() as client:
            response = await client.post(rig.base_url(rollout) + PATH, json=body)
        assert server.bodies == [body]
        assert server.headers[0]["authorization"] == "Bearer sk-secret"
        assert response.json() == completion(body)
        [call] = await rig.calls(rollout)
    assert call.not_trainable_because == "the upstream does not report token ids"
    assert call.output == {"role": "assistant", "content": "hello there"}
    assert (call.model, call.finish_reason, call.prompt_token_ids) == ("real-model", "stop", None)
    assert rig.gateway.stats()["not_trainable"] == {"the upstream does not report token ids": 1}
    assert rig.gateway.stats()["output_tokens"] == 2


async def test_the_key_is_in_no_record_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with fronted() as (rig, server):
        server.script = [always({"error": {"message": "Incorrect API key provided: sk-secret"}}, status=401)]
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            with pytest.raises(openai.InternalServerError, match="refused the gateway's API key") as caught:
                await client.chat.completions.create(model="m", messages=USER)
            await client.chat.completions.create(model="m", messages=USER)
        dumped = "".join(span.model_dump_json() for span in await rig.spans(rollout))
    assert caught.value.code == "upstream_auth_failed"
    assert "sk-secret" not in dumped + caplog.text + str(caught.value) + repr(OpenAIUpstream("http://x", "sk-secret"))


async def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    async with fronted(api_key=None) as (rig, server), rig.client() as client:
        await client.chat.completions.create(model="m", messages=USER)
    assert server.headers[0]["authorization"] == "Bearer sk-env"


@pytest.mark.parametrize("options", [{"owned_by": "vllm"}, {"capture": "vllm"}])
async def test_token_ids_of_vllm_are_captured_and_hidden_from_the_agent(options: dict[str, Any]) -> None:
    async with fronted(**options) as (rig, server):
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            answer = await client.chat.completions.create(model="m", messages=USER)
            text = await client.completions.create(model="m", prompt="hi")
        calls = await rig.calls(rollout)
    assert server.bodies[0]["return_token_ids"] is True
    assert server.bodies[0]["logprobs"] is True
    assert server.bodies[1]["logprobs"] == 0
    assert answer.choices[0].logprobs is None
    assert text.choices[0].logprobs is None
    assert not hasattr(answer, "prompt_token_ids")
    assert not hasattr(answer.choices[0], "token_ids")
    for call in calls:
        assert call.prompt_token_ids == [1, 2, 3]
        assert call.response_token_ids == [11, 12]
        assert call.response_logprobs == [-0.25, -0.5]
        assert call.trainable


async def test_an_agent_that_asks_for_token_ids_and_logprobs_itself_gets_them() -> None:
    async with fronted(capture="vllm") as (rig, _), rig.client() as client:
        answer = await client.chat.completions.create(
            model="m", messages=USER, logprobs=True, extra_body={"return_token_ids": True}
        )
        assert answer.choices[0].token_ids == [11, 12]
        assert answer.prompt_token_ids == [1, 2, 3]
        assert len(answer.choices[0].logprobs.content) == 2
        stream = await client.chat.completions.create(
            model="m", messages=USER, stream=True, logprobs=True, extra_body={"return_token_ids": True}
        )
        ids = [chunk.choices[0].token_ids async for chunk in stream if hasattr(chunk.choices[0], "token_ids")]
        assert ids == [[11], [12]]


@pytest.mark.parametrize("usage", [False, True])
async def test_streams_pass_through_as_they_come_and_are_recorded(usage: bool) -> None:
    async with fronted(capture="vllm") as (rig, server):
        rollout = await rig.rollout()
        options = {"stream_options": {"include_usage": True}} if usage else {}
        async with rig.client(rollout) as client:
            stream = await client.chat.completions.create(model="m", messages=USER, stream=True, **options)
            received = [chunk async for chunk in stream]
        [call] = await rig.calls(rollout)
        [span] = await rig.spans(rollout)
    assert server.bodies[0]["stream_options"] == {"include_usage": True}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in received if chunk.choices) == "hello there"
    assert [bool(chunk.usage) for chunk in received].count(True) == int(usage)
    assert not any(hasattr(chunk.choices[0], "token_ids") for chunk in received if chunk.choices)
    assert (call.prompt_token_ids, call.response_token_ids) == ([1, 2, 3], [11, 12])
    assert call.response_logprobs == [-0.11, -0.12]
    assert call.trainable
    assert span.attributes[semconv.INPUT_TOKENS] == 3


async def test_bytes_of_a_stream_are_left_alone_when_nothing_was_added() -> None:
    wire = (
        b": ping\n\n"
        b'data: {"id": "1",  "choices": [{"index": 0, "delta": {"content": "h\xc3\xa9"}}]}\r\n\r\n'
        b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    )

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return Response(wire + b"data: [DONE]", media_type="text/event-stream")

    async with fronted(asks_usage=False) as (rig, server):
        server.script = [answer]
        async with httpx.AsyncClient() as client:
            response = await client.post(
                rig.base_url(None) + PATH, json={"model": "m", "messages": USER, "stream": True}
            )
    assert response.content == wire + b"data: [DONE]\n\n"
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_streamed_tool_calls_in_fragments_are_put_together() -> None:
    def fragment(index: int, **function: str) -> dict[str, Any]:
        call: dict[str, Any] = {"index": index, "function": function}
        if "name" in function:
            call |= {"id": f"call_{index}", "type": "function"}
        return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}

    events = [
        fragment(0, name="sql", arguments=""),
        fragment(0, arguments='{"query": '),
        fragment(0, arguments='"SELECT 1"}'),
        fragment(1, name="stop", arguments="{}"),
        {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        "[DONE]",
    ]

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return sse(events)

    async with fronted() as (rig, server):
        server.script = [answer]
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            async for _ in await client.chat.completions.create(model="m", messages=USER, stream=True):
                pass
        [call] = await rig.calls(rollout)
    assert call.output["tool_calls"] == [
        {"id": "call_0", "type": "function", "function": {"name": "sql", "arguments": '{"query": "SELECT 1"}'}},
        {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": "{}"}},
    ]
    assert call.finish_reason == "tool_calls"


async def test_tokens_swallowed_by_a_tool_parser_are_noticed() -> None:
    answer = completion({"messages": USER, "return_token_ids": True, "logprobs": True})
    answer["usage"]["completion_tokens"] = 9
    async with fronted(capture="vllm") as (rig, server):
        server.script = [always(answer)]
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            await client.chat.completions.create(model="m", messages=USER)
        [call] = await rig.calls(rollout)
    assert call.not_trainable_because == "the upstream reported fewer token ids than it counted as used"


@pytest.mark.parametrize(("processed", "trainable"), [(False, False), (True, True)])
async def test_logprobs_before_temperature_are_not_trained_on(processed: bool, trainable: bool) -> None:
    async with fronted(capture="vllm", has_processed_logprobs=processed) as (rig, _):
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            await client.chat.completions.create(model="m", messages=USER, temperature=0.7)
        [call] = await rig.calls(rollout)
    assert call.trainable is trainable
    assert call.response_token_ids == [11, 12]


async def test_the_servers_own_refusal_reaches_the_client() -> None:
    refusal = {
        "error": {"message": "This model's maximum context length is 8 tokens.", "type": "BadRequestError", "code": 400}
    }
    async with fronted() as (rig, server), rig.client() as client:
        server.script = [always(refusal, status=400)]
        with pytest.raises(openai.BadRequestError, match="maximum context length is 8") as caught:
            await client.chat.completions.create(model="m", messages=USER)
    assert caught.value.code == "context_length_exceeded"
    assert len(server.bodies) == 1


async def test_a_rate_limit_is_waited_for_as_long_as_the_server_asks() -> None:
    async with fronted() as (rig, server), rig.client() as client:
        server.script = [always({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.3"})]
        before = asyncio.get_running_loop().time()
        answer = await client.chat.completions.create(model="m", messages=USER)
        assert asyncio.get_running_loop().time() - before >= 0.3
    assert answer.choices[0].message.content == "hello there"
    assert len(server.bodies) == 2


async def test_a_rate_limit_that_is_too_long_is_passed_on() -> None:
    async with fronted() as (rig, server), rig.client() as client:
        server.script = [always({"error": {"message": "slow down"}}, 429, {"Retry-After": "3600"})]
        with pytest.raises(openai.RateLimitError, match="slow down") as caught:
            await client.chat.completions.create(model="m", messages=USER)
    assert caught.value.response.headers["retry-after"] == "3600"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_server_is_tried_again_and_then_reported(stream: bool) -> None:
    async with fronted() as (rig, server):
        rollout = await rig.rollout()
        async with rig.client(rollout, max_retries=2) as client:
            server.script = [always("oops", 500)] * 3
            with pytest.raises(openai.InternalServerError, match=r"failed \(HTTP 500\).*oops") as caught:
                await client.chat.completions.create(model="m", messages=USER, stream=stream)
            assert len(server.bodies) == 3  # the gateway's tries; the client was told not to add its own
            server.script = [always("oops", 503)] * 2
            await client.chat.completions.create(model="m", messages=USER)
        first, second = await rig.spans(rollout)
    assert caught.value.status_code == 502
    assert (first.status.status_code, second.status.status_code) == ("ERROR", "OK")


async def test_a_server_that_is_down_is_a_503(refusing_url: str) -> None:
    upstream = OpenAIUpstream(f"{refusing_url}/v1", retry=FAST)
    async with running_rig([upstream]) as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            with pytest.raises(openai.InternalServerError, match="not reachable") as caught:
                await client.chat.completions.create(model="m", messages=USER)
            assert [model async for model in client.models.list()] == []
        [span] = await rig.spans(rollout)
    assert (caught.value.status_code, caught.value.code) == (503, "upstream_unreachable")
    assert span.status.status_code == "ERROR"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_hangs_is_a_504(stream: bool) -> None:
    async def hang(request: Request, body: dict[str, Any]) -> Response:
        await asyncio.sleep(30)
        return Response()

    async with fronted(idle_timeout_s=0.1, capture="none") as (rig, server), rig.client() as client:
        server.script = [hang]
        with pytest.raises(openai.InternalServerError, match=r"silent for 0\.1 s") as caught:
            await client.chat.completions.create(model="m", messages=USER, stream=stream)
    assert caught.value.status_code == 504
    assert len(server.bodies) == 1  # it may have been generating: not repeated


@pytest.mark.parametrize(
    "garbage", [b"<html>hello</html>", b"[1, 2]", b'{"choices": null}', b'{"object": "chat.completion"}']
)
async def test_garbage_is_a_502(garbage: bytes) -> None:
    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return Response(garbage, media_type="application/json")

    async with fronted() as (rig, server), rig.client() as client:
        server.script = [answer]
        with pytest.raises(openai.InternalServerError, match="no usable answer") as caught:
            await client.chat.completions.create(model="m", messages=USER)
    assert caught.value.status_code == 502


async def test_an_answer_without_choices_is_no_message_and_no_response() -> None:
    async with fronted() as (rig, server):
        server.script = [always({"choices": []})] * 2
        async with httpx.AsyncClient() as client:
            for path, more in (("/messages", {"messages": USER, "max_tokens": 1}), ("/responses", {"input": "hi"})):
                answer = await client.post(f"{rig.base_url(None)}{path}", json={"model": "m", **more})
                assert answer.status_code == 502, answer.text
                assert "no usable answer: it has no choices" in answer.text


@pytest.mark.parametrize("index", [10**9, -1, None])
async def test_a_streamed_tool_call_with_a_strange_index_stops_nobody(index: int | None) -> None:
    """Index a billion once made as many calls, and held up all others for minutes."""
    call = {"index": index, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    events = [{"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}]
    events.append({"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return sse([*events, "[DONE]"])

    async with fronted() as (rig, server):
        server.script = [answer, answer]
        rollout = await rig.rollout()
        async with httpx.AsyncClient() as client:
            for path, more in ((PATH, {}), ("/messages", {"max_tokens": 9})):
                body = {"model": "m", "messages": USER, "stream": True, **more}
                told = await client.post(rig.base_url(rollout) + path, json=body, timeout=100)
                assert told.status_code == 200, told.text
                assert "error" not in told.text
        for recorded in await rig.calls(rollout):
            assert [made["function"]["name"] for made in recorded.output["tool_calls"]] == ["f"]


async def test_a_redirect_is_not_followed() -> None:
    async with fronted() as (rig, server), rig.client() as client:
        server.script = [always({}, 307, {"Location": "http://elsewhere.invalid/"})]
        with pytest.raises(openai.InternalServerError, match="redirects"):
            await client.chat.completions.create(model="m", messages=USER)


@pytest.mark.parametrize(
    ("events", "breaks", "message"),
    [
        (chunks({})[:2], True, "connection broke"),
        (chunks({})[:2], False, "ended before the answer did"),
        ([chunks({})[1], "not json"], False, "no JSON object"),
        ([chunks({})[1], {"error": {"message": "CUDA out of memory"}}], False, "CUDA out of memory"),
    ],
)
async def test_a_stream_that_goes_wrong_raises_and_what_came_is_recorded(
    events: list[Any], breaks: bool, message: str
) -> None:
    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return sse(events, breaks=breaks)

    async with fronted() as (rig, server):
        server.script = [answer]
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            stream = await client.chat.completions.create(model="m", messages=USER, stream=True)

            async def read() -> None:
                async for _ in stream:
                    pass

            with pytest.raises(openai.APIError, match=message):
                await read()
        [span] = await rig.spans(rollout)
    assert span.status.status_code == "ERROR"
    assert json.loads(span.attributes[semconv.CALL_OUTPUT_MESSAGES])[0]["content"] == "hello"


async def test_a_client_that_leaves_a_stream_closes_the_upstream() -> None:
    left = asyncio.Event()

    async def endless(request: Request, body: dict[str, Any]) -> Response:
        response = sse([chunks({})[1]] * 1000, delay_s=0.01)
        produce = response.body_iterator

        async def watched() -> Any:
            try:
                async for data in produce:
                    yield data
            finally:
                left.set()

        response.body_iterator = watched()
        return response

    async with fronted() as (rig, server):
        server.script = [endless]
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            stream = await client.chat.completions.create(model="m", messages=USER, stream=True)
            await anext(aiter(stream))
            await stream.close()
        async with asyncio.timeout(100):
            await left.wait()


async def test_each_model_name_goes_to_its_upstream() -> None:
    async with ScriptedOpenAIServer() as one, ScriptedOpenAIServer() as two:
        upstreams = {
            "small": OpenAIUpstream(one.base_url, model="real-small"),
            "big": OpenAIUpstream(two.base_url),
        }
        async with running_rig(upstreams) as rig, rig.client() as client:
            await client.chat.completions.create(model="small", messages=USER)
            await client.chat.completions.create(model="real-small", messages=USER)
            await client.chat.completions.create(model="big", messages=USER)
            with pytest.raises(openai.NotFoundError, match="'small', 'big', 'real-small'"):
                await client.chat.completions.create(model="huge", messages=USER)
            models = [model.id async for model in client.models.list()]
    assert [body["model"] for body in one.bodies] == ["real-small", "real-small"]
    assert [body["model"] for body in two.bodies] == ["big"]
    assert models == ["small", "big", "real-small"]  # what a server has besides is not routed to
