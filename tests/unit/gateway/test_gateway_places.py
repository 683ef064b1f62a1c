"""Places at a target and the queue for them."""

from __future__ import annotations

import asyncio

import pytest

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.limits import Places


async def test_free_places_are_taken_at_once_and_given_back() -> None:
    places = Places()
    await places.take(2, "a", 1)
    await places.take(2, "a", 1)
    assert places.taken == 2
    places.leave()
    places.leave()
    assert places.taken == 0
    await places.wait_idle()


async def test_the_queue_is_fair_among_callers() -> None:
    places, served = Places(), list[str]()
    await places.take(1, "greedy", 5)

    async def wait(caller: str) -> None:
        await places.take(1, caller, 5)
        served.append(caller)
        places.leave()

    tasks = [asyncio.create_task(wait("greedy")) for _ in range(5)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(wait(caller)) for caller in ("modest", "shy")]
    await asyncio.sleep(0)
    assert places.waiting == 7
    places.leave()
    await asyncio.gather(*tasks)
    assert served == ["greedy", "modest", "shy", "greedy", "greedy", "greedy", "greedy"]
    assert (places.taken, places.waiting) == (0, 0)


async def test_who_waits_too_long_is_told_and_leaves_the_line() -> None:
    places = Places()
    await places.take(1, "a", 1)
    with pytest.raises(CallError, match="1 calls are in flight") as caught:
        await places.take(1, "b", 0.01)
    assert (caught.value.status, caught.value.reason) == (503, "overloaded")
    places.leave()
    assert places.taken == 0


async def test_who_is_cancelled_leaves_the_line_and_loses_no_place() -> None:
    places = Places()
    await places.take(1, "a", 1)
    waiting = [asyncio.create_task(places.take(1, "b", 5)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    places.leave()
    await waiting[1]
    assert (places.taken, places.waiting) == (1, 0)
    # Its turn comes and it is cancelled in the same moment: the place goes on to the next.
    last = [asyncio.create_task(places.take(1, caller, 5)) for caller in ("b", "c")]
    await asyncio.sleep(0)
    places.leave()
    last[0].cancel()
    await last[1]
    places.leave()
    assert places.taken == 0


async def test_idleness_can_be_waited_for() -> None:
    places = Places()
    await places.take(1, "a", 1)
    idle = asyncio.create_task(places.wait_idle())
    await asyncio.sleep(0)
    assert not idle.done()
    places.leave()
    await asyncio.wait_for(idle, 1)
