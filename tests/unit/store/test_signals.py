"""Waiters and how they are woken."""

from __future__ import annotations

import asyncio

from agentlightning.store.signals import Signals


async def test_waiter_is_woken_by_the_last_of_its_rollouts() -> None:
    signals = Signals()
    with signals.waiting_for_ends(["a", "b"]) as waiter:
        signals.rollout_ended("a")
        signals.rollout_ended("other")
        assert not await waiter.wait(0.01)
        signals.rollout_ended("b")
        assert await waiter.wait(1)
    assert not signals.anyone_waiting()


async def test_waiter_that_leaves_takes_nobody_with_it() -> None:
    signals = Signals()
    with signals.waiting_for_ends(["a"]) as stays:
        with signals.waiting_for_ends(["a"]):
            pass
        signals.rollout_ended("a")
        assert await stays.wait(1)
    with signals.waiting_for_work() as first, signals.waiting_for_work() as second:
        signals.work_queued()
        assert await first.wait(1)
        assert await second.wait(1)
        assert not await first.wait(0.01)
        assert signals.anyone_waiting()
        signals.wake_all()
        assert await first.wait(1)
    assert not signals.anyone_waiting()


def test_waiter_of_a_closed_loop_is_harmless() -> None:
    signals = Signals()

    async def enter() -> object:
        context = signals.waiting_for_work()
        context.__enter__()
        return context

    context = asyncio.run(enter())
    signals.work_queued()
    assert context is not None
