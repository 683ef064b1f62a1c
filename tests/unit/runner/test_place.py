"""Places of a pool: what a death costs, and who is watched afterwards. The runners here are tasks that end as told."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from agentlightning import FailurePolicy
from agentlightning.kit.errors import AgentLightningError
from agentlightning.runner.failure import Failure, RunnerCrashedError
from agentlightning.runner.place import KilledAtStartError, Place, RunnerStartError, Terms
from agentlightning.schemas import AttemptedRollout, Rollout
from agentlightning.store import InMemoryLightningStore
from agentlightning.store.base import LightningStore

End = RunnerCrashedError | Literal["finished", "next"]
OPTIONS: dict[str, Any] = {"max_concurrency": 8, "max_rollouts": None}
DEATH = RunnerCrashedError("it died")


class ScriptedPlace(Place):
    """Each runner claims `claims` rollouts and ends as the next entry of `ends` says."""

    def __init__(self, store: LightningStore, ends: list[tuple[int, End]], *, max_restarts: int = 5) -> None:
        self.given_up: list[AgentLightningError] = []
        terms = Terms(
            policy=FailurePolicy(),
            store=lambda: store,
            gave_up=self.given_up.append,
            max_restarts=max_restarts,
            start_timeout_s=5.0,
            drain_timeout_s=0.1,
        )
        super().__init__(0, terms)
        self._store = store
        self._ends = ends
        self.options: list[dict[str, Any]] = []
        self.refusals: list[AgentLightningError] = []
        self.is_slow = False

    async def _launch(self) -> None:
        self.name = f"runner-{len(self.options)}"
        if self.options and self.refusals:
            raise self.refusals.pop(0)
        self.options.append(self._carefully(OPTIONS))
        if self.is_slow:
            await asyncio.sleep(3600)

    async def _end(self) -> End:
        claims, end = self._ends.pop(0)
        await self._store.dequeue_many_rollouts(limit=claims, worker_id=self.name)
        if isinstance(end, str):
            was_careful = self._cleared()
            return "next" if was_careful else end
        return end

    async def _rescue(self, store: LightningStore) -> None:
        """Nothing is kept."""

    async def _end_runner(self) -> None:
        """It has ended."""


async def run(place: Place) -> None:
    await place.start()
    place.watch()
    await asyncio.wait_for(place.ended(), 100)
    await place.stop()


async def attempts(store: LightningStore) -> list[tuple[str, int]]:
    found = await store.query_rollouts(sort_by="rollout_id")
    return [(r.status, r.attempt.sequence_id) for r in found if isinstance(r, AttemptedRollout)]


async def test_those_that_were_lost_together_run_a_few_at_a_time_then_alone() -> None:
    store = InMemoryLightningStore()
    for _ in range(5):
        await store.enqueue_rollout("x")
    ends: list[tuple[int, End]] = [(5, DEATH), (3, DEATH), (1, DEATH), (0, "finished"), (0, "finished")]
    place = ScriptedPlace(store, ends)
    await run(place)
    widths = [(options["max_concurrency"], options["max_rollouts"]) for options in place.options]
    assert widths == [(8, None), (3, 5), (1, 5), (1, 5), (8, None)]
    assert place.restarts == 3
    assert place.given_up == []
    assert sorted(await attempts(store)) == [("requeuing", 1)] + [("requeuing", 2)] * 4
    await store.close()


def test_innocent_ones_lose_no_attempt() -> None:
    failure, rollout = Failure.of(DEATH), Rollout(rollout_id="r", input="x", start_time=0.0)
    decide = FailurePolicy(retries=2).decide
    assert [decide(failure, rollout, n).kind for n in (2, 3)] == ["retry", "drop"]
    assert [decide(failure, rollout, n, may_be_innocent=True).kind for n in (2, 3, 9)] == ["retry"] * 3
    assert FailurePolicy(crashed="drop").decide(failure, rollout, 1, may_be_innocent=True).kind == "drop"


async def test_runner_that_is_killed_while_it_starts_is_started_again() -> None:
    place = ScriptedPlace(InMemoryLightningStore(), [(0, DEATH), (0, "finished")])
    place.refusals = [KilledAtStartError("killed"), KilledAtStartError("killed")]
    await run(place)
    assert (len(place.options), place.restarts, place.given_up) == (2, 1, [])


@pytest.mark.parametrize(
    ("refusal", "max_restarts"), [(RunnerStartError("no module"), 5), (KilledAtStartError("killed"), 1)]
)
async def test_place_is_given_up_when_starting_again_does_not_help(
    refusal: RunnerStartError, max_restarts: int
) -> None:
    place = ScriptedPlace(InMemoryLightningStore(), [(0, DEATH)], max_restarts=max_restarts)
    place.refusals = [refusal]
    await run(place)
    assert place.is_over
    assert "could not be replaced" in place.given_up[0].message


async def test_place_that_dies_too_often_is_given_up() -> None:
    place = ScriptedPlace(InMemoryLightningStore(), [(0, DEATH)] * 3, max_restarts=2)
    await run(place)
    assert (place.restarts, [error.message for error in place.given_up]) == (2, ["it died"])


async def test_stop_ends_a_start_that_is_under_way() -> None:
    place = ScriptedPlace(InMemoryLightningStore(), [(0, "next")])
    await place.start()
    place.is_slow = True
    place.watch()
    while len(place.options) < 2:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    await asyncio.wait_for(place.stop(), 100)
    assert place.given_up == []
