"""What a return value means."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning import OtelTracer, Span
from agentlightning.agent import AgentSignatureError, BadResultError, Evaluator, emit_reward
from agentlightning.agent.results import read_evaluation, read_result
from agentlightning.schemas import LLM
from tests.unit.agent.builders import attempted


class Scalar:
    """Like a NumPy or torch scalar."""

    def __init__(self, value: Any, size: int = 1) -> None:
        self.value, self.size = value, size

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1")
        return self.value


@pytest.mark.parametrize(
    ("value", "rewards"),
    [
        (0.5, [("primary", 0.5)]),
        (2, [("primary", 2.0)]),
        (True, [("primary", 1.0)]),
        (False, [("primary", 0.0)]),
        (Scalar(0.25), [("primary", 0.25)]),
        (None, []),
        ({"reward": 1}, [("reward", 1.0)]),
        ({"reward": None, "note": "x"}, []),
        ({"cost": 2, "reward": 0.5, "text": "x"}, [("reward", 0.5), ("cost", 2.0)]),
        ([], []),
    ],
)
def test_numbers_none_and_dicts_are_rewards(value, rewards):
    assert read_result(value).rewards == rewards


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("42", r"returned str \('42'\).*a number, None, a dict"),
        (b"x", "returned bytes"),
        (object(), "returned object"),
        ("x" * 200, r"xxx\.\.\."),
        ({"score": 1}, r"without 'reward' \(keys: \['score'\]"),
        ({"reward": "high"}, "is a number, not str"),
        ([1, 2], "list of int"),
        (float("nan"), "is finite, not nan"),
        (float("inf"), "is finite, not inf"),
        ({"reward": 1.0, "other": float("nan")}, "'other' is finite"),
        (Scalar(1, size=3), "one number, but this is Scalar"),
    ],
)
def test_everything_else_is_refused_with_the_way_out(value, says):
    with pytest.raises(BadResultError, match=says):
        read_result(value)


def test_refusal_tells_how_to_add_an_evaluator():
    with pytest.raises(BadResultError, match="evaluator="):
        read_result("text")


def test_lists_of_spans_are_taken():
    ours = Span.from_attributes(attributes={})
    core = emit_reward(1.0, propagate=False)
    tracer = OtelTracer()
    with tracer.trace_context_sync("x") as otel:
        theirs = otel.start_span("theirs")
        theirs.end()
    for span in (ours, core, theirs):
        assert read_result([span]).spans == [span]
    with pytest.raises(BadResultError, match="Span, SpanCoreFields"):
        read_result([ours, core])


def named(task, output):
    return task["gold"] == output


def swapped(output, task):
    return task["gold"] == output


def keyed(output, gold):
    return gold == output


def other_names(t, o):
    return t["gold"] == o


def only_output(answer):
    return answer == "g"


def key_and_other(gold, answer):
    return gold == answer


def rich(task, output, rollout, resources, llm):
    return (rollout.rollout_id, llm.model) == ("r1", "m")


def loose(task, output, **more):
    return not more and task["gold"] == output


@pytest.mark.parametrize("function", [named, swapped, keyed, other_names, only_output, key_and_other, rich, loose])
def test_evaluator_gets_what_its_argument_names_say(function):
    resources: Any = {"main": LLM(endpoint="http://x", model="m")}
    evaluator = Evaluator(function)
    args, kwargs = evaluator.bind({"gold": "g"}, "g", resources, attempted())
    assert function(*args, **kwargs) is True
    assert evaluator.is_async is False


def test_evaluator_with_arguments_that_nothing_fills_is_refused():
    with pytest.raises(AgentSignatureError, match="nothing fills: a, b, c"):
        Evaluator(lambda a, b, c: 1.0).bind("t", "o", {}, attempted())


def test_async_evaluators_are_recognised():
    async def judge(task, output): ...

    class Judge:
        async def __call__(self, task, output): ...

    assert Evaluator(judge).is_async
    assert Evaluator(Judge()).is_async


@pytest.mark.parametrize(
    ("value", "rewards"),
    [
        (None, []),
        (1, [("primary", 1.0)]),
        ({"accuracy": 0.5}, [("accuracy", 0.5)]),
        ({"reward": 1.0, "speed": 3}, [("reward", 1.0), ("speed", 3.0)]),
    ],
)
def test_evaluations_are_numbers_dicts_or_none(value, rewards):
    assert read_evaluation(value) == rewards


@pytest.mark.parametrize("value", ["good", {"a": 1, "b": 2}, float("nan")])
def test_other_evaluations_are_refused(value):
    with pytest.raises(BadResultError):
        read_evaluation(value)
