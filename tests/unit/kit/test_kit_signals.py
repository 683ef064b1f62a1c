"""Wishes to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from agentlightning.kit.signals import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_is_told_once_and_the_block_leaves_nothing(number: signal.Signals) -> None:
    told: list[int] = []
    stopped = asyncio.Event()
    with stop_requests(lambda number: (told.append(number), stopped.set())[0]):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stopped.wait(), 100)
    assert told == [number]
    loop = asyncio.get_running_loop()
    assert not any(loop.remove_signal_handler(each) for each in (signal.SIGINT, signal.SIGTERM))


async def test_other_threads_may_use_it_but_hear_nothing() -> None:
    async def block() -> str:
        with stop_requests(lambda number: None):
            return "done"

    assert await asyncio.to_thread(lambda: asyncio.run(block())) == "done"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_second_signal_ends_the_program(number: signal.Signals, code: int) -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from agentlightning.kit.signals import stop_requests

        async def main():
            with stop_requests(lambda number: print("asked", flush=True)):
                print("ready", flush=True)
                await asyncio.sleep(60)

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            sys.exit(130)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for word in ("ready", "asked"):
            assert process.stdout.readline().strip() == word
            process.send_signal(number)
        assert process.wait(30) == code
