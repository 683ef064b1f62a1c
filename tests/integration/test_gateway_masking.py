"""Masking from outside: what is stored and logged is masked; what the model sees and the agent reads never is."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from agentlightning.gateway import EngineUpstream, MaskingPolicy, RedisCache, ResponseCache
from agentlightning.gateway.spans import MASKED
from agentlightning.kit.errors import ConfigError, StorageError
from agentlightning.store import InMemoryLightningStore
from agentlightning.store.records import record_from_span
from tests.unit.gateway.fronted import fronted
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import ScriptedEngine, always, completion, sse

MAIL, PHONE, CARD = "jane.doe@example.com", "+1 415-555-2671", "4111 1111 1111 1111"
SAID = f"I am {MAIL}, {PHONE}, card {CARD}"
TOOL = {"type": "function", "function": {"name": "mail", "description": f"ask {MAIL}", "parameters": {}}}


@asynccontextmanager
async def masked(engine: ScriptedEngine | None = None, **policy: Any) -> AsyncGenerator[Rig]:
    engine = engine or ScriptedEngine()
    async with running_rig([EngineUpstream(engine)], masking=MaskingPolicy(**policy)) as rig:
        rig.engine = engine
        yield rig


async def stored(rig: Rig, rollout: Any) -> bytes:
    """Every byte that the store was given of the rollout's calls."""
    return b"".join(record_from_span(span).body for span in await rig.spans(rollout))


def is_clean(data: bytes) -> bool:
    return not any(word.encode() in data for word in (MAIL, PHONE, CARD))


@pytest.mark.parametrize("stream", [False, True])
async def test_the_record_is_masked_and_nothing_else(stream: bool) -> None:
    async with masked() as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            answer = await client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": SAID}],
                tools=[TOOL],
                user=MAIL,
                stream=stream,
                n=2,
            )
            texts = {0: "", 1: ""}
            if stream:
                async for chunk in answer:
                    for choice in chunk.choices:
                        texts[choice.index] += choice.delta.content or ""
            else:
                texts = {choice.index: choice.message.content for choice in answer.choices}
        assert texts == {index: f"echo {index} None {SAID}" for index in (0, 1)}
        [request] = rig.engine.requests
        assert (request.messages or [])[0]["content"] == SAID
        assert MAIL in str(request.tools)
        assert is_clean(await stored(rig, rollout))
        calls = await rig.calls(rollout)
        assert [call.output["content"] for call in calls] == [
            f"echo {index} None I am [email], [phone], card [card]" for index in (0, 1)
        ]
        for call, span in zip(calls, await rig.spans(rollout), strict=True):
            assert span.attributes[MASKED] == ["card", "email", "phone"]
            assert "masked" in (call.not_trainable_because or "")
            assert (call.prompt_token_ids, call.response_token_ids, call.response_logprobs) == (None, None, None)
            assert span.attributes["gen_ai.usage.output_tokens"] > 0
        assert rig.gateway.stats()["not_trainable"] == {calls[0].not_trainable_because: 2}


async def test_a_call_with_nothing_to_mask_stays_trainable() -> None:
    async with masked() as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            await client.chat.completions.create(model="default", messages=[{"role": "user", "content": "hello"}])
        [call] = await rig.calls(rollout)
        assert call.trainable
        assert MASKED not in (await rig.spans(rollout))[0].attributes


async def test_token_ids_are_kept_when_the_policy_says_so() -> None:
    async with masked(token_ids="keep") as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            await client.chat.completions.create(model="default", messages=[{"role": "user", "content": SAID}])
        [call] = await rig.calls(rollout)
        assert call.trainable
        assert call.response_token_ids
        assert is_clean(await stored(rig, rollout))


@pytest.mark.parametrize("places", [{"prompts"}, {"completions"}])
async def test_places_that_are_not_named_are_left_alone(places: Any) -> None:
    async with masked(places=frozenset(places)) as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            await client.chat.completions.create(model="default", messages=[{"role": "user", "content": SAID}])
        [call] = await rig.calls(rollout)
        assert (MAIL not in str(call.messages)) == ("prompts" in places)
        assert (MAIL not in str(call.output)) == ("completions" in places)


@pytest.mark.parametrize("stream", [False, True])
async def test_arguments_of_tool_calls_are_masked_and_stay_json(stream: bool) -> None:
    arguments = f'{{"to": "{MAIL}", "card": 4111111111111111}}'
    tool_call = {"id": "c1", "type": "function", "function": {"name": "mail", "arguments": arguments}}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    async def streamed(request: Any, body: dict[str, Any]) -> Any:
        pieces = [arguments[at : at + 5] for at in range(0, len(arguments), 5)]  # an address over several chunks
        head = [{"index": 0, **tool_call, "function": {"name": "mail", "arguments": ""}}]
        events = [chunk({"tool_calls": head})]
        events += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in pieces]
        return sse([*events, chunk({}, "tool_calls"), "[DONE]"])

    async with fronted({"masking": MaskingPolicy()}, capture="none") as (rig, server):
        answer = completion({"messages": []})
        answer["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [tool_call]}
        server.script = [streamed if stream else always(answer)]
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            got = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=stream
            )
            read = ""
            if stream:
                async for event in got:
                    for choice in event.choices:
                        for call in choice.delta.tool_calls or ():
                            read += call.function.arguments or ""
            else:
                read = got.choices[0].message.tool_calls[0].function.arguments
        assert read == arguments
        [call] = await rig.calls(rollout)
        assert call.output["tool_calls"][0]["function"]["arguments"] == '{"to":"[email]","card":"[card]"}'


