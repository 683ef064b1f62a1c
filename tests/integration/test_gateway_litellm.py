"""The real LiteLLM library as an upstream, in front of a scripted Gemini API. Skipped where it is not installed:
`make frameworks` builds an environment with it, `make test-all` runs this file there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from agentlightning.gateway import LiteLLMUpstream, RetryPolicy
from tests.unit.gateway.rig import USER, Rig, running_rig
from tests.unit.gateway.scripted_gemini import ScriptedGemini, events, refuse

pytest.importorskip("litellm", reason="LiteLLM is not installed; `make frameworks` builds an environment with it")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pydantic, about LiteLLM's types
KEY = "key-of-the-gateway"
PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOL = {"type": "function", "function": {"name": "sql", "description": "Run it.", "parameters": PARAMETERS}}
USE_TOOL = [{"role": "user", "content": "use the tool"}]
NO_IDS = "the upstream does not report token ids"


@pytest.fixture(autouse=True)
def no_price_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LITELLM_LOCAL_MODEL_COST_MAP", raising=False)


@asynccontextmanager
async def fronted(**options: Any) -> AsyncGenerator[tuple[Rig, ScriptedGemini, Any]]:
    options = {"retry": RetryPolicy(max_attempts=1), **options}
    async with ScriptedGemini() as gemini:
        upstream = LiteLLMUpstream("gemini/gemini-2.5-flash", KEY, name="flash", base_url=gemini.base_url, **options)
        async with running_rig([upstream]) as rig:
            rollout = await rig.rollout()
            yield rig, gemini, rollout


async def test_a_call_is_translated_there_and_back() -> None:
    async with fronted() as (rig, gemini, rollout), rig.client(rollout) as client:
        answer = await client.chat.completions.create(
            model="flash",
            messages=[{"role": "system", "content": "be brief"}, *USER],
            temperature=0.5,
            max_tokens=9,
            user="somebody",
            metadata={"kept": "here"},
            store=False,
        )
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("hello there", "stop")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2)
        assert set(answer.model_dump(exclude_none=True)) <= {"id", "object", "created", "model", "choices", "usage"}
        [body] = gemini.bodies
        assert body["system_instruction"]["parts"] == [{"text": "be brief"}]
        assert (body["generationConfig"]["temperature"], body["generationConfig"]["max_output_tokens"]) == (0.5, 9)
        assert gemini.keys == [KEY]
        [call] = await rig.calls(rollout)
        assert (call.not_trainable_because, call.trainable) == (NO_IDS, False)
        assert (call.output, call.model) == ({"role": "assistant", "content": "hello there"}, "gemini-2.5-flash")
        [span] = await rig.spans(rollout)
        assert KEY not in str(span.attributes)


async def test_tools_go_round() -> None:
    async with fronted() as (rig, gemini, rollout), rig.client(rollout) as client:
        whole = await client.chat.completions.create(
            model="flash", messages=USE_TOOL, tools=[TOOL], tool_choice="required"
        )
        message = whole.choices[0].message
        assert (whole.choices[0].finish_reason, message.content) == ("tool_calls", None)
        assert (message.tool_calls[0].function.name, message.tool_calls[0].function.arguments) == (
            "sql",
            '{"query": "SELECT 1"}',
        )
        assert gemini.bodies[0]["tools"][0]["function_declarations"][0]["name"] == "sql"
        assert gemini.bodies[0]["toolConfig"]["functionCallingConfig"]["mode"] == "ANY"
        history = [
            *USE_TOOL,
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "1 row: 1"},
        ]
        await client.chat.completions.create(model="flash", messages=history, tools=[TOOL])
        *_, asked, told = gemini.bodies[1]["contents"]
        assert asked["parts"][-1]["function_call"]["name"] == "sql"
        assert "1 row: 1" in str(told["parts"])
        stream = await client.chat.completions.create(model="flash", messages=USE_TOOL, tools=[TOOL], stream=True)
        deltas = [chunk.choices[0] async for chunk in stream]
        [streamed] = [delta.delta.tool_calls[0] for delta in deltas if delta.delta.tool_calls]
        assert (streamed.function.name, deltas[-1].finish_reason) == ("sql", "tool_calls")
        first, _, third = await rig.calls(rollout)
        assert first.output["tool_calls"][0]["function"] == third.output["tool_calls"][0]["function"]


@pytest.mark.parametrize("usage", [False, True])
async def test_a_stream_streams_with_usage_when_asked_for(usage: bool) -> None:
    async with fronted() as (rig, _, rollout), rig.client(rollout) as client:
        options = {"include_usage": True} if usage else None
        stream = await client.chat.completions.create(model="flash", messages=USER, stream=True, stream_options=options)
        chunks = [chunk async for chunk in stream]
        texts = [c.delta.content for chunk in chunks for c in chunk.choices if c.delta.content]
        assert texts == ["hello", " there"]
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([2] if usage else [])
        assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
        [span] = await rig.spans(rollout)
        assert span.attributes["gen_ai.usage.input_tokens"] == 3


async def test_anthropic_clients_reach_it_too() -> None:
    async with fronted() as (rig, _, rollout):
        base_url = rig.base_url(rollout).removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base_url, api_key="any") as client:
            request: Any = {"model": "flash", "max_tokens": 9, "messages": USER}
            whole = await client.messages.create(**request)
            async with client.messages.stream(**request) as stream:
                streamed = await stream.get_final_message()
        assert whole.content[0].text == streamed.content[0].text == "hello there"
        assert streamed.usage.output_tokens == 2
        assert len(await rig.calls(rollout)) == 2


@pytest.mark.parametrize(
    ("status", "headers", "expected", "retry_after"),
    [
        (400, None, openai.BadRequestError, None),
        (404, None, openai.NotFoundError, None),
        (429, {"Retry-After": "7"}, openai.RateLimitError, "7"),
        (503, None, openai.InternalServerError, None),
    ],
)
async def test_refusals_keep_their_kind_and_no_key(
    status: int, headers: dict[str, str] | None, expected: type[openai.APIStatusError], retry_after: str | None
) -> None:
    async with fronted() as (rig, gemini, rollout), rig.client(rollout) as client:
        gemini.script.append(refuse(status, f"that is wrong, {KEY}", headers))
        with pytest.raises(expected, match=r"that is wrong, \*\*\*") as caught:
            await client.chat.completions.create(model="flash", messages=USER)
        assert (caught.value.status_code, caught.value.response.headers.get("retry-after")) == (status, retry_after)
        [span] = await rig.spans(rollout)
        assert span.attributes["agentlightning.call.error_status"] == status
        assert KEY not in str(span.attributes)


async def test_what_goes_wrong_has_a_name() -> None:
    async with fronted(timeout_s=1.5) as (rig, gemini, rollout), rig.client(rollout) as client:

        async def reason(**more: Any) -> tuple[int, str | None, str | None]:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="flash", messages=USER, **more)
            return caught.value.status_code, caught.value.code, caught.value.param

        gemini.script.append(refuse(401, "API key not valid"))
        assert await reason() == (502, "upstream_auth_failed", None)
        gemini.script.append(refuse(400, "The input token count exceeds the maximum number of tokens allowed (9)."))
        assert await reason() == (400, "context_length_exceeded", None)
        assert await reason(logit_bias={"1": 1}) == (400, "unsupported_parameter", "logit_bias")
        gemini.script.append(gemini.hang())
        assert await reason() == (504, "timeout", None)
        assert len(gemini.bodies) == 3


async def test_an_agent_cannot_set_what_is_the_gateways() -> None:
    async with fronted() as (rig, gemini, rollout), rig.client(rollout) as client:
        for name in ("api_base", "base_url", "api_key", "mock_response", "extra_headers", "fallbacks"):
            with pytest.raises(openai.BadRequestError, match=f"'{name}' cannot be sent"):
                await client.chat.completions.create(model="flash", messages=USER, extra_body={name: "http://x"})
        assert gemini.bodies == []


@pytest.mark.parametrize("broken", ["silent", "cut"])
async def test_a_stream_that_breaks_is_an_error_and_keeps_what_came(broken: str) -> None:
    async def cut() -> Any:
        return events([{"candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}}]}], breaks=True)

    async with fronted(timeout_s=1.5) as (rig, gemini, rollout), rig.client(rollout) as client:
        gemini.script.append(gemini.hang() if broken == "silent" else cut)
        stream = await client.chat.completions.create(model="flash", messages=USER, stream=True)
        with pytest.raises(openai.APIError):
            _ = [chunk async for chunk in stream]
        if broken == "silent":
            await asyncio.wait_for(gemini.cancelled.wait(), 100)
        [call] = await rig.calls(rollout)
        assert (call.not_trainable_because, call.output["content"]) == ("the call failed", "hello")


async def test_a_client_that_leaves_ends_the_request() -> None:
    async with fronted() as (rig, gemini, rollout), rig.client(rollout) as client:
        gemini.script.append(gemini.hang())
        stream = await client.chat.completions.create(model="flash", messages=USER, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await asyncio.wait_for(gemini.cancelled.wait(), 100)


async def test_a_busy_provider_is_asked_again() -> None:
    retry = RetryPolicy(max_attempts=2, base_s=0.01)
    async with fronted(retry=retry) as (rig, gemini, rollout), rig.client(rollout) as client:
        gemini.script.append(refuse(429, "busy", {"Retry-After": "0.01"}))
        answer = await client.chat.completions.create(model="flash", messages=USER, seed=3)
        assert answer.choices[0].message.content == "hello there"
        assert len(gemini.bodies) == 2
        assert len(await rig.calls(rollout)) == 1


async def test_a_provider_that_is_not_there_is_named() -> None:
    upstream = LiteLLMUpstream("gemini/x", KEY, base_url="http://127.0.0.1:9", retry=RetryPolicy(max_attempts=1))
    async with running_rig([upstream]) as rig, rig.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="gemini/x", messages=USER)
        assert (caught.value.status_code, caught.value.code) == (503, "upstream_unreachable")


async def test_embeddings_and_token_counts() -> None:
    async with fronted() as (rig, _, rollout):
        async with rig.client() as client:
            plain = await client.embeddings.create(model="flash", input=["a", "b"])  # asks for base64
            exact = await client.embeddings.create(model="flash", input="a", encoding_format="float")
        assert [item.embedding for item in plain.data] == [[0.5, 0.25]] * 2
        assert exact.data[0].embedding == [0.5, 0.25]
        base_url = rig.base_url(rollout).removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base_url, api_key="any") as client:
            messages: Any = USER
            counted = await client.messages.count_tokens(model="flash", messages=messages)
        assert counted.input_tokens == 3


GUARD = """
import asyncio, socket, sys
connect = socket.socket.connect
def refuse(self, address):
    sys.exit(f"network: {address}")
socket.socket.connect = refuse
socket.getaddrinfo = lambda *a, **k: sys.exit(f"network: {a}")
from agentlightning.gateway import LiteLLMUpstream
upstream = LiteLLMUpstream("gemini/x", "k")
assert "litellm" not in sys.modules
asyncio.run(upstream._load())
assert "litellm" in sys.modules
"""


def test_its_import_is_late_and_makes_no_connection() -> None:
    done = subprocess.run([sys.executable, "-c", GUARD], capture_output=True, text=True, timeout=90, env=os.environ)
    assert (done.returncode, done.stderr[-2000:]) == (0, "")
