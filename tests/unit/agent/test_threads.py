"""Threads that may be given up."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest

from agentlightning.agent.threads import AgentThreads


async def test_context_travels_and_results_and_errors_come_back():
    variable = contextvars.ContextVar("v", default=0)
    variable.set(5)
    threads = AgentThreads(2)
    assert await threads.run(variable.get) == 5
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        await threads.run(lambda: exit(3))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(lambda: next(iter(())))
    threads.close()


async def test_no_more_than_size_run_at_once_and_threads_are_reused():
    threads, names, running, most = AgentThreads(3), set(), 0, 0
    lock = threading.Lock()

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            names.add(threading.current_thread().name)
        time.sleep(0.005)
        with lock:
            running -= 1

    await asyncio.gather(*(threads.run(work) for _ in range(20)))
    assert most == 3
    assert len(names) == 3
    threads.close()


async def test_hung_call_costs_its_thread_but_not_its_place():
    threads = AgentThreads(1)
    release = threading.Event()
    task = asyncio.create_task(threads.run(lambda: release.wait(30)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert threads.abandoned == 1
    assert await asyncio.wait_for(threads.run(lambda: "works"), 100) == "works"
    release.set()
    threads.close()


@pytest.mark.parametrize("share", ["all of a processor", "next to nothing, as on a busy machine"])
async def test_abandoned_loop_of_python_code_is_ended(share):
    threads = AgentThreads(1)
    ended = threading.Event()

    def spin():
        try:
            while True:
                if share != "all of a processor":
                    time.sleep(0.02)
                sum(range(20_000))
        finally:
            ended.set()

    task = asyncio.create_task(threads.run(spin))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(ended.wait, 100)
    threads.close()


async def test_abandoned_call_that_is_blocked_is_left_alone():
    threads = AgentThreads(1)
    release, after = threading.Event(), threading.Event()

    def wait():
        release.wait(100)
        after.set()

    task = asyncio.create_task(threads.run(wait))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.5)  # three looks
    release.set()
    assert await asyncio.to_thread(after.wait, 100)
    threads.close()


async def test_call_cancelled_while_it_waits_for_a_thread_never_runs():
    threads, ran = AgentThreads(1), []
    first = asyncio.create_task(threads.run(lambda: time.sleep(0.1)))
    second = asyncio.create_task(threads.run(lambda: ran.append(1)))
    await asyncio.sleep(0.02)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert await threads.run(lambda: "next") == "next"
    assert ran == []
    assert threads.abandoned == 0
    threads.close()


def test_result_for_a_loop_that_is_gone_goes_nowhere():
    threads = AgentThreads(1)
    release, ended = threading.Event(), threading.Event()

    def work():
        release.wait(5)
        ended.set()

    async def start():
        task = asyncio.ensure_future(threads.run(work))
        await asyncio.sleep(0.02)
        task.remove_done_callback  # noqa: B018 - the task is simply left behind
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(start())
    task._log_destroy_pending = False
    loop.close()
    release.set()
    assert ended.wait(5)