async def test_errors_are_recorded_masked_and_told_as_they_are() -> None:
    engine = ScriptedEngine()
    engine.error = ConnectionError(f"no account {MAIL}")
    async with masked(engine) as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            with pytest.raises(openai.InternalServerError, match=MAIL):
                await client.chat.completions.create(model="default", messages=[{"role": "user", "content": SAID}])
        assert is_clean(await stored(rig, rollout))
        [span] = await rig.spans(rollout)
        assert "no account [email]" in span.attributes["exception.message"]
        assert "no account [email]" in (span.status.description or "")


async def test_a_conversation_goes_on_with_what_was_really_said() -> None:
    async with masked() as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            first = await client.responses.create(model="default", input=SAID, instructions="be brief")
            second = await client.responses.create(model="default", input="and?", previous_response_id=first.id)
            await client.responses.create(model="default", input="so?", previous_response_id=second.id)
        contents = [message["content"] for message in rig.engine.requests[-1].messages or []]
        assert contents == [SAID, f"echo 0 None {SAID}", "and?", "echo 0 None and?", "so?"]
        assert is_clean(await stored(rig, rollout))


async def test_a_masked_conversation_that_is_no_longer_remembered_is_refused() -> None:
    class Store(InMemoryLightningStore):
        async def close(self) -> None: ...

    store = Store()
    async with running_rig(store=store, masking=MaskingPolicy()) as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            first = await client.responses.create(model="default", input=SAID)
            plain = await client.responses.create(model="default", input="hello")
    async with running_rig(store=store) as rig, rig.client(rollout) as client:
        await client.responses.create(model="default", input="and?", previous_response_id=plain.id)
        with pytest.raises(openai.BadRequestError, match="is recorded masked"):
            await client.responses.create(model="default", input="and?", previous_response_id=first.id)
    await InMemoryLightningStore.close(store)


async def test_a_conversation_goes_on_while_the_store_is_away(tmp_path: Path) -> None:
    class Away(InMemoryLightningStore):
        is_away = False

        async def add_many_spans(self, spans: Any) -> Any:
            if self.is_away:
                raise StorageError("away")
            return await super().add_many_spans(spans)

        async def query_spans(self, *arguments: Any, **options: Any) -> Any:
            if self.is_away:
                raise StorageError("away")
            return await super().query_spans(*arguments, **options)

    store = Away()
    async with running_rig(store=store, spool=tmp_path) as rig:
        rollout = await rig.rollout()
        store.is_away = True
        async with rig.client(rollout) as client:
            first = await client.responses.create(model="default", input="one")
            await client.responses.create(model="default", input="two", previous_response_id=first.id)
            with pytest.raises(openai.InternalServerError, match="store is away"):
                await client.responses.create(model="default", input="two", previous_response_id="resp_x")
        store.is_away = False
        await rig.gateway.delivered()
        assert len(await rig.calls(rollout)) == 3


async def test_anthropic_calls_are_masked_too() -> None:
    async with masked() as rig:
        rollout = await rig.rollout()
        base = rig.base_url(rollout).removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base, api_key="any") as client:
            message = await client.messages.create(
                model="default", max_tokens=9, system=f"You serve {MAIL}", messages=[{"role": "user", "content": SAID}]
            )
        assert SAID in message.content[0].text
        assert is_clean(await stored(rig, rollout))


async def test_logs_are_masked_while_the_gateway_is_up(caplog: pytest.LogCaptureFixture) -> None:
    async with masked():
        logging.getLogger("agentlightning.gateway").warning("for %s", MAIL)
    logging.getLogger("agentlightning.gateway").warning("for %s", MAIL)
    assert [record.getMessage() for record in caplog.records] == ["for [email]", f"for {MAIL}"]


async def test_a_cache_in_redis_beside_masking_has_to_be_meant() -> None:
    with pytest.raises(ConfigError, match="unmasked"):
        async with running_rig(masking=MaskingPolicy(), cache=ResponseCache("redis://127.0.0.1:1/0")):
            pass
    store = RedisCache("redis://127.0.0.1:1/0", unmasked=True)
    async with running_rig(masking=MaskingPolicy(), cache=ResponseCache(store)):
        pass
