import asyncio
import contextvars
import threading

import pytest

from agentlightning.kit.bridge import run_sync

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name")


async def where(value: int) -> tuple[int, str]:
    await asyncio.sleep(0)
    return value, threading.current_thread().name


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


def test_without_a_loop_it_runs_here():
    assert run_sync(where(1)) == (1, threading.current_thread().name)


async def test_inside_a_running_loop_it_runs_on_a_thread_of_its_own():
    value, thread = run_sync(where(2))
    assert value == 2
    assert thread == "agl-bridge"


def test_errors_reach_the_caller():
    with pytest.raises(KeyError, match="gone"):
        run_sync(fail(KeyError("gone")))


async def test_errors_reach_the_caller_from_inside_a_loop():
    with pytest.raises(KeyError, match="gone"):
        run_sync(fail(KeyError("gone")))


async def test_even_an_exit_reaches_the_caller_from_inside_a_loop():
    with pytest.raises(SystemExit):
        run_sync(fail(SystemExit(3)))


async def test_none_is_a_result():
    assert run_sync(asyncio.sleep(0)) is None
