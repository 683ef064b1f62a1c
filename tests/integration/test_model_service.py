"""The model service with the embedded engine: versions change under load, and no request is dropped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from agentlightning.agent.adapter import calls_from_spans
from agentlightning.config import ModelSpec
from agentlightning.schemas import ModelCall
from tests.unit.learner.tiny import save_model
from tests.unit.modelservice.rig import USER, Rig, running_service, until

PROMOTIONS = ["v2", "v3", "v4", "v5", "v6"]


class Load:
    """Constant streaming and plain calls over HTTP, each on the rollout of its caller."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.answered = Counter[str]()
        self.failed: list[BaseException] = []
        self.rollouts: list[Any] = []
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, callers: int) -> None:
        for number in range(callers):
            rollout = await self.rig.store.start_rollout(input={"caller": number})
            self.rollouts.append(rollout)
            self._tasks.append(asyncio.create_task(self._call_on(rollout, stream=number % 2 == 0)))

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        """Wait for so many further answers."""
        goal = self.answered.total() + count
        await until(lambda: self.failed or self.answered.total() >= goal, timeout_s=100)

    async def _call_on(self, rollout: Any, *, stream: bool) -> None:
        prefix = f"/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}"
        async with self.rig.client(prefix) as client:
            while not self._stop.is_set():
                try:
                    answer = await client.chat.completions.create(
                        model="demo", messages=USER, max_tokens=30, temperature=1.0, stream=stream
                    )
                    if stream:
                        answer = [chunk async for chunk in answer]
                        assert answer[-1].choices[0].finish_reason in ("stop", "length")
                except (openai.APIError, AssertionError) as error:
                    self.failed.append(error)
                    return
                self.answered["stream" if stream else "plain"] += 1

    async def calls(self) -> list[list[ModelCall]]:
        """Each caller's calls, in order."""
        return [calls_from_spans(await self.rig.store.query_spans(r.rollout_id)) for r in self.rollouts]


def register_models(rig: Rig, folder: Path) -> None:
    for number in range(1, 7):
        source = save_model(folder / f"made-{number}", seed=number)
        rig.registry.register("demo", source, base="tiny", run_id=f"run-{number}", step=number, metrics={})


async def swap_under_load(tmp_path: Path, swap: Any) -> None:
    async with running_service(tmp_path) as rig:
        register_models(rig, tmp_path)
        rig.registry.promote("demo@v1")
        served = rig.service.add(ModelSpec(name="demo", engine="builtin", device="cpu", threads=1, swap=swap))
        await served.load()
        load = Load(rig)
        await load.start(callers=6)
        await load.more(12)
        for version in PROMOTIONS:
            await asyncio.to_thread(rig.registry.promote, f"demo@{version}")
            await until(lambda version=version: served.version == f"demo@{version}", timeout_s=100)
            await load.more(6)
        await asyncio.to_thread(rig.registry.rollback, "demo")
        await until(lambda: served.version == "demo@v5", timeout_s=100)
        await load.more(12)
        await load.stop()
        assert load.failed == []
        assert min(load.answered["stream"], load.answered["plain"]) > 0
        order = ["demo@v1", *(f"demo@{version}" for version in PROMOTIONS), "demo@v5"]
        seen: set[str] = set()
        for calls in await load.calls():
            places = follow([call.model_version for call in calls], order)
            assert places == sorted(places), "a call was answered by an older version than one before it"
            assert all(call.trainable for call in calls)
            seen |= {call.model_version for call in calls}
        assert seen == set(order)
        assert sum(len(calls) for calls in await load.calls()) == load.answered.total()
        assert (served.swaps, served.failed_calls, served.restarts) == (6, 0, 0)


def follow(versions: list[str], order: list[str]) -> list[int]:
    """Where each version stands in `order`, which holds one of them twice: the nearest place not before the last."""
    places: list[int] = []
    for version in versions:
        start = places[-1] if places else 0
        places.append(order.index(version, start) if version in order[start:] else -1)
    return places


@pytest.mark.timeout(400)
@pytest.mark.slow
async def test_in_place_changes_under_load_drop_nothing(tmp_path: Path) -> None:
    await swap_under_load(tmp_path, "in_place")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_changes_beside_under_load_drop_nothing(tmp_path: Path) -> None:
    await swap_under_load(tmp_path, "beside")


@pytest.mark.timeout(300)
@pytest.mark.slow
async def test_a_killed_engine_fails_its_calls_in_the_clients_shape_and_comes_back(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig:
        save_model(tmp_path / "tiny")
        spec = ModelSpec(name="tiny", source=str(tmp_path / "tiny"), engine="builtin", device="cpu", threads=1)
        served = rig.service.add(spec)
        await served.load()
        assert served.describe()["model"]["engine"] == "builtin"
        async with (
            rig.client() as client,
            anthropic.AsyncAnthropic(base_url=rig.gateway.url, api_key="any", max_retries=0) as other,
        ):
            # Random weights end a response only by chance: this many choices are still at work when the engine dies.
            calls = [
                asyncio.create_task(client.chat.completions.create(model="tiny", messages=USER, n=64)),
                asyncio.create_task(other.messages.create(model="tiny", messages=USER, max_tokens=120)),
            ]
            await until(lambda: served.in_flight == 2)
            os.kill(served.describe()["pid"], signal.SIGKILL)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert failed
            for error in failed:
                assert isinstance(error, openai.InternalServerError | anthropic.InternalServerError)
                assert error.status_code in (503, 529)
                assert "ended while it was answering" in str(error)
            await until(lambda: served.state == "ready", timeout_s=100)
            answer = await client.chat.completions.create(model="tiny", messages=USER, max_tokens=3)
            assert answer.usage.completion_tokens <= 3
        assert served.restarts == 1
