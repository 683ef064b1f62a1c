"""A blocked event loop is noticed."""

from __future__ import annotations

import asyncio
import threading
import time

from agentlightning.runner import watchdog
from agentlightning.runner.watchdog import LoopWatchdog


async def test_blocked_loop_is_reported_with_task_and_place(monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "WARN_AFTER_S", 0.3)
    stuck, seen = threading.Event(), []

    def on_stuck(task, stack):
        seen.append((task, stack))
        stuck.set()

    guard = LoopWatchdog(lambda blocked_s: blocked_s > 0.6, on_stuck)
    guard.start()

    async def blocks_the_loop():
        stuck.wait(10)

    task = asyncio.create_task(blocks_the_loop())
    await task
    guard.stop()
    ((culprit, stack),) = seen
    assert culprit is task
    assert "blocks_the_loop" in stack
    assert "must not call blocking functions" in caplog.text


async def test_free_loop_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "WARN_AFTER_S", 0.5)
    seen = []
    guard = LoopWatchdog(lambda blocked_s: blocked_s > 0.6, lambda *facts: seen.append(facts))
    guard.start()
    await asyncio.sleep(0.9)
    time.sleep(0.1)  # noqa: ASYNC251 - a short block is fine
    guard.stop()
    await asyncio.sleep(0.3)
    assert seen == []
    assert caplog.text == ""
