"""Work that several wait for is done once."""

import asyncio

import pytest

from agentlightning.kit.asyncs import Together


class Work:
    def __init__(self) -> None:
        self.calls = 0
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        await self.may_end.wait()
        return number


async def started(*tasks: asyncio.Task[int]) -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_all_who_ask_meanwhile_get_the_answer_to_the_first() -> None:
    together, work, other = Together[int](), Work(), Work()
    waiting = [asyncio.create_task(together.run("a", work)) for _ in range(5)]
    waiting.append(asyncio.create_task(together.run("b", other)))
    await started(*waiting)
    work.may_end.set()
    other.may_end.set()
    assert await asyncio.gather(*waiting) == [1] * 6
    assert (work.calls, other.calls) == (1, 1)
    assert await together.run("a", work) == 2  # it is over: asked anew


async def test_who_gives_up_takes_nothing_from_the_others() -> None:
    together, work = Together[int](), Work()
    first, second = (asyncio.create_task(together.run("a", work)) for _ in range(2))
    await started(first, second)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.may_end.set()
    assert await second == 1


async def test_a_failure_is_everybodys_and_not_kept() -> None:
    together, tries = Together[int](), []

    async def fail() -> int:
        tries.append(1)
        await asyncio.sleep(0)
        raise ValueError("no")

    found = await asyncio.gather(*(together.run("a", fail) for _ in range(3)), return_exceptions=True)
    assert [str(each) for each in found] == ["no"] * 3
    assert len(tries) == 1
    with pytest.raises(ValueError, match="no"):
        await together.run("a", fail)
    assert len(tries) == 2
