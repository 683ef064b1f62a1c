"""Which argument gets what."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning import LLM, PromptTemplate, ProxyLLM
from agentlightning.agent import (
    AgentSignatureError,
    MissingResourceError,
    as_agent,
    llm_rollout,
    prompt_rollout,
    rollout,
)
from agentlightning.agent.inject import Injector
from tests.unit.agent.builders import attempted, bare

PROXY = ProxyLLM(endpoint="http://127.0.0.1:9/v1", model="m")
PLAIN = LLM(endpoint="http://api/v1", model="other")
PROMPT = PromptTemplate(template="Hi {name}")
RESOURCES: dict[str, Any] = {"main": PROXY, "second": PLAIN, "greeting": PROMPT}
TASK = {"question": "q", "database": "d", "gold": "g"}
BOUND = "http://127.0.0.1:9/rollout/r1/attempt/a1/v1"


def takes_task(task):
    return task


def takes_first(thing):
    return thing


def takes_question(question):
    return question


def takes_spread(question, database, model=None):
    return question, database, model


def takes_llm(task, llm):
    return task, llm.endpoint


def takes_llm_alone(llm, task):
    return task, llm.endpoint


def takes_optional_llm(task, llm=None):
    return llm


def takes_prompt(task, prompt_template):
    return prompt_template.template


def takes_named(task, second, greeting):
    return second.model, greeting.template


def takes_resources(task, resources):
    return sorted(resources)


def takes_rollout(task, rollout):
    return rollout.rollout_id


def takes_keywords(task, *, rollout):
    return rollout.rollout_id


def takes_kwargs(**everything):
    return everything


def takes_some_and_kwargs(question, **rest):
    return question, rest


def takes_args(*things):
    return things


def takes_position_only(task, rollout, /):
    return task, rollout.rollout_id


def takes_keyword_task(*, task):
    return task


def takes_partly(question, missing=3):
    return question, missing


TABLE = [
    (takes_task, TASK, TASK),
    (takes_task, "text", "text"),
    (takes_first, TASK, TASK),
    (takes_first, 7, 7),
    (takes_question, TASK, "q"),
    (takes_question, "text", "text"),
    (takes_question, {"other": 1}, {"other": 1}),
    (takes_spread, TASK, ("q", "d", None)),
    (takes_llm, "t", ("t", BOUND)),
    (takes_llm_alone, "t", ("t", BOUND)),
    (takes_prompt, "t", "Hi {name}"),
    (takes_named, "t", ("other", "Hi {name}")),
    (takes_resources, "t", ["greeting", "main", "second"]),
    (takes_rollout, "t", "r1"),
    (takes_keywords, "t", "r1"),
    (takes_kwargs, TASK, TASK),
    (takes_some_and_kwargs, TASK, ("q", {"database": "d", "gold": "g"})),
    (takes_args, TASK, (TASK,)),
    (takes_position_only, "t", ("t", "r1")),
    (takes_keyword_task, "t", "t"),
    (takes_partly, TASK, ("q", 3)),
    (takes_partly, {1: 2}, ({1: 2}, 3)),
]


@pytest.mark.parametrize(("function", "task", "expected"), TABLE, ids=lambda v: getattr(v, "__name__", None))
async def test_plain_function_gets_what_its_argument_names_say(function, task, expected):
    assert await as_agent(function).run(task, RESOURCES, attempted()) == expected


@pytest.mark.parametrize(("function", "task", "expected"), TABLE, ids=lambda v: getattr(v, "__name__", None))
async def test_decorated_function_gets_the_same_and_stays_callable(function, task, expected):
    agent = rollout(function)
    assert await as_agent(agent).run(task, RESOURCES, attempted()) == expected
    assert agent.__name__ == function.__name__
    if function in (takes_task, takes_first):
        assert agent(5) == 5


async def test_async_function_is_injected_alike():
    @rollout
    async def agent(task, llm, prompt_template, rollout):
        return task, llm.endpoint, prompt_template.template, rollout.rollout_id

    assert await as_agent(agent).run("t", RESOURCES, attempted()) == ("t", BOUND, "Hi {name}", "r1")
    assert (await agent("t", PLAIN, PROMPT, bare()))[1] == "http://api/v1"


async def test_resource_of_the_asked_name_comes_before_the_first_of_its_type():
    agent = as_agent(takes_llm)
    assert (await agent.run("t", {"a": PROXY, "llm": PLAIN}, attempted()))[1] == "http://api/v1"


async def test_strip_proxy_false_hands_over_the_proxy():
    @llm_rollout(strip_proxy=False)
    def agent(task, llm):
        return llm

    assert await as_agent(agent).run("t", RESOURCES, attempted()) is PROXY


async def test_a_rollout_without_attempt_leaves_the_proxy_as_it_is():
    assert (await as_agent(takes_llm).run("t", RESOURCES, bare()))[1] == PROXY.endpoint


async def test_optional_resource_that_is_missing_stays_at_its_default():
    assert await as_agent(takes_optional_llm).run("t", {}, attempted()) is None


@pytest.mark.parametrize("wrap", [lambda f: f, rollout])
async def test_missing_resource_is_named_with_those_that_exist(wrap):
    with pytest.raises(MissingResourceError, match=r"asks for 'llm'.*no LLM.*greeting \(PromptTemplate\)"):
        await as_agent(wrap(takes_llm)).run("t", {"greeting": PROMPT}, attempted())
    with pytest.raises(MissingResourceError, match=r"no PromptTemplate among the resources: none"):
        await as_agent(wrap(takes_prompt)).run("t", {}, attempted())


async def test_argument_that_nothing_fills_is_named_with_what_there_is():
    with pytest.raises(AgentSignatureError, match=r"arguments that nothing fills: database.*task: \['question'\]"):
        await as_agent(takes_spread).run({"question": "q"}, RESOURCES, attempted())
    with pytest.raises(AgentSignatureError, match=r"nothing fills: database.*task: str"):
        await as_agent(takes_spread).run("text", RESOURCES, attempted())


async def test_function_without_room_for_the_task_is_refused():
    def only_resources(resources): ...

    with pytest.raises(AgentSignatureError, match="no argument for the task"):
        await as_agent(only_resources).run("t", RESOURCES, attempted())
    with pytest.raises(AgentSignatureError, match="takes no arguments"):
        rollout(lambda: 1.0)


def test_decorators_check_the_signature():
    with pytest.raises(ValueError, match=r"needs the arguments \(task, llm\); it has \(task\)"):
        llm_rollout(takes_task)
    with pytest.raises(ValueError, match="prompt_template"):
        prompt_rollout(takes_llm)
    assert prompt_rollout()(takes_prompt)("t", PROMPT) == "Hi {name}"
    assert prompt_rollout(takes_prompt).is_async() is False


def test_builtin_without_signature_is_refused_with_advice():
    with pytest.raises(AgentSignatureError, match="Wrap it"):
        Injector(type("NoSignature", (), {"__signature__": "broken", "__call__": lambda self: 1})())
