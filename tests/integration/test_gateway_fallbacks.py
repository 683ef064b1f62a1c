"""Several targets behind one model name: fallbacks, breakers, weights, places, and routes that change under way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest

from agentlightning.gateway import (
    AnthropicUpstream,
    BreakerPolicy,
    CallLimits,
    OpenAIUpstream,
    RetryPolicy,
    Route,
    RoutingTable,
    Target,
    TargetSettings,
)
from agentlightning.gateway.spans import FAILED_TARGETS, REPLACED_PARAMETERS, TARGET
from agentlightning.schemas import semconv
from tests.unit.gateway.hostile import HostileServer, begun, saying, then_reset, then_silence, whole
from tests.unit.gateway.rig import USER, Rig, running_rig, until
from tests.unit.gateway.scripted import ScriptedOpenAIServer, always
from tests.unit.gateway.scripted_anthropic import ScriptedAnthropicServer

ONCE = RetryPolicy(max_attempts=1)
LIMITED = whole(b'{"error": {"message": "slow down"}}', "429 Too Many Requests")
BROKEN = whole(b'{"error": {"message": "boom"}}', "500 Internal Server Error")
TOO_LONG = whole(b'{"error": {"message": "maximum context length is 8", "code": null}}', "400 Bad Request")
FILTERED = whole(b'{"error": {"message": "no", "code": "content_filter"}}', "400 Bad Request")
WRONG_KEY = whole(b'{"error": {"message": "who are you"}}', "401 Unauthorized")


def upstream(api: str, url: str, idle_timeout_s: float = 100.0) -> Any:
    if api == "anthropic":
        return AnthropicUpstream(url, retry=ONCE, idle_timeout_s=idle_timeout_s)
    return OpenAIUpstream(f"{url}/v1", capture="none", retry=ONCE, idle_timeout_s=idle_timeout_s)


def table_of(*targets: Target, **options: Any) -> RoutingTable:
    table = RoutingTable(may_be_empty=True)
    table.add_route(Route("m", [(targets[0], 1.0)], fallbacks=targets[1:], **options))
    return table


@asynccontextmanager
async def good_server(api: str) -> AsyncGenerator[Any]:
    server = ScriptedAnthropicServer() if api == "anthropic" else ScriptedOpenAIServer()
    async with server:
        yield server


async def ask(rig: Rig, api: str, rollout: Any = None, stream: bool = False, **arguments: Any) -> str:
    if api == "anthropic":
        base_url = rig.base_url(rollout).removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base_url, api_key="x", max_retries=0) as client:
            request: Any = {"model": "m", "max_tokens": 9, "messages": USER, **arguments}
            if not stream:
                return str((await client.messages.create(**request)).content)
            async with client.messages.stream(**request) as events:
                return "".join([part async for part in events.text_stream])
    async with rig.client(rollout) as client:
        answer = await client.chat.completions.create(model="m", messages=USER, stream=stream, **arguments)
        if not stream:
            return answer.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])


@pytest.mark.parametrize("api", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", ["down", "hangs", "limited", "broken", "wrong key", "garbage", "reset before a word"])
async def test_the_next_target_answers_when_one_fails(api: str, stream: bool, fault: str, refusing_url: str) -> None:
    acts = {
        "hangs": then_silence(),
        "limited": saying(LIMITED),
        "broken": saying(BROKEN),
        "wrong key": saying(WRONG_KEY),
        "garbage": saying(whole(b"<html>")),
        "reset before a word": then_reset(begun(api)[0]),
    }
    async with HostileServer(acts.get(fault, saying(b""))) as bad, good_server(api) as good:
        root = good.base_url.removesuffix("/v1")
        url = refusing_url if fault == "down" else bad.url
        first = upstream(api, url, 0.3 if fault == "hangs" else 100.0)
        table = table_of(Target("first", first), Target("second", upstream(api, root)))
        async with running_rig(table) as rig:
            rollout = await rig.rollout()
            assert "hello" in await ask(rig, api, rollout, stream)
            [span] = await rig.spans(rollout)
            states = {state.name: state for state in rig.gateway.routes.states()}
    assert span.status.status_code == "OK"
    assert (span.attributes[TARGET], span.attributes[FAILED_TARGETS]) == ("second", ["first"])
    assert '"hello' in span.attributes[semconv.CALL_OUTPUT_MESSAGES]
    assert (states["first"].calls, states["first"].failures) == (1, 0 if fault == "limited" else 1)
    assert (states["second"].calls, states["second"].failures) == (1, 0)


@pytest.mark.parametrize("api", ["openai", "anthropic"])
async def test_nobody_else_is_asked_once_the_client_has_got_something(api: str) -> None:
    async with HostileServer(then_reset(*begun(api))) as bad, good_server(api) as good:
        second = upstream(api, good.base_url.removesuffix("/v1"))
        async with running_rig(table_of(Target("first", upstream(api, bad.url)), Target("second", second))) as rig:
            rollout = await rig.rollout()
            with pytest.raises((openai.APIError, anthropic.APIError), match="connection broke"):
                await ask(rig, api, rollout, stream=True)
            [span] = await rig.spans(rollout)
    assert good.bodies == []
    assert span.attributes[TARGET] == "first"
    assert FAILED_TARGETS not in span.attributes


@pytest.mark.parametrize(("refusal", "fault"), [(TOO_LONG, "context_length"), (FILTERED, "content_filter")])
@pytest.mark.parametrize("falls_back", [False, True])
async def test_a_refusal_leads_on_only_where_the_route_says_so(refusal: bytes, fault: Any, falls_back: bool) -> None:
    async with HostileServer(saying(refusal)) as small, good_server("openai") as large:
        targets = Target("small", upstream("openai", small.url)), Target("large", OpenAIUpstream(large.base_url))
        options = {"fallback_on": frozenset({fault})} if falls_back else {}
        async with running_rig(table_of(*targets, **options)) as rig:
            if falls_back:
                assert await ask(rig, "openai") == "hello there"
            else:
                with pytest.raises(openai.BadRequestError) as caught:
                    await ask(rig, "openai")
                assert caught.value.code == ("context_length_exceeded" if fault == "context_length" else fault)
            # It says nothing against the server.
            assert rig.gateway.routes.states()[0].failures == 0


async def test_each_target_is_sent_its_own_model_and_parameters() -> None:
    async with good_server("openai") as one, good_server("openai") as two:
        one.script = [always("down", 503)]
        settings = TargetSettings(model="real-one", overrides={"temperature": 0.1, "seed": 4})
        other = TargetSettings(model="real-two", defaults={"top_p": 0.9})
        targets = (
            Target("one", OpenAIUpstream(one.base_url, capture="none", retry=ONCE), settings),
            Target("two", OpenAIUpstream(two.base_url, capture="none", retry=ONCE), other),
        )
        async with running_rig(table_of(*targets)) as rig:
            rollout = await rig.rollout()
            for _ in range(2):
                await ask(rig, "openai", rollout, temperature=0.7)
            first, second = await rig.spans(rollout)
    assert [(b["model"], b["temperature"], b.get("seed")) for b in one.bodies] == [("real-one", 0.1, 4)] * 2
    [body] = two.bodies  # nothing of the first target's parameters
    assert (body["model"], body["temperature"], body["top_p"], body.get("seed")) == ("real-two", 0.7, 0.9, None)
    assert REPLACED_PARAMETERS not in first.attributes
    assert second.attributes[REPLACED_PARAMETERS] == '{"temperature":0.7,"seed":null}'
    assert second.attributes[semconv.CALL_TEMPERATURE] == 0.1
    assert {span.attributes[semconv.REQUEST_MODEL] for span in (first, second)} == {"m"}


async def test_a_stream_that_does_not_begin_in_time_leads_on() -> None:
    async with HostileServer(then_silence(begun("openai")[0])) as slow, good_server("openai") as good:
        patient = OpenAIUpstream(f"{slow.url}/v1", capture="none", retry=ONCE)
        first = Target("slow", patient, TargetSettings(first_token_timeout_s=0.2))
        async with running_rig(table_of(first, Target("good", OpenAIUpstream(good.base_url)))) as rig:
            assert await ask(rig, "openai", stream=True) == "hello there"
            assert "did not begin to answer within 0.2 s" in rig.gateway.routes.states()[0].last_failure
        async with running_rig(table_of(Target("slow", patient, TargetSettings(timeout_s=0.2)))) as rig:
            with pytest.raises(openai.InternalServerError, match=r"did not answer within 0\.2 s"):
                await ask(rig, "openai")


async def test_a_slow_stream_that_has_begun_is_left_to_go_on() -> None:
    parts = begun("openai")
    ended = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    async with HostileServer(saying(*parts, ended, pause_s=1.0)) as slow:
        target = Target(
            "slow", OpenAIUpstream(f"{slow.url}/v1", capture="none"), TargetSettings(first_token_timeout_s=2.5)
        )
        async with running_rig(table_of(target)) as rig:
            assert await ask(rig, "openai", stream=True) == "hello there"


@pytest.mark.parametrize("api", ["openai", "anthropic"])
async def test_a_broken_target_is_left_alone_and_tried_again_later(api: str) -> None:
    breaker = BreakerPolicy(min_calls=3, cool_down_s=0.5)
    async with good_server(api) as server:
        target = Target("only", upstream(api, server.base_url.removesuffix("/v1")), TargetSettings(breaker=breaker))
        async with running_rig(table_of(target)) as rig, httpx.AsyncClient() as plain:

            async def broken(*_: Any) -> Any:
                return await always("oops", 500)(*_) if api == "openai" else await always("oops", 500)(*_, {})  # type: ignore[call-arg]

            server.script = [broken] * 3
            for _ in range(3):
                with pytest.raises((openai.InternalServerError, anthropic.InternalServerError), match="oops"):
                    await ask(rig, api)
            with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)) as caught:
                await ask(rig, api)
            assert caught.value.status_code == 503
            assert "kept failing" in str(caught.value)
            assert "oops" in str(caught.value)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert len(server.bodies) == 3
            health = (await plain.get(f"{rig.gateway.url}/health")).json()
            assert (health["status"], health["stats"]["targets"]) == ("degraded", {"only": "open"})
            [shown] = health["targets"]
            assert (shown["name"], shown["state"], shown["opened"], shown["failures"]) == ("only", "open", 1, 3)
            await asyncio.sleep(0.6)
            assert "hello" in await ask(rig, api)
            assert rig.gateway.routes.states()[0].state == "closed"


async def test_an_open_target_is_passed_over_without_being_asked() -> None:
    async with HostileServer(saying(BROKEN)) as bad, good_server("openai") as good:
        breaker = TargetSettings(breaker=BreakerPolicy(min_calls=2, cool_down_s=60))
        targets = Target("bad", upstream("openai", bad.url), breaker), Target("good", OpenAIUpstream(good.base_url))
        async with running_rig(table_of(*targets)) as rig:
            for _ in range(6):
                assert await ask(rig, "openai") == "hello there"
    assert len(bad.requests) == 2
    assert len(good.bodies) == 6


async def test_clients_that_leave_and_requests_that_are_wrong_do_not_open_it() -> None:
    async with HostileServer(then_silence()) as slow, good_server("openai") as good:
        breaker = TargetSettings(breaker=BreakerPolicy(min_calls=2))
        table = table_of(Target("slow", OpenAIUpstream(f"{slow.url}/v1", capture="none"), breaker))
        table.add_route(Route("n", [(Target("good", OpenAIUpstream(good.base_url, retry=ONCE), breaker), 1)]))
        async with running_rig(table) as rig, rig.client() as client:
            for _ in range(3):
                asking = asyncio.create_task(ask(rig, "openai"))
                await asyncio.sleep(0.1)
                asking.cancel()
            await rig.gateway.drain()
            good.script = [always({"error": {"message": "no"}}, 400), always({"error": {"message": "no"}}, 429)] * 2
            for _ in range(4):
                with pytest.raises(openai.APIStatusError):
                    await client.chat.completions.create(model="n", messages=USER)
            assert {state.state for state in rig.gateway.routes.states()} == {"closed"}


async def test_rollouts_stick_to_their_target_and_targets_get_their_share() -> None:
    async with good_server("openai") as one, good_server("openai") as two:
        targets = [
            (Target("one", OpenAIUpstream(one.base_url)), 1.0),
            (Target("two", OpenAIUpstream(two.base_url)), 1.0),
        ]
        table = RoutingTable(seed=3, may_be_empty=True)
        table.add_route(Route("m", targets))
        async with running_rig(table) as rig:
            used: list[set[str]] = []
            for _ in range(12):
                rollout = await rig.rollout()
                for _ in range(3):
                    await ask(rig, "openai", rollout)
                used.append({span.attributes[TARGET] for span in await rig.spans(rollout)})
    assert all(len(names) == 1 for names in used)
    assert set(Counter(name for names in used for name in names)) == {"one", "two"}


async def test_a_target_takes_no_more_calls_at_once_than_it_may_and_queues_the_rest_fairly() -> None:
    gate = asyncio.Event()

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(whole(b"{}"))

    async with HostileServer(held) as server:
        target = Target("t", upstream("openai", server.url), TargetSettings(max_in_flight=1))
        async with running_rig(table_of(target)) as rig:
            greedy, modest = await rig.rollout(), await rig.rollout()
            done: list[str] = []

            async def call(rollout: Any, name: str) -> None:
                with pytest.raises(openai.InternalServerError):
                    await ask(rig, "openai", rollout)
                done.append(name)

            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    group.create_task(call(greedy, "greedy"))
                await until(lambda: target.places.waiting == 5)
                group.create_task(call(modest, "modest"))
                await until(lambda: target.places.waiting == 6)
                assert (target.places.taken, len(server.requests)) == (1, 1)
                gate.set()
    assert done.index("modest") <= 3  # and not behind all of the other's


async def test_a_route_is_swapped_under_way_without_losing_a_call() -> None:
    async with ScriptedOpenAIServer() as old, ScriptedOpenAIServer() as new:
        before, after = OpenAIUpstream(old.base_url, capture="none"), OpenAIUpstream(new.base_url, capture="none")
        async with running_rig({"m": before}) as rig:
            going = True
            answered = Counter[str]()

            async def load() -> None:
                while going:
                    answered[await ask(rig, "openai")] += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(load())
                for _ in range(3):
                    await asyncio.sleep(0.1)
                    assert rig.gateway.routes.add("m", after) is before
                    await rig.gateway.routes.wait_idle(before, timeout_s=10)
                    await before.aclose()  # nobody may be using it any more
                    reached = len(old.bodies)
                    await asyncio.sleep(0.1)
                    assert len(old.bodies) == reached
                    before, after, old, new = after, before, new, old
                going = False
            assert rig.gateway.stats()["errors"] == 0
            assert set(answered) == {"hello there"}
            assert rig.gateway.routes.remove("m") is before
            await before.aclose()
            with pytest.raises(openai.NotFoundError, match="Models here: none"):
                await ask(rig, "openai")


async def test_counts_and_embeddings_take_the_same_way() -> None:
    vectors: dict[str, Any] = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "model": "e",
    }
    vectors["usage"] = {"prompt_tokens": 2, "total_tokens": 2}
    async with HostileServer(saying(BROKEN)) as bad, good_server("openai") as good:
        settings = TargetSettings(model="real", overrides={"dimensions": 1})
        table = table_of(
            Target("bad", upstream("openai", bad.url)), Target("good", OpenAIUpstream(good.base_url), settings)
        )
        async with running_rig(table, limits=CallLimits(call_timeout_s=20)) as rig, rig.client() as client:
            good.script = [always(vectors)]
            made = await client.embeddings.create(model="m", input="hi", encoding_format="float")
            base_url = rig.gateway.url
            async with anthropic.AsyncAnthropic(base_url=base_url, api_key="x", max_retries=0) as other:
                count = await other.messages.count_tokens(model="m", messages=USER)  # pyright: ignore[reportArgumentType]
    assert made.data[0].embedding == [0.5]
    assert count.input_tokens == 3
    assert [(body["model"], body["dimensions"]) for body in good.bodies] == [("real", 1)] * 2


async def test_a_route_over_two_kinds_of_server_asks_those_that_understand_the_call() -> None:
    async with ScriptedAnthropicServer() as native, ScriptedOpenAIServer() as open_one:
        table = table_of(
            Target("claude", AnthropicUpstream(native.base_url)), Target("open", OpenAIUpstream(open_one.base_url))
        )
        async with running_rig(table) as rig:
            assert await ask(rig, "openai") == "hello there"  # no translation to Anthropic's API: passed over
            assert "hello" in await ask(rig, "anthropic")
            thinking: Any = {"type": "enabled", "budget_tokens": 1024}
            await ask(rig, "anthropic", thinking=thinking, max_tokens=2048)
    assert len(open_one.bodies) == 1
    assert len(native.bodies) == 2
