"""A served model through its life: loading, crashing, swapping, unloading; the engine is the scripted vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from agentlightning.agent.adapter import calls_from_spans
from agentlightning.gateway.upstream.engine import CONSTRAINED
from agentlightning.kit.errors import ConflictError, ModelError, NotFoundError
from agentlightning.modelservice import served as served_module
from agentlightning.modelservice import service as service_module
from agentlightning.modelservice.upstream import ServedUpstream
from tests.unit.modelservice.rig import USER, register, running_service, until, weights

SLOW = ["--chunks", "40", "--chunk-delay-s", "0.02"]


async def test_a_model_is_loaded_answers_and_is_recorded_exactly(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        served = await rig.serve("mine", weights(tmp_path / "w", "hi"), aliases=["default"])
        assert (served.state, served.version, served.error) == ("ready", "base", "")
        assert served.describe()["model"] == {"engine": "vllm", "max_context": 2048}
        rollout = await rig.store.start_rollout(input={})
        prefix = f"/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}"
        async with rig.client(prefix) as client:
            for model, extra in (
                ("mine", {}), ("default", {"stream": True}), ("mine", {"response_format": {"type": "json_object"}})
            ):  # fmt: skip
                answer = await client.chat.completions.create(model=model, messages=USER, **extra)
                if extra.get("stream"):
                    assert "".join([c.choices[0].delta.content or "" async for c in answer]) == "hi hi hi hi "
                else:
                    assert answer.choices[0].message.content == "hi hi hi hi "
        calls = calls_from_spans(await rig.store.query_spans(rollout.rollout_id))
        assert [call.not_trainable_because for call in calls] == [None, None, CONSTRAINED]
        for call in calls:
            assert call.response_token_ids == [100, 101, 102, 103]
            assert len(call.response_logprobs or ()) == 4
            assert call.model_version == "base"


async def test_tokens_are_counted_and_what_a_server_lacks_is_its_own_error(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        served = await rig.serve("mine", weights(tmp_path / "w", "hi"))
        async with anthropic.AsyncAnthropic(base_url=rig.gateway.url, api_key="any", max_retries=0) as client:
            counted = await client.messages.count_tokens(model="mine", messages=USER)
        assert counted.input_tokens == 3
        async with rig.client() as client:
            with pytest.raises(openai.NotFoundError):
                await client.embeddings.create(model="mine", input="x")
            with pytest.raises(openai.BadRequestError):  # not the engine's fault, so nothing is restarted
                await client.chat.completions.create(model="mine", messages=[], max_tokens=1)
        upstream = rig.gateway.routes.resolve("mine")
        assert upstream.names() == await upstream.list_models() == ["mine"]
        assert (served.restarts, served.state) == (0, "ready")
        assert ServedUpstream(served).weights_id("mine") is None  # a server does not tell
        await served.unload()
        assert ServedUpstream(served).weights_id("mine") is None


async def test_models_that_are_not_loaded_say_so(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        rig.service.add(rig.spec("mine", weights(tmp_path / "w", "hi")))
        with pytest.raises(openai.InternalServerError, match="is not loaded") as caught:
            await rig.ask("mine")
        assert caught.value.status_code == 503
        assert caught.value.code == "model_not_loaded"
        with pytest.raises(openai.NotFoundError, match=r"'other' does not exist.*'mine'"):
            await rig.ask("other")
        with pytest.raises(ConflictError, match="mine is served already"):
            rig.service.add(rig.spec("other", aliases=["mine"]))
        await rig.service.remove("mine")
        with pytest.raises(openai.NotFoundError):
            await rig.ask("mine")
        with pytest.raises(NotFoundError, match="No model 'mine' is served"):
            await rig.service.remove("mine")


async def test_a_lazy_model_is_loaded_by_its_first_calls_together(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        served = rig.service.add(rig.spec("mine", weights(tmp_path / "w", "hi"), lazy=True))
        answers = await asyncio.gather(*(rig.ask("mine") for _ in range(8)))
        assert set(answers) == {"hi hi hi hi "}
        assert served.calls == 8
        await served.unload()
        assert served.state == "unloaded"
        assert await rig.ask("mine") == "hi hi hi hi "


async def test_a_call_waits_for_a_lazy_model_only_so_long(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        args = ["--start-delay-s", "3"]
        source = weights(tmp_path / "w", "hi")
        served = rig.service.add(rig.spec("mine", source, lazy=True, wait_timeout_s=0.3, vllm_args=args))
        with pytest.raises(openai.InternalServerError, match="was not ready within") as caught:
            await rig.ask("mine")
        assert caught.value.status_code == 503
        assert "retry-after" in caught.value.response.headers
        assert served.state == "loading"
        assert served.progress is not None
        await served.unload()  # stops the load
        assert served.state == "unloaded"


async def test_an_idle_model_is_unloaded_and_comes_back(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        served = await rig.serve("mine", weights(tmp_path / "w", "hi"), idle_unload_s=0.5)
        pid = served.describe()["pid"]
        await until(lambda: served.state == "unloaded")
        assert not is_alive(pid)
        assert await rig.ask("mine") == "hi hi hi hi "


async def test_a_call_that_is_under_way_keeps_an_idle_model(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        args = ["--hold-file", str(tmp_path / "go")]
        served = await rig.serve("mine", weights(tmp_path / "w", "hi"), idle_unload_s=0.2, vllm_args=args)
        call = asyncio.create_task(rig.ask("mine", "hold"))
        await until(lambda: served.in_flight == 1)
        for _ in range(5):
            await rig.service.look()
            await asyncio.sleep(0.1)
        assert served.state == "ready"
        (tmp_path / "go").touch()
        assert await call == "hi hi hi hi "


async def test_unloading_finishes_the_calls_under_way(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        served = await rig.serve("mine", weights(tmp_path / "w", "hi"), vllm_args=["--hold-file", str(tmp_path / "go")])
        call = asyncio.create_task(rig.ask("mine", "hold"))
        await until(lambda: served.in_flight == 1)
        unloading = asyncio.create_task(served.unload())
        await until(lambda: served.state == "unloading")
        with pytest.raises(openai.InternalServerError, match="not loaded"):
            await rig.ask("mine")
        (tmp_path / "go").touch()
        assert await call == "hi " * 4
        await unloading
        assert served.state == "unloaded"


async def test_unloading_gives_calls_up_after_its_time(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        source = weights(tmp_path / "w", "hi")
        served = await rig.serve("mine", source, drain_timeout_s=0.2, vllm_args=["--hold-file", "never"])
        call = asyncio.create_task(rig.ask("mine", "hold"))
        await until(lambda: served.in_flight == 1)
        await served.unload()
        with pytest.raises(openai.InternalServerError) as caught:
            await call
        assert caught.value.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_a_crash_is_a_503_for_its_calls_and_the_engine_comes_back(tmp_path: Path, stream: bool) -> None:
    async with running_service(tmp_path) as rig:
        served = await rig.serve("mine", weights(tmp_path / "w", "hi"), vllm_args=["--chunk-delay-s", "0.02"])
        before = served.describe()["pid"]
        async with rig.client() as client:
            messages: Any = [{"role": "user", "content": "please crash"}]
            with pytest.raises(openai.APIError, match="ended while it was answering") as caught:
                await read(await client.chat.completions.create(model="mine", messages=messages, stream=stream))
        assert caught.value.code == "model_restarting"
        if not stream:
            assert caught.value.status_code == 503  # type: ignore[attr-defined]
            assert caught.value.response.headers["retry-after"]  # type: ignore[attr-defined]
        await until(lambda: served.state == "ready")
        assert served.describe()["pid"] != before
        assert (served.restarts, served.failed_calls) == (1, 1)
        assert await rig.ask("mine") == "hi hi hi hi "


async def test_an_engine_that_keeps_dying_is_restarted_ever_more_slowly(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        source = weights(tmp_path / "w", "hi")
        served = await rig.serve("mine", source)
        delays: list[float] = []
        for _ in range(3):
            os.kill(served.describe()["pid"], signal.SIGKILL)
            await until(lambda: served.state == "failed")
            assert "ended" in served.error
            await until(lambda: served.retry_after_s > 0)
            delays.append(served.retry_after_s)
            await until(lambda: served.state == "ready")
        assert delays == sorted(delays)
        assert delays[-1] > 2 * delays[0]
        assert served.restarts == 3


async def test_calls_are_refused_until_the_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_module, "_FIRST_BACKOFF_S", 60.0)
    async with running_service(tmp_path) as rig:
        served = await rig.serve("mine", weights(tmp_path / "w", "hi"))
        os.kill(served.describe()["pid"], signal.SIGKILL)
        await until(lambda: served.retry_after_s > 0)
        with pytest.raises(openai.InternalServerError) as caught:
            await rig.ask("mine")
        assert (caught.value.status_code, caught.value.code) == (503, "model_failed")
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


async def test_a_model_that_cannot_be_loaded_any_more_is_not_tried_again(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        source = weights(tmp_path / "w", "hi")
        served = await rig.serve("mine", source)
        (source / "weights.txt").unlink()
        os.kill(served.describe()["pid"], signal.SIGKILL)
        await until(lambda: served.state == "failed")
        await until(lambda: served.state == "failed" and served.retry_after_s == 0 and "loading" in served.error)
        (source / "weights.txt").write_text("back")
        await served.load()
        assert await rig.ask("mine") == "back back back back "


async def test_loading_what_is_broken_says_why(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        source = weights(tmp_path / "w", "hi")
        served = rig.service.add(rig.spec("mine", source, vllm_args=["--fail-start"]))
        with pytest.raises(ModelError, match="out of memory"):
            await served.load()
        assert served.state == "failed"
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            await rig.ask("mine")
        unknown = rig.service.add(rig.spec("registered", "nothing@v7"))
        with pytest.raises(ModelError):
            await unknown.load()


async def test_a_slow_load_ends_at_its_limit(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        source = weights(tmp_path / "w", "hi")
        spec = rig.spec("mine", source, load_timeout_s=0.3, vllm_args=["--start-delay-s", "60"])
        with pytest.raises(ModelError, match=r"not ready within 0\.3 s"):
            await rig.service.add(spec).load()


async def test_promotion_and_rollback_are_followed_while_calls_run(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        register(rig.registry, "demo", 3)
        served = await rig.serve("demo", vllm_args=["--hold-file", str(tmp_path / "release")])
        assert served.version == "demo@v3"  # the newest, while none is in production
        rig.registry.promote("demo@v1")
        await until(lambda: served.version == "demo@v1")
        running = asyncio.create_task(rig.ask("demo", "hold"))
        await until(lambda: served.in_flight == 1)
        rig.registry.promote("demo@v2")
        await until(lambda: served.version == "demo@v2")
        assert served.describe()["retiring"] == [{"version": "demo@v1", "in_flight": 1}]
        assert await rig.ask("demo") == "demo@v2 " * 4
        (tmp_path / "release").touch()
        assert await running == "demo@v1 " * 4
        await until(lambda: served.describe()["retiring"] == [])
        rig.registry.rollback("demo")
        await until(lambda: served.version == "demo@v1")
        assert served.swaps == 3


async def test_a_fixed_version_stays_and_a_broken_one_is_not_taken(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        register(rig.registry, "demo", 3)
        rig.registry.promote("demo@v1")
        fixed, following = await rig.serve("demo@v1"), await rig.serve("demo")
        (rig.registry.get("demo@v2").path / "weights.txt").unlink()
        rig.registry.promote("demo@v2")
        await until(lambda: "change to another version failed" in following.error)
        assert (fixed.version, following.version, following.state) == ("demo@v1", "demo@v1", "ready")
        assert await rig.ask("demo") == "demo@v1 " * 4
        rig.registry.promote("demo@v3")
        await until(lambda: following.version == "demo@v3")
        assert following.error == ""
        assert fixed.version == "demo@v1"


async def test_a_failed_model_is_loaded_when_its_name_means_something_else(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        register(rig.registry, "demo", 2)
        rig.registry.promote("demo@v1")
        (rig.registry.get("demo@v1").path / "weights.txt").unlink()
        served = rig.service.add(rig.spec("demo"))
        with pytest.raises(ModelError):
            await served.load()
        rig.registry.promote("demo@v2")
        await until(lambda: served.state == "ready")
        assert served.version == "demo@v2"


async def test_weights_change_in_place_between_calls(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        register(rig.registry, "demo", 2)
        rig.registry.promote("demo@v1")
        served = await rig.serve("demo", swap="in_place", vllm_args=["--hold-file", str(tmp_path / "go")])
        pid = served.describe()["pid"]
        before = [asyncio.create_task(rig.ask("demo", "hold")) for _ in range(3)]
        await until(lambda: served.in_flight == 3)
        rig.registry.promote("demo@v2")
        await rig.service.look()
        await asyncio.sleep(0.05)
        after = [asyncio.create_task(rig.ask("demo")) for _ in range(3)]
        (tmp_path / "go").touch()
        assert await asyncio.gather(*before) == ["demo@v1 " * 4] * 3
        assert await asyncio.gather(*after) == ["demo@v2 " * 4] * 3
        assert (served.describe()["pid"], served.version) == (pid, "demo@v2")


async def test_a_server_that_cannot_reload_is_started_again(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        register(rig.registry, "demo", 2)
        rig.registry.promote("demo@v1")
        served = await rig.serve("demo", swap="in_place", vllm_args=["--without-reload"])
        rig.registry.promote("demo@v2")
        await until(lambda: served.restarts == 1 and served.state == "ready")
        assert served.version == "demo@v2"
        assert await rig.ask("demo") == "demo@v2 " * 4


async def test_every_registered_name_can_be_called_when_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(service_module, "_NEW_NAMES_EVERY", 1)
    async with running_service(tmp_path, serve_registered=True) as rig:
        register(rig.registry, "demo", 2)
        await until(lambda: len(rig.service.models) == 3)
        for served in rig.service.models:
            assert (served.state, served.spec.lazy) == ("unloaded", True)


async def test_only_promoted_models_of_a_family_are_served_by_themselves(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(service_module, "_NEW_NAMES_EVERY", 1)
    async with running_service(tmp_path, serve_promoted="agent-") as rig:
        for name in ("agent-1-a", "agent-2-b", "other"):
            register(rig.registry, name, 2)
        rig.registry.promote("other@v1")
        rig.registry.promote("agent-1-a@v1")
        await until(lambda: rig.service.models)
        rig.service.add_registered()
        (served,) = rig.service.models
        assert (served.spec.name, served.state, served.spec.lazy) == ("agent-1-a", "unloaded", True)
        rig.registry.promote("agent-1-a@v2")
        assert rig.service.source_of("agent-1-a").version == "agent-1-a@v2", "what it would be loaded from"
        assert rig.service.find_source("agent-1-a@v1").version == "agent-1-a@v1"


async def test_closing_ends_every_process(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        register(rig.registry, "demo", 2)
        rig.registry.promote("demo@v1")
        served = await rig.serve("demo", vllm_args=SLOW)
        call = asyncio.create_task(rig.ask("demo"))
        await until(lambda: served.in_flight == 1)
        pids = [served.describe()["pid"]]
        rig.registry.promote("demo@v2")
        await until(lambda: served.version == "demo@v2")
        pids.append(served.describe()["pid"])
    assert not any(is_alive(pid) for pid in pids)
    await asyncio.gather(call, return_exceptions=True)


async def read(answer: Any) -> None:
    if hasattr(answer, "__aiter__"):
        _ = [chunk async for chunk in answer]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
