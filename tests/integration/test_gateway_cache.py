"""The response cache from outside: official clients, a real Redis, weights that change, calls not to be shared."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest

from agentlightning.gateway import EngineUpstream, MemoryCache, OpenAIUpstream, RedisCache, ResponseCache, RetryPolicy
from agentlightning.gateway.spans import CACHED
from agentlightning.kit.errors import ConfigError
from agentlightning.schemas import GenerateRequest, GenerateResult
from tests.redis_server import RedisServer
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import ScriptedEngine, ScriptedOpenAIServer, always

GREEDY = {"temperature": 0}
ASK = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "sql", "parameters": {"type": "object"}}}


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        return MemoryCache()
    return RedisCache(request.getfixturevalue("redis_url"), prefix=f"agl:test:{uuid.uuid4().hex}:")


@asynccontextmanager
async def cached(store: Any = "memory", engine: ScriptedEngine | None = None, **options: Any) -> AsyncGenerator[Rig]:
    engine = engine or ScriptedEngine()
    async with running_rig([EngineUpstream(engine)], cache=ResponseCache(store, **options)) as rig:
        rig.engine = engine
        yield rig


async def chat(rig: Rig, mode: Any = "val", rollout: Any = None, **options: Any) -> Any:
    """One call on a rollout of its own, unless one is given."""
    rollout = rollout or await rig.rollout(mode=mode)
    request = {"model": "default", "messages": ASK, **GREEDY, **options}
    async with rig.client(rollout) as client:
        answer = await client.chat.completions.create(**request)
        if not request.get("stream"):
            return answer
        return [chunk async for chunk in answer]


async def in_flight(rig: Rig, calls: int) -> None:
    async with asyncio.timeout(100):
        while rig.gateway.stats()["in_flight"] < calls:  # noqa: ASYNC110 - they come over a socket
            await asyncio.sleep(0.01)


async def test_the_same_call_is_answered_once_and_recorded_twice(store: Any) -> None:
    async with cached(store) as rig:
        first, second = await rig.rollout(mode="val"), await rig.rollout(mode="val")
        answers = [await chat(rig, rollout=rollout) for rollout in (first, second)]
        assert answers[0] == answers[1]
        assert len(rig.engine.requests) == 1
        [sampled], [repeated] = await rig.calls(first), await rig.calls(second)
        assert sampled.trainable
        assert "response cache" in (repeated.not_trainable_because or "")
        assert repeated.response_token_ids == sampled.response_token_ids
        assert repeated.response_logprobs == sampled.response_logprobs
        assert repeated.model_version == sampled.model_version
        [span] = await rig.spans(second)
        assert span.attributes[CACHED] is True
        assert CACHED not in (await rig.spans(first))[0].attributes
        stats = rig.gateway.stats()["cache"]
        assert stats is not None
        assert (stats["hits"], stats["misses"], stats["stored"]) == (1, 1, 1)
        assert stats["saved_tokens"] == len(sampled.response_token_ids or [])


async def test_a_streamed_hit_streams_what_was_streamed(store: Any) -> None:
    async with cached(store) as rig:
        options = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
        first = await chat(rig, **options)
        rollout = await rig.rollout(mode="val")
        second = await chat(rig, rollout=rollout, **options)
        assert len(first) > 5
        assert [chunk.model_dump() for chunk in first] == [chunk.model_dump() for chunk in second]
        assert len(rig.engine.requests) == 1
        calls = await rig.calls(rollout)
        assert [call.choice for call in calls] == [0, 1]
        assert not any(call.trainable for call in calls)
        assert all(call.response_token_ids for call in calls)
        await chat(rig, n=2)  # not streamed: another request
        assert len(rig.engine.requests) == 2


async def test_tool_calls_streamed_and_not(store: Any) -> None:
    async with cached(store) as rig:
        use = {"messages": [{"role": "user", "content": "use the tool"}], "tools": [TOOL]}
        whole = [await chat(rig, **use) for _ in range(2)]
        assert whole[0].choices[0].message.tool_calls[0].function.name == "sql"
        assert whole[0] == whole[1]
        streamed = [await chat(rig, **use, stream=True) for _ in range(2)]
        assert streamed[0] == streamed[1]
        assert len(rig.engine.requests) == 2


async def test_anthropics_and_openais_calls_do_not_share_answers(store: Any) -> None:
    async with cached(store) as rig:
        await chat(rig, max_tokens=9)
        request = {"model": "default", "max_tokens": 9, "extra_body": GREEDY, "messages": ASK}
        told: list[Any] = []
        for stream in (False, False, True, True):
            rollout = await rig.rollout(mode="val")
            base = rig.base_url(rollout).removesuffix("/v1")
            async with anthropic.AsyncAnthropic(base_url=base, api_key="any") as client:
                if stream:
                    async with client.messages.stream(**request) as events:
                        message = await events.get_final_message()
                else:
                    message = await client.messages.create(**request)
            told.append(message)
        assert len({message.content[0].text for message in told}) == 1
        assert len({message.id for message in told}) == 4
        assert len(rig.engine.requests) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "hello "}]},
        {"messages": [{"role": "system", "content": "hello"}]},
        {"max_tokens": 7},
        {"stop": ["x"]},
        {"n": 2},
        {"top_p": 0.5},
        {"tools": [TOOL]},
        {"temperature": 1, "seed": 1},
        {"logprobs": True},
        {"user": "somebody"},
        {"model": "scripted-1"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_any_other_request_is_another_call(change: dict[str, Any]) -> None:
    async with cached() as rig:
        await chat(rig)
        await chat(rig, **change)
        assert len(rig.engine.requests) == 2


async def test_other_weights_are_never_answered_for(store: Any) -> None:
    async with cached(store) as rig:
        await chat(rig)
        rig.engine.info.model_version = "v8"
        await chat(rig)
        assert len(rig.engine.requests) == 2
        assert (await chat(rig)).system_fingerprint == "v8"
        rig.engine.info.model_version = "v7"
        assert (await chat(rig)).system_fingerprint == "v7"
        assert len(rig.engine.requests) == 2


async def test_weights_that_change_during_a_call_leave_nothing_behind() -> None:
    class Changing(ScriptedEngine):
        async def generate(self, request: GenerateRequest) -> GenerateResult:
            result = await super().generate(request)
            if len(self.requests) == 2:
                self.info.model_version = "v8"
            return result

    async with cached(engine=Changing()) as rig:
        await chat(rig, max_tokens=1)
        await chat(rig)
        rig.engine.info.model_version = "v7"
        await chat(rig)
        assert len(rig.engine.requests) == 3
        stats = rig.gateway.stats()["cache"]
        assert stats is not None
        assert stats["not_cacheable"]["version_changed"] == 1


async def test_two_engines_with_the_same_version_name_are_told_apart(redis_url: str) -> None:
    prefix = f"agl:test:{uuid.uuid4().hex}:"
    for _ in range(2):
        async with cached(RedisCache(redis_url, prefix=prefix)) as rig:
            await chat(rig)
            assert len(rig.engine.requests) == 1


@pytest.mark.parametrize(
    ("mode", "options", "reason"),
    [
        ("train", {}, "mode"),
        (None, {}, "mode"),
        ("val", {"temperature": 0.7}, "unseeded"),
        ("val", {"temperature": None}, "unseeded"),
    ],
)
async def test_what_is_not_cached_by_default(mode: Any, options: dict[str, Any], reason: str) -> None:
    async with cached() as rig:
        for _ in range(2):
            await chat(rig, mode=mode, **options)
        assert len(rig.engine.requests) == 2
        stats = rig.gateway.stats()["cache"]
        assert stats is not None
        assert stats["not_cacheable"] == {reason: 2}


async def test_sampling_without_a_seed_is_cached_when_somebody_says_so() -> None:
    async with cached(unseeded=True, modes=["train"]) as rig:
        for _ in range(2):
            await chat(rig, mode="train", temperature=1.0)
        assert len(rig.engine.requests) == 1


async def test_a_seed_makes_sampling_repeatable() -> None:
    async with cached() as rig:
        for seed in (1, 2, 1):
            await chat(rig, temperature=1.0, seed=seed)
        assert len(rig.engine.requests) == 2


async def test_a_greedy_answer_does_not_depend_on_the_seed() -> None:
    async with cached() as rig:
        rig.gateway.set_sampling("val", {"temperature": 0}, seed_base=7)  # gives each call a seed of its own
        for _ in range(3):
            await chat(rig, temperature=1.0)
        assert len(rig.engine.requests) == 1


async def test_calls_without_a_rollout_are_cached_on_request() -> None:
    for unattributed, asked in ((False, 2), (True, 1)):
        async with cached(unattributed=unattributed) as rig:
            async with rig.client() as client:
                for _ in range(2):
                    await client.chat.completions.create(model="default", messages=ASK, **GREEDY)
            assert len(rig.engine.requests) == asked


async def test_the_same_call_many_times_at_once_is_asked_once(store: Any) -> None:
    async with cached(store) as rig:
        rig.engine.gate.clear()
        calls = [asyncio.create_task(chat(rig)) for _ in range(10)]
        await in_flight(rig, 10)
        await asyncio.sleep(0.3)  # until all have looked into the cache
        rig.engine.gate.set()
        answers = await asyncio.gather(*calls)
        assert len({answer.id for answer in answers}) == 1
        assert len(rig.engine.requests) == 1
        stats = rig.gateway.stats()["cache"]
        assert stats is not None
        assert stats["joined"] + stats["hits"] >= 9


async def test_when_the_first_of_them_fails_the_others_ask_for_themselves() -> None:
    class Failing(ScriptedEngine):
        async def generate(self, request: GenerateRequest) -> GenerateResult:
            self.requests.append(request)
            is_first = len(self.requests) == 1
            await self.gate.wait()
            if is_first:
                raise ConnectionError("gone")
            return self._result(request)

    async with cached(engine=Failing()) as rig:
        rig.engine.gate.clear()
        calls = [asyncio.create_task(chat(rig)) for _ in range(4)]
        await in_flight(rig, 4)
        rig.engine.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert len([result for result in results if isinstance(result, Exception)]) == 1
        assert len(rig.engine.requests) > 1


async def test_failures_and_broken_streams_are_not_kept() -> None:
    async with cached() as rig:
        rig.engine.error = ConnectionError("gone")
        for options in ({}, {"stream": True}):
            with pytest.raises(Exception, match="not reachable"):
                await chat(rig, **options)
        rig.engine.error = None
        await chat(rig)
        await chat(rig, stream=True)
        assert len(rig.engine.requests) == 4


async def test_a_client_that_leaves_a_stream_leaves_nothing_behind() -> None:
    async with cached() as rig:
        rig.engine.delay_s = 0.05
        async with rig.client(await rig.rollout(mode="val")) as client:
            stream = await client.chat.completions.create(model="default", messages=ASK, stream=True, **GREEDY)
            await anext(aiter(stream))
            await stream.close()
        rig.engine.delay_s = 0
        chunks = await chat(rig, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "echo 0 None hello"
        assert len(rig.engine.requests) == 2


async def test_a_redis_that_goes_away_costs_nothing_but_the_cache(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "agentlightning.gateway")
    async with cached(RedisCache(own_redis.url, pause_s=0.0)) as rig:
        await chat(rig)
        await chat(rig)
        assert len(rig.engine.requests) == 1
        own_redis.stop()
        for _ in range(3):
            await chat(rig)
        assert len(rig.engine.requests) == 4
        own_redis.start()
        await chat(rig)
        await chat(rig)
        assert len(rig.engine.requests) == 5
        stats = rig.gateway.stats()["cache"]
        assert stats is not None
        assert stats["errors"] >= 3
    messages = [record.message for record in caplog.records]
    assert len([text for text in messages if "is away" in text]) == 1
    assert len([text for text in messages if "is back" in text]) == 1


async def test_a_redis_that_failed_is_left_alone_for_a_while(own_redis: RedisServer) -> None:
    store = RedisCache(own_redis.url, pause_s=600)
    own_redis.stop()
    async with cached(store) as rig:
        for _ in range(5):
            await chat(rig)
        assert store.errors == 1


async def test_entries_in_redis_have_the_prefix_and_expire(own_redis: RedisServer) -> None:
    import redis.asyncio

    async with cached(RedisCache(own_redis.url), ttl_s=77) as rig:
        await chat(rig)
        async with redis.asyncio.Redis.from_url(own_redis.url) as client:
            [key] = await client.keys()
            assert key.startswith(b"agl:cache:")
            assert len(key) == len(b"agl:cache:") + 64
            assert 0 < await client.ttl(key) <= 77
            await client.set(key, b"\xff nonsense")
        await chat(rig)
        assert len(rig.engine.requests) == 2


async def test_a_server_that_names_no_version_is_cached_under_a_declared_one() -> None:
    async def times_asked(**options: Any) -> int:
        async with ScriptedOpenAIServer() as server:
            upstream = OpenAIUpstream(server.base_url, capture="vllm", retry=RetryPolicy(max_attempts=1))
            async with running_rig([upstream], cache=ResponseCache(**options)) as rig:
                answers = [await chat(rig) for _ in range(2)]
                streams = [await chat(rig, stream=True) for _ in range(2)]
            assert answers[0].model_dump() == answers[1].model_dump()
            assert [c.model_dump() for c in streams[0]] == [c.model_dump() for c in streams[1]]
            assert answers[1].model_extra["x_unknown"] == {"kept": True}
            return len(server.bodies)

    assert await times_asked() == 4
    assert await times_asked(model_versions={"default": "1"}) == 2
    assert await times_asked(model_versions={"*": "1"}) == 2
    assert await times_asked(model_versions={"other": "1"}) == 4


async def test_an_answer_too_large_or_without_choices_is_not_kept() -> None:
    async with cached(max_entry_bytes=100) as rig:
        for _ in range(2):
            await chat(rig)
        assert len(rig.engine.requests) == 2
    async with ScriptedOpenAIServer() as server:
        server.script = [always({"id": "x", "choices": []})] * 2
        upstream = OpenAIUpstream(server.base_url, capture="none", retry=RetryPolicy(max_attempts=1))
        async with running_rig([upstream], cache=ResponseCache(model_versions={"*": "1"})) as rig:
            rollout = await rig.rollout(mode="val")
            for _ in range(2):
                await chat(rig, rollout=rollout)
            calls = await rig.calls(rollout)
    assert len(server.bodies) == 2
    assert [call.not_trainable_because for call in calls] == ["the response has no choices"] * 2


async def test_memory_keeps_to_its_bound_and_to_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryCache(max_bytes=1100)
    for key in (b"a", b"b", b"c"):
        assert await memory.put(key, b"x" * 100, 10)
    assert await memory.get(b"a")
    assert await memory.put(b"d", b"x" * 100, 10)  # b is the one not asked for the longest
    assert [await memory.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert not await memory.put(b"e", b"x" * 1000, 10)
    await memory.put(b"a", b"y", 10)
    assert await memory.get(b"a") == b"y"
    await memory.put(b"f", b"z", 0)
    assert await memory.get(b"f") is None
    assert memory.size() == (3, 100 + 100 + 1 + 3 * 200)


@pytest.mark.parametrize("where", ["disk", "http://127.0.0.1", "redis://127.0.0.1:port"])
def test_a_place_that_cannot_be_used_is_an_error(where: str) -> None:
    with pytest.raises(ConfigError):
        ResponseCache(where)


async def test_health_shows_the_cache() -> None:
    import aiohttp

    async with cached() as rig, aiohttp.ClientSession() as session, session.get(f"{rig.gateway.url}/health") as answer:
        stats = (await answer.json())["stats"]["cache"]
    assert (stats["hits"], stats["entries"], stats["bytes"]) == (0, 0, 0)
