"""The official OpenAI client against the gateway on a real socket, in front of a scripted engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest

from agentlightning.gateway import CallLimits, EngineUpstream
from agentlightning.kit.errors import BadInputError, PortInUseError, StorageError, UpstreamError
from agentlightning.schemas import semconv
from agentlightning.store import InMemoryLightningStore, LightningStoreClient, store_routes
from tests.unit.gateway.rig import USER, Rig, running_rig
from tests.unit.gateway.scripted import TOOL_CALL, ScriptedEngine

TOOL = {"type": "function", "function": {"name": "sql", "parameters": {"type": "object"}}}
USE_TOOL = [{"role": "user", "content": "use the tool"}]


async def wait_until(condition: Any) -> None:
    async with asyncio.timeout(100):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another task or process
            await asyncio.sleep(0.005)


@pytest.fixture
async def rig() -> AsyncGenerator[Rig]:
    async with running_rig() as rig:
        yield rig


async def test_a_call_is_answered_and_recorded_exactly_as_the_engine_sampled_it(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        answer = await client.chat.completions.create(
            model="default", messages=USER, tools=[TOOL], temperature=0.5, seed=3, max_tokens=20
        )
    assert answer.choices[0].message.content == "echo 0 3 hi you"
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "default")
    [request] = rig.engine.requests
    result = rig.engine.results[request.request_id]
    assert (request.params.temperature, request.params.max_tokens, request.tools) == (0.5, 20, [TOOL])
    assert answer.usage.prompt_tokens == len(result.prompt_token_ids)
    assert answer.usage.completion_tokens == len(result.choices[0].token_ids)
    [call] = await rig.calls(rollout)
    assert call.prompt_token_ids == result.prompt_token_ids
    assert call.response_token_ids == result.choices[0].token_ids
    assert call.response_logprobs == result.choices[0].logprobs
    assert (call.model, call.model_version, call.temperature) == ("scripted-1", "v7", 0.5)
    assert (call.messages, call.tools) == (USER, [TOOL])
    assert call.output == {"role": "assistant", "content": "echo 0 3 hi you"}
    assert (call.response_id, call.finish_reason, call.trainable) == (answer.id, "stop", True)
    [span] = await rig.spans(rollout)
    assert (span.status.status_code, span.sequence_id, span.name) == ("OK", 1, semconv.MODEL_CALL)
    assert span.attributes["agentlightning.call.latency_ms"] >= 0
    assert span.attributes[semconv.INPUT_TOKENS] == answer.usage.prompt_tokens


async def test_the_synchronous_client_works(rig: Rig) -> None:
    rollout = await rig.rollout()

    def ask() -> str | None:
        with openai.OpenAI(base_url=rig.base_url(rollout), api_key="any") as client:
            messages: Any = USER
            return client.chat.completions.create(model="default", messages=messages).choices[0].message.content

    assert await asyncio.to_thread(ask) == "echo 0 None hi you"
    assert len(await rig.calls(rollout)) == 1


async def test_a_streamed_answer_arrives_piece_by_piece_and_is_recorded(rig: Rig) -> None:
    rollout = await rig.rollout()
    rig.engine.gate.clear()
    async with rig.client(rollout) as client:
        stream = asyncio.ensure_future(
            client.chat.completions.create(
                model="default", messages=USER, stream=True, stream_options={"include_usage": True}
            )
        )
        await asyncio.sleep(0.02)
        rig.engine.gate.set()
        texts: list[str] = []
        chunks: list[Any] = []
        async for chunk in await stream:
            chunks.append(chunk)
            if chunk.choices and chunk.choices[0].delta.content:
                texts.append(chunk.choices[0].delta.content)
                # Held here: the next piece can only come once this one has been read.
                rig.engine.gate.clear()
                asyncio.get_running_loop().call_later(0.005, rig.engine.gate.set)
    assert "".join(texts) == "echo 0 None hi you"
    assert len(texts) == 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 5
    assert chunks[-1].choices == []
    [call] = await rig.calls(rollout)
    result = rig.engine.results[call.response_id]
    assert call.response_token_ids == result.choices[0].token_ids
    assert call.response_logprobs == result.choices[0].logprobs
    assert call.output == {"role": "assistant", "content": "echo 0 None hi you"}
    [span] = await rig.spans(rollout)
    assert span.attributes["agentlightning.call.streamed"] is True


async def test_usage_is_streamed_only_when_asked_for(rig: Rig) -> None:
    async with rig.client() as client:
        stream = await client.chat.completions.create(model="default", messages=USER, stream=True)
        assert all([chunk.choices and chunk.usage is None async for chunk in stream])


async def test_the_stream_helper_of_the_client_understands_it(rig: Rig) -> None:
    async with rig.client() as client, client.chat.completions.stream(model="default", messages=USER) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "echo 0 None hi you"


async def test_tool_calls_come_whole_and_streamed(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        whole = await client.chat.completions.create(model="default", messages=USE_TOOL, tools=[TOOL])
        stream = await client.chat.completions.create(model="default", messages=USE_TOOL, tools=[TOOL], stream=True)
        deltas = [chunk.choices[0] async for chunk in stream]
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.content is None
    assert whole.choices[0].message.tool_calls[0].model_dump() == TOOL_CALL
    [streamed] = [delta.delta.tool_calls[0] for delta in deltas if delta.delta.tool_calls]
    assert (streamed.index, streamed.id, streamed.function.name) == (0, "call_1", "sql")
    assert deltas[-1].finish_reason == "tool_calls"
    first, second = await rig.calls(rollout)
    assert first.output["tool_calls"] == second.output["tool_calls"] == [TOOL_CALL]
    assert first.response_token_ids == second.response_token_ids
    assert first.trainable
    assert second.trainable


@pytest.mark.parametrize("stream", [False, True])
async def test_every_choice_of_n_is_recorded(rig: Rig, stream: bool) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        answer = await client.chat.completions.create(model="default", messages=USER, n=3, stream=stream)
        if stream:
            assert {choice.index async for chunk in answer for choice in chunk.choices} == {0, 1, 2}
        else:
            assert [choice.index for choice in answer.choices] == [0, 1, 2]
    calls = await rig.calls(rollout)
    assert [call.choice for call in calls] == [0, 1, 2]
    assert len({call.response_id for call in calls}) == 1
    assert [call.output["content"][:6] for call in calls] == ["echo 0", "echo 1", "echo 2"]
    result = rig.engine.results[calls[0].response_id]
    assert [call.response_logprobs for call in calls] == [choice.logprobs for choice in result.choices]


async def test_a_hundred_parallel_calls_land_on_their_rollouts(rig: Rig) -> None:
    rollouts = [await rig.rollout() for _ in range(20)]
    rig.engine.delay_s = 0.01

    async def ask(number: int) -> None:
        rollout = rollouts[number % 20]
        async with rig.client(rollout) as client:
            messages = [{"role": "user", "content": f"{rollout.rollout_id} {number}"}]
            await client.chat.completions.create(model="default", messages=messages, stream=number % 2 == 0)

    # A stream is recorded when it is read to its end; leaving the client early would cancel it.
    async def drain(number: int) -> None:
        rollout = rollouts[number % 20]
        async with rig.client(rollout) as client:
            messages = [{"role": "user", "content": f"{rollout.rollout_id} {number}"}]
            stream = await client.chat.completions.create(model="default", messages=messages, stream=True)
            async for _ in stream:
                pass

    await asyncio.gather(*(drain(i) if i % 2 == 0 else ask(i) for i in range(100)))
    for position, rollout in enumerate(rollouts):
        calls = await rig.calls(rollout)
        said = sorted(call.messages[0]["content"] for call in calls)
        assert said == sorted(f"{rollout.rollout_id} {i}" for i in range(position, 100, 20))
        assert sorted(call.sequence_id for call in calls) == [1, 2, 3, 4, 5]
        for call in calls:
            assert call.response_token_ids == rig.engine.results[call.response_id].choices[0].token_ids
    assert rig.gateway.stats()["recorded"] == 100


async def test_identical_prompts_are_all_recorded(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        for _ in range(5):
            await client.chat.completions.create(model="default", messages=USER)
    calls = await rig.calls(rollout)
    assert len({call.span_id for call in calls}) == 5
    assert [call.sequence_id for call in calls] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("form", ["", "/v1"])
async def test_rollout_urls_work_with_and_without_v1(rig: Rig, form: str) -> None:
    rollout = await rig.rollout()
    base = rig.base_url(rollout).removesuffix("/v1") + form
    async with openai.AsyncOpenAI(base_url=base, api_key="any") as client:
        messages: Any = USER
        await client.chat.completions.create(model="default", messages=messages)
    assert len(await rig.calls(rollout)) == 1


async def test_the_url_form_of_release_1_works_and_names_the_mode(rig: Rig) -> None:
    rig.gateway.set_sampling("train", {"temperature": 0.9})
    rollout = await rig.rollout()
    base = f"{rig.gateway.url}/proxy/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}"
    async with openai.AsyncOpenAI(base_url=f"{base}/mode/train/openai/v1", api_key="any") as client:
        messages: Any = USER
        await client.chat.completions.create(model="default", messages=messages, temperature=0.1)
    [call] = await rig.calls(rollout)
    assert call.temperature == 0.9


async def test_calls_without_a_rollout_are_answered_and_counted(rig: Rig) -> None:
    async with rig.client() as client:
        await client.chat.completions.create(model="default", messages=USER)
    assert rig.gateway.stats()["unattributed"] == 1
    assert (await rig.store.statistics())["total_spans"] == 0


async def test_text_completions_work(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        one = await client.completions.create(model="default", prompt="hello", logprobs=0)
        two = await client.completions.create(model="default", prompt=["a", "b"], n=2)
        ids = await client.completions.create(model="default", prompt=[5, 6])
        stream = await client.completions.create(model="default", prompt="hello", stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert one.choices[0].text == streamed == "echo 0 None hello"
    assert len(one.choices[0].logprobs.token_logprobs) == one.usage.completion_tokens
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert [choice.text[-1] for choice in two.choices] == ["a", "a", "b", "b"]
    assert ids.usage.prompt_tokens == 2
    calls = await rig.calls(rollout)
    assert len(calls) == 7
    assert calls[0].messages == [{"role": "user", "content": "hello"}]
    assert calls[5].prompt_token_ids == [5, 6]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_come_in_openai_shape_when_asked_for(rig: Rig, stream: bool) -> None:
    async with rig.client() as client:
        answer = await client.chat.completions.create(model="default", messages=USER, logprobs=True, stream=stream)
        choices = [chunk.choices[0] async for chunk in answer] if stream else answer.choices
    [content] = [choice.logprobs.content for choice in choices if choice.logprobs]
    assert [entry.logprob for entry in content] == pytest.approx([-0.001, -0.002, -0.003, -0.004, -0.005])
    assert content[0].token.startswith("token_id:")


async def test_token_ids_are_given_to_clients_that_ask_for_them(rig: Rig) -> None:
    async with rig.client() as client:
        answer = await client.chat.completions.create(
            model="default", messages=USER, extra_body={"return_token_ids": True}
        )
    result = rig.engine.results[answer.id]
    assert answer.prompt_token_ids == result.prompt_token_ids
    assert answer.choices[0].token_ids == result.choices[0].token_ids


async def test_models_are_listed(rig: Rig) -> None:
    async with rig.client() as client:
        assert [model.id async for model in client.models.list()] == ["default", "scripted-1"]
        assert (await client.models.retrieve("scripted-1")).id == "scripted-1"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nope")


async def test_an_unknown_model_is_a_404_that_lists_the_models_and_is_recorded(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        with pytest.raises(openai.NotFoundError, match=r"'gpt-9' does not exist.*'default', 'scripted-1'") as caught:
            await client.chat.completions.create(model="gpt-9", messages=USER)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    [span] = await rig.spans(rollout)
    assert span.status.status_code == "ERROR"
    assert span.attributes["agentlightning.call.error_reason"] == "model_not_found"
    assert "does not exist" in span.attributes[semconv.EXCEPTION_MESSAGE]
    [call] = await rig.calls(rollout)
    assert call.not_trainable_because == "the call failed"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{not json", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'{"messages": []}', "missing_required_parameter"),
        (b'{"model": "default", "messages": []}', "missing_required_parameter"),
        (b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}', "invalid_type"),
        (b'{"model": "default", "messages": [1], "stream": true, "stream_options": 5}', "invalid_type"),
    ],
)
async def test_a_malformed_request_is_a_400_in_openai_shape(rig: Rig, body: bytes, code: str) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{rig.gateway.url}/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_request_too_large_is_a_413() -> None:
    async with running_rig(max_body_bytes=100_000) as rig, rig.client() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": "x" * 5_000_000}]
            )
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
        await client.chat.completions.create(model="default", messages=USER)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_too_long_is_a_400_with_openais_code(rig: Rig, stream: bool) -> None:
    details = {"prompt_tokens": 5000, "max_context": 4096}
    rig.engine.error = BadInputError("The prompt has 5000 tokens.", details=details)
    async with rig.client() as client:
        with pytest.raises(openai.BadRequestError, match="5000 tokens") as caught:
            await client.chat.completions.create(model="default", messages=USER, stream=stream)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadInputError("Top-p must be positive."), 400),
        (UpstreamError("The worker died."), 502),
        (ConnectionResetError("gone"), 503),
        (KeyError("a bug"), 502),
    ],
)
async def test_engine_errors_become_answers_and_records(rig: Rig, error: Exception, status: int) -> None:
    rollout = await rig.rollout()
    rig.engine.error = error
    async with rig.client(rollout) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="default", messages=USER)
    assert caught.value.status_code == status
    [span] = await rig.spans(rollout)
    assert span.attributes[semconv.EXCEPTION_TYPE] == type(error).__name__
    assert rig.gateway.stats()["errors"] == 1


async def test_an_engine_that_takes_too_long_is_a_504_and_is_cancelled() -> None:
    async with running_rig(limits=CallLimits(call_timeout_s=0.05)) as rig, rig.client() as client:
        rig.engine.delay_s = 10
        with pytest.raises(openai.InternalServerError, match=r"within 0\.05 s") as caught:
            await client.chat.completions.create(model="default", messages=USER)
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        assert len(rig.engine.cancelled) == 1


async def test_a_full_gateway_says_so() -> None:
    limits = CallLimits(max_in_flight=1, queue_timeout_s=0.05)
    async with running_rig(limits=limits) as rig, rig.client() as client:
        rig.engine.gate.clear()
        first = asyncio.ensure_future(client.chat.completions.create(model="default", messages=USER))
        await wait_until(lambda: rig.engine.requests)
        with pytest.raises(openai.InternalServerError, match="No free place") as caught:
            await client.chat.completions.create(model="default", messages=USER)
        assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
        assert caught.value.response.headers["retry-after"] == "1"
        second = asyncio.ensure_future(client.chat.completions.create(model="default", messages=USER))
        await asyncio.sleep(0.02)
        rig.engine.gate.set()
        await first
        await second


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_generation_and_what_came_is_kept(rig: Rig, stream: bool) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client:
        if stream:
            rig.engine.delay_s = 0.02
            answer = await client.chat.completions.create(model="default", messages=USER, stream=True)
            async for chunk in answer:
                if chunk.choices[0].delta.content == " 0":
                    rig.engine.gate.clear()
                    break
            await answer.close()
        else:
            rig.engine.gate.clear()
            task = asyncio.ensure_future(client.chat.completions.create(model="default", messages=USER))
            await wait_until(lambda: rig.engine.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    await wait_until(lambda: rig.engine.cancelled)
    await wait_until(lambda: rig.gateway.stats()["errors"] == 1)
    [span] = await rig.spans(rollout)
    assert span.status.status_code == "ERROR"
    assert span.attributes["agentlightning.call.error_reason"] == "client_disconnected"
    if stream:
        output = json.loads(span.attributes[semconv.CALL_OUTPUT_MESSAGES])
        assert output[0]["content"].startswith("echo 0")
    assert rig.gateway.stats()["in_flight"] == 0


async def test_a_stream_that_fails_midway_raises_in_the_client_and_is_recorded(rig: Rig) -> None:
    class DyingEngine(ScriptedEngine):
        async def stream(self, request: Any) -> Any:
            async for delta in super().stream(request):
                if delta.result is not None:
                    raise UpstreamError("The worker died.")
                yield delta

    async with running_rig([EngineUpstream(DyingEngine())]) as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            stream = await client.chat.completions.create(model="default", messages=USER, stream=True)
            with pytest.raises(openai.APIError, match="worker died"):
                async for _ in stream:
                    pass
        [span] = await rig.spans(rollout)
    assert span.status.status_code == "ERROR"
    assert "echo 0 None hi you" in span.attributes[semconv.CALL_OUTPUT_MESSAGES]


class BrokenStore(InMemoryLightningStore):
    """A store whose disk is full."""

    async def add_many_spans(self, spans: Any) -> Any:
        raise StorageError("No space left on the disk.")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_recorded_is_withheld(stream: bool) -> None:
    async with running_rig(store=BrokenStore()) as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout, max_retries=2) as client:
            if stream:
                answer = await client.chat.completions.create(model="default", messages=USER, stream=True)
                finished: list[str] = []

                async def read() -> None:
                    async for chunk in answer:
                        finished.extend(c.finish_reason for c in chunk.choices if c.finish_reason)

                with pytest.raises(openai.APIError, match="No space left"):
                    await read()
                assert finished == []
            else:
                with pytest.raises(openai.InternalServerError, match="No space left") as caught:
                    await client.chat.completions.create(model="default", messages=USER)
                assert (caught.value.status_code, caught.value.code) == (507, "record_failed")
        # The client was told not to repeat what cannot succeed.
        assert len(rig.engine.requests) == 1


async def test_a_call_of_an_unknown_rollout_is_a_404_and_harms_no_other(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with openai.AsyncOpenAI(
        base_url=f"{rig.gateway.url}/rollout/ro-nope/attempt/at-nope/v1", api_key="any"
    ) as stray:
        messages: Any = USER
        asked = [stray.chat.completions.create(model="default", messages=messages) for _ in range(3)]
        async with rig.client(rollout) as client:
            asked += [client.chat.completions.create(model="default", messages=USER) for _ in range(5)]
            results = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(result, openai.NotFoundError) for result in results[:3])
    assert "ro-nope" in str(results[0])
    assert not any(isinstance(result, BaseException) for result in results[3:])
    assert len(await rig.calls(rollout)) == 5


async def test_not_durable_answers_do_not_wait_for_the_store() -> None:
    async with running_rig(store=BrokenStore(), is_durable=False) as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            await client.chat.completions.create(model="default", messages=USER)


async def test_a_pause_holds_new_calls_until_it_ends(rig: Rig) -> None:
    async with httpx.AsyncClient(base_url=rig.gateway.url) as http, rig.client() as client:
        assert (await http.post("/proxy/pause")).json()["paused"] is True
        await rig.gateway.drain(timeout_s=1)
        call = asyncio.ensure_future(client.chat.completions.create(model="default", messages=USER))
        await wait_until(lambda: rig.gateway.stats()["waiting"] == 1)
        assert (await http.get("/proxy/state")).json() == {"paused": True, "in_flight": 0, "waiting": 1}
        assert (await http.get("/health")).json()["status"] == "paused"
        assert rig.engine.requests == []
        assert (await http.post("/proxy/resume")).json()["paused"] is False
        assert (await call).choices[0].message.content == "echo 0 None hi you"


async def test_a_pause_that_lasts_too_long_is_a_503() -> None:
    async with running_rig(limits=CallLimits(pause_timeout_s=0.05)) as rig, rig.client() as client:
        rig.gateway.pause()
        with pytest.raises(openai.InternalServerError, match="paused") as caught:
            await client.chat.completions.create(model="default", messages=USER)
        assert caught.value.status_code == 503


async def test_drain_waits_for_calls_in_flight(rig: Rig) -> None:
    rig.engine.gate.clear()
    async with rig.client() as client:
        call = asyncio.ensure_future(client.chat.completions.create(model="default", messages=USER))
        await wait_until(lambda: rig.engine.requests)
        with pytest.raises(TimeoutError):
            await rig.gateway.drain(timeout_s=0.02)
        rig.engine.gate.set()
        await rig.gateway.drain(timeout_s=1)
        await call


async def test_stopping_lets_calls_finish_within_the_grace() -> None:
    async with running_rig() as rig:
        rollout = await rig.rollout()
        rig.engine.delay_s = 0.3
        async with rig.client(rollout) as client:
            call = asyncio.ensure_future(client.chat.completions.create(model="default", messages=USER))
            await wait_until(lambda: rig.engine.requests)
            await rig.gateway.stop()
            assert (await call).choices[0].finish_reason == "stop"
        assert len(await rig.calls(rollout)) == 1


async def test_stopping_cancels_what_outlives_the_grace_and_records_it() -> None:
    async with running_rig() as rig:
        rollout = await rig.rollout()
        rig.engine.gate.clear()
        async with rig.client(rollout) as client:
            call = asyncio.ensure_future(client.chat.completions.create(model="default", messages=USER))
            await wait_until(lambda: rig.engine.requests)
            await rig.gateway.stop()
            with pytest.raises(openai.APIError):
                await call
        [span] = await rig.spans(rollout)
        assert span.status.status_code == "ERROR"


async def test_the_store_is_served_on_the_same_port() -> None:
    store = InMemoryLightningStore()
    async with running_rig(store=store, extra_routes=store_routes(store)) as rig:
        remote = LightningStoreClient(rig.gateway.url)
        rollout = await remote.start_rollout(input={"task": 1})
        async with rig.client(rollout) as client:
            await client.chat.completions.create(model="default", messages=USER)
        [span] = await remote.query_spans(rollout.rollout_id)
        await remote.close()
    assert span.name == semconv.MODEL_CALL


async def test_unknown_paths_and_methods_below_a_rollout_answer_in_openai_shape(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with httpx.AsyncClient(base_url=rig.base_url(rollout)) as client:
        for response in (await client.post("/nope"), await client.get("/chat/completions")):
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "unknown_path"


async def test_health_tells_models_and_counters(rig: Rig) -> None:
    rollout = await rig.rollout()
    async with rig.client(rollout) as client, httpx.AsyncClient(base_url=rig.gateway.url) as http:
        await client.chat.completions.create(model="default", messages=USER)
        health = (await http.get("/health")).json()
    assert (health["status"], health["models"]) == ("ok", ["default", "scripted-1"])
    stats = health["stats"]
    assert (stats["calls"], stats["recorded"], stats["errors"], stats["in_flight"]) == (1, 1, 0, 0)
    assert stats["output_tokens"] == 5
    assert stats["tokens_per_s"] > 0


async def test_a_taken_port_is_told_with_a_hint(rig: Rig) -> None:
    port = int(rig.gateway.url.rsplit(":", 1)[1])
    with pytest.raises(PortInUseError, match=f"Port {port} .*port 0"):
        async with running_rig(port=port):
            pass


async def test_the_proxy_resource_binds_an_agent_to_its_rollout(rig: Rig) -> None:
    rollout = await rig.rollout()
    llm = rig.gateway.llm(temperature=0.3).with_attempted_rollout(rollout)
    async with openai.AsyncOpenAI(base_url=llm.endpoint, api_key=llm.api_key) as client:
        messages: Any = USER
        await client.chat.completions.create(model=llm.model, messages=messages, **llm.sampling_parameters)
    [call] = await rig.calls(rollout)
    assert call.temperature == 0.3


async def test_overrides_win_and_the_agents_values_are_kept_in_the_record(rig: Rig) -> None:
    rollout = await rig.rollout()
    rig.gateway.sampling.register([rollout.rollout_id], {"temperature": 1.0, "max_tokens": 64}, seed_base=1)
    async with rig.client(rollout) as client:
        await client.chat.completions.create(
            model="default", messages=USER, temperature=0.2, max_completion_tokens=9, top_p=0.5
        )
    [request] = rig.engine.requests
    assert (request.params.temperature, request.params.max_tokens, request.params.top_p) == (1.0, 64, 0.5)
    assert request.params.seed is not None
    [span] = await rig.spans(rollout)
    assert json.loads(span.attributes["agentlightning.call.replaced_parameters"]) == {
        "temperature": 0.2,
        "max_completion_tokens": 9,
    }
    assert json.loads(span.attributes["agentlightning.call.request_parameters"])["temperature"] == 1.0
    assert span.attributes[semconv.CALL_TEMPERATURE] == 1.0


async def test_a_rule_for_a_mode_reaches_rollouts_of_that_mode(rig: Rig) -> None:
    rig.gateway.set_sampling("val", {"temperature": 0.0})
    train, val = await rig.rollout(mode="train"), await rig.rollout(mode="val")
    for rollout in (train, val, val):
        async with rig.client(rollout) as client:
            await client.chat.completions.create(model="default", messages=USER, temperature=0.7)
    assert [request.params.temperature for request in rig.engine.requests] == [0.7, 0.0, 0.0]


async def test_calls_of_rollouts_do_not_pass_through_the_apps_routes() -> None:
    """They are most of all requests; the routes are tried one after the other."""
    async with running_rig() as rig:
        rollout = await rig.rollout()
        del rig.gateway.app.router.routes[:]
        bodies: dict[str, dict[str, Any]] = {
            "/chat/completions": {"messages": USER},
            "/completions": {"prompt": "x"},
            "/messages": {"messages": USER, "max_tokens": 9},
            "/messages/count_tokens": {"messages": USER},
            "/responses": {"input": "x"},
            "/embeddings": {"input": "x"},
        }
        async with httpx.AsyncClient() as client:
            for path, body in bodies.items():
                short = await client.post(rig.base_url(rollout) + path, json={"model": "default", **body})
                assert short.status_code == (501 if path == "/embeddings" else 200), (path, short.text)
                assert (await client.get(rig.base_url(rollout) + path)).status_code == 404
        assert len(await rig.calls(rollout)) == 4
