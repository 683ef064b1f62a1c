"""Agents that runner processes import in the tests."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import agentlightning as agl


@agl.rollout
def decorated(task: Any) -> float:
    agl.emit_message(f"pid {os.getpid()}")
    time.sleep(0.03)
    return float(task)


def crashing(task: Any) -> float:
    """Takes its whole process down when told to, once or always."""
    if task == "always":
        os._exit(9)
    if isinstance(task, dict):
        flag = Path(task["flag"])
        if not flag.exists():
            flag.touch()
            time.sleep(0.3)  # let the neighbours begin
            os._exit(11)
    time.sleep(0.5)
    return 1.0


async def blocking(task: Any) -> float:
    """An asynchronous agent that calls something blocking."""
    if task == "block":
        time.sleep(120)  # noqa: ASYNC251 - the mistake under test
    await asyncio.sleep(0.3)
    return 1.0


async def slow(task: Any) -> float:
    await asyncio.sleep(float(task))
    return 1.0


def wild(task: Any) -> float:
    """Misbehaves as the task says."""
    kind = task["kind"] if isinstance(task, dict) else task
    if kind == "abort":
        sys.stderr.write("about to abort\n")
        os.abort()
    if kind == "exit 0":
        os._exit(0)
    if kind == "sys.exit":
        sys.exit(4)
    if kind == "stop":  # as a native library does that holds the interpreter lock: no thread of the process runs
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "deaf":
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(0.05)
    if kind == "segfault":
        ctypes.string_at(0)
    agl.emit_message(f"pid {os.getpid()}")
    time.sleep(0.02)
    return 1.0


async def spans_and_time(task: Any) -> float:
    """Leaves three spans over a while."""
    for step in range(3):
        agl.emit_annotation({"step": step})
        await asyncio.sleep(0.05)
    return float(task["n"])


async def on_ray(task: Any) -> float:
    """Says where it runs."""
    import ray

    agl.emit_message(ray.get_runtime_context().get_node_id())
    for step in range(3):
        agl.emit_annotation({"step": step})
        await asyncio.sleep(0.1)
    if task["n"] == "block":
        time.sleep(60)  # noqa: ASYNC251 - the mistake under test
    if task["n"] == "die":
        os._exit(7)
    return float(task["n"])


async def block_for(task: Any) -> float:
    """Blocks its event loop for so many seconds."""
    time.sleep(task)  # noqa: ASYNC251 - the mistake under test
    return 1.0
