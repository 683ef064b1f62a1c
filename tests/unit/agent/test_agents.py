"""`as_agent`: everything that can be an agent; `LitAgent` and its references."""

from __future__ import annotations

import asyncio
import functools
import pickle
from typing import Any

import pytest

from agentlightning import LitAgent
from agentlightning.agent import AgentLoadError, as_agent, rollout
from agentlightning.agent.agents import Agent
from tests.unit.agent.builders import attempted


class Modes(LitAgent[str]):
    def training_rollout(self, task, resources, rollout):
        return f"train {task}"

    def validation_rollout(self, task, resources, rollout):
        return f"val {task}"


class AsyncModes(LitAgent[str]):
    async def training_rollout_async(self, task, resources, rollout):
        return f"train {task}"

    async def validation_rollout_async(self, task, resources, rollout):
        return f"val {task}"


class OneForAll(LitAgent[str]):
    def rollout(self, task, resources, rollout):
        return task


class OneForAllAsync(LitAgent[str]):
    async def rollout_async(self, task, resources, rollout):
        return task


class Callable:
    async def __call__(self, task):
        return f"called {task}"

    def method(self, task):
        return f"method {task}"


async def free(task, suffix="!"):
    return f"{task}{suffix}"


@pytest.mark.parametrize("agent", [Modes(), AsyncModes(), Modes])
async def test_litagent_method_follows_the_mode(agent):
    runnable = as_agent(agent)
    assert await runnable.run("x", {}, attempted(mode="train")) == "train x"
    assert await runnable.run("x", {}, attempted(mode="val")) == "val x"
    assert await runnable.run("x", {}, attempted(mode=None)) == "val x"


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (OneForAll(), "x"),
        (OneForAllAsync(), "x"),
        (free, "x!"),
        (functools.partial(free, suffix="?"), "x?"),
        (Callable(), "called x"),
        (Callable().method, "method x"),
        (lambda task: free(task), "x!"),
        (f"{__name__}:free", "x!"),
        (f"{__name__}:Callable.method", None),
    ],
)
async def test_anything_callable_is_an_agent(obj, expected):
    if expected is None:
        with pytest.raises(Exception, match="nothing fills"):
            await as_agent(obj).run("x", {}, attempted())
        return
    assert await as_agent(obj).run("x", {}, attempted()) == expected


async def test_what_has_run_is_taken_as_it_is():
    class Own:
        async def run(self, task: Any, resources: Any, rollout: Any) -> Any:
            return 1.0

    own = Own()
    assert isinstance(own, Agent)
    assert as_agent(own) is own


def test_what_cannot_be_called_is_refused():
    with pytest.raises(AgentLoadError, match="int is no agent"):
        as_agent(3)


async def test_litagent_that_overrides_nothing_says_so():
    class Lazy(LitAgent[str]): ...

    with pytest.raises(NotImplementedError, match="Lazy overrides neither"):
        await as_agent(Lazy()).run("x", {}, attempted())
    with pytest.raises(NotImplementedError):
        await Lazy().training_rollout_async("x", {}, attempted())


async def test_functional_agent_refuses_the_wrong_kind_of_call():
    @rollout
    def sync(task): ...

    @rollout
    async def asynchronous(task): ...

    with pytest.raises(RuntimeError, match="synchronous; use rollout"):
        await sync.rollout_async("x", {}, attempted())
    with pytest.raises(RuntimeError, match="use rollout_async"):
        asynchronous.rollout("x", {}, attempted())


class Holder:
    tracer = "the tracer"


def test_references_to_trainer_and_runner_are_weak_and_do_not_travel():
    agent = OneForAll()
    for getter in (agent.get_trainer, agent.get_runner, agent.get_tracer):
        with pytest.raises(ValueError, match=r"no (trainer|runner)"):
            getter()
    holder = Holder()
    agent.set_trainer(holder)
    assert agent.trainer is holder
    assert agent.tracer == "the tracer"
    runner = Holder()
    runner.tracer = "the runner's"
    agent.set_runner(runner)
    assert agent.runner is runner
    assert agent.tracer == "the runner's"
    copy = pickle.loads(pickle.dumps(agent))
    with pytest.raises(ValueError, match="no runner"):
        copy.get_runner()
    del holder
    with pytest.raises(ValueError, match="the trainer of this agent is gone"):
        agent.get_trainer()


def test_trained_agents_is_kept_but_deprecated():
    with pytest.warns(DeprecationWarning, match="agent_match"):
        assert OneForAll(trained_agents="a.*").trained_agents == "a.*"


async def test_synchronous_agents_run_beside_each_other():
    import threading

    barrier = threading.Barrier(4, timeout=5)

    def meets(task):
        barrier.wait()
        return task

    agent = as_agent(meets)
    assert await asyncio.gather(*(agent.run(i, {}, attempted()) for i in range(4))) == [0, 1, 2, 3]
