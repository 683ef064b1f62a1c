"""Several processes that answer on one port: a parent binds it, children inherit the socket. Knows no application.

A child runs the same command line and finds the socket's number in its environment. It ends when its parent does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import typer

VARIABLE = "AGL_INHERITED_SOCKET"
_BACK_SOON_S = 0.5
_QUICK_S = 5.0
_MAX_QUICK = 5
_GRACE_S = 30.0


def inherited() -> socket.socket | None:
    """The parent's socket, in a child; the child learns of the parent's end, too."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # when the parent dies
    bound = socket.socket(fileno=int(number))
    bound.setblocking(False)
    return bound


def url_of(host: str, bound: socket.socket) -> str:
    """Where it listens."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    return f"http://{name}:{bound.getsockname()[1]}"


async def supervise(bound: socket.socket, workers: int, ready: Callable[[], None]) -> None:
    """Run so many children until Ctrl-C or SIGTERM; replace those that die.

    Args:
        bound: The socket they answer on.
        workers: How many.
        ready: Called when the first ones run.

    Raises:
        ConfigError: They die as soon as they start.
    """
    from agentlightning.kit.errors import ConfigError
    from agentlightning.kit.signals import stop_requests

    stopped = asyncio.Event()
    quick = 0

    async def keep() -> None:
        nonlocal quick
        while not stopped.is_set():
            started = time.monotonic()
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agentlightning.cli.main", *sys.argv[1:]),
                pass_fds=[bound.fileno()],
                env={**os.environ, VARIABLE: str(bound.fileno())},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the parent, which tells them
            )
            try:
                await _until_stopped(child, stopped)
            finally:
                await _end(child)
            if stopped.is_set():
                return
            quick = quick + 1 if time.monotonic() - started < _QUICK_S else 0
            if quick >= _MAX_QUICK * workers:
                stopped.set()
                raise ConfigError("The workers end as soon as they start.", hint="See their messages above.")
            typer.echo(f"a worker ended ({child.returncode}); starting another", err=True)
            await asyncio.sleep(_BACK_SOON_S)

    with stop_requests(lambda number: stopped.set()):
        tasks = [asyncio.create_task(keep()) for _ in range(workers)]
        ready()
        try:
            await asyncio.gather(*tasks)
        finally:
            stopped.set()
            await asyncio.gather(*tasks, return_exceptions=True)
    typer.echo("stopped")


async def _until_stopped(child: asyncio.subprocess.Process, stopped: asyncio.Event) -> None:
    ended, asked = asyncio.create_task(child.wait()), asyncio.create_task(stopped.wait())
    await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
    for task in (ended, asked):
        task.cancel()
    await asyncio.gather(ended, asked, return_exceptions=True)


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.terminate()
    try:
        await asyncio.wait_for(child.wait(), _GRACE_S)
    except TimeoutError:
        child.kill()
        await child.wait()
