"""Judged rollouts as training data: pairs and samples from captured calls; what cannot be used is counted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentlightning.algorithm.judged import PreferencePair, preference_pairs, scored_samples
from agentlightning.algorithm.judged.conversation import conversation_of
from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import Span
from agentlightning.store import InMemoryLightningStore
from tests.unit.agent.builders import model_call

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
USER = {"role": "user", "content": "What is it?"}
ASK = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}],
}
SEEN = {
    "role": "tool",
    "tool_call_id": "1",
    "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "cat"}],
}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "refusal": None}


def call(messages: list[dict[str, Any]], output: dict[str, Any] | None, number: int = 1, **extra: Any) -> Span:
    span = model_call([1], [2], messages=messages, output=output, sequence_id=number, **extra)
    if output is None:
        span.attributes["gen_ai.output.messages"] = ""
    return span


@pytest.fixture
async def store() -> AsyncIterator[InMemoryLightningStore]:
    opened = InMemoryLightningStore()
    yield opened
    await opened.close()


async def run(store: InMemoryLightningStore, name: str, spans: list[Span], task: Any = "task") -> str:
    rollout = await store.start_rollout(task, rollout_id=name)
    attempt_id = rollout.attempt.attempt_id
    await store.add_many_spans(
        [span.model_copy(update={"rollout_id": name, "attempt_id": attempt_id}) for span in spans]
    )
    await store.update_attempt(name, attempt_id, status="succeeded")
    return attempt_id


def test_several_calls_are_one_conversation() -> None:
    found = conversation_of(
        [
            call([USER], ASK, 1, tools=TOOLS),
            call([USER, {**ASK, "content": "", "audio": None}, SEEN], says("a cat"), 2, tools=TOOLS),
        ]
    )
    assert not isinstance(found, str)
    assert found.prompt == [USER]
    assert [message["role"] for message in found.completion] == ["assistant", "tool", "assistant"]
    assert found.completion[0]["tool_calls"][0]["function"]["arguments"] == {"at": "it"}
    assert found.completion[1:] == [
        {"role": "tool", "tool_call_id": "1", "content": "a cat"},
        {"role": "assistant", "content": "a cat"},
    ]
    assert found.tools == TOOLS


def _answer_to_nothing() -> Span:
    span = call([USER], says("a"))
    span.attributes["gen_ai.input.messages"] = "[]"
    return span


def test_what_is_no_conversation_says_why() -> None:
    assert conversation_of([]) == "no_model_call"
    assert conversation_of([Span.from_attributes(attributes={"a": 1}, name="step")]) == "no_model_call"
    assert conversation_of([call([USER], None)]) == "no_answer"
    assert conversation_of([_answer_to_nothing()]) == "no_model_call"
    other = {"role": "user", "content": "something else"}
    assert conversation_of([call([USER], says("a"), 1), call([other], says("b"), 2)]) == "not_one_conversation"


def test_a_call_that_failed_and_was_repeated_does_not_count() -> None:
    found = conversation_of([call([USER], None, 1), call([USER], says("a cat"), 2)])
    assert not isinstance(found, str)
    assert found.completion == [{"role": "assistant", "content": "a cat"}]


def test_arguments_that_are_no_object_stay_as_written() -> None:
    odd = {**ASK, "tool_calls": [{"id": "1", "function": {"name": "look", "arguments": "{broken"}}]}
    found = conversation_of([call([USER], odd)])
    assert not isinstance(found, str)
    assert found.completion[0]["tool_calls"][0]["function"]["arguments"] == "{broken"


async def test_preferences_become_pairs(store: InMemoryLightningStore) -> None:
    await run(store, "good", [call([USER], says("a cat"), tools=TOOLS)])
    await run(store, "bad", [call([USER], says("dunno"), tools=TOOLS)])
    kept = await store.add_preference("good", "bad", weight=2.0)
    stream = preference_pairs(store)
    [pair] = [pair async for pair in stream]
    assert pair == PreferencePair(
        prompt=[USER],
        chosen=[{"role": "assistant", "content": "a cat"}],
        rejected=[{"role": "assistant", "content": "dunno"}],
        tools=TOOLS,
        weight=2.0,
        margin=None,
        source="person",
        preference_id=kept.preference_id,
        chosen_rollout_id="good",
        rejected_rollout_id="bad",
    )
    assert json.loads(pair.as_trl()["tools"]) == TOOLS
    assert (stream.report.used, stream.report.total) == (1, 1)


async def test_the_margin_is_the_difference_of_scores_unless_it_was_said(store: InMemoryLightningStore) -> None:
    for name, scores in {"a": [9, 7], "b": [3]}.items():
        await run(store, name, [call([USER], says(name))])
        for score in scores:
            await store.add_feedback(name, score=score)
    await store.add_preference("a", "b")
    await store.add_preference("a", "b", margin=4.0)
    assert [pair.margin async for pair in preference_pairs(store)] == [pytest.approx(0.5), 4.0]


async def test_what_cannot_be_a_pair_is_counted_with_the_reason(store: InMemoryLightningStore) -> None:
    system = {"role": "system", "content": "Be brief."}
    for name, task, spans in (
        ("good", "task", [call([USER], says("a cat"))]),
        ("equal", "task", [call([USER], says("a cat"))]),
        ("task", "other", [call([USER], says("dunno"))]),
        ("prompt", "task", [call([system, USER], says("dunno"))]),
        ("tools", "task", [call([USER], says("dunno"), tools=TOOLS)]),
        ("empty", "task", []),
        ("cut", "task", [call([USER], None)]),
        ("edited", "task", [call([USER], says("a"), 1), call([system], says("b"), 2)]),
    ):
        await run(store, name, spans, task)
        if name != "good":
            await store.add_preference("good", name, preference_id=name)
    await store.add_preference("empty", "good", preference_id="empty too")
    stream = preference_pairs(store)
    assert [pair async for pair in stream] == []
    assert stream.report.as_dict() == {
        "used": 0,
        "skipped": {
            "same_completion": 1,
            "different_task": 1,
            "different_prompt": 1,
            "different_tools": 1,
            "no_model_call": 2,
            "no_answer": 1,
            "not_one_conversation": 1,
        },
        "examples": {
            "same_completion": ["equal"],
            "different_task": ["task"],
            "different_prompt": ["prompt"],
            "different_tools": ["tools"],
            "no_model_call": ["empty", "empty too"],
            "no_answer": ["cut"],
            "not_one_conversation": ["edited"],
        },
    }
    by_task = preference_pairs(store, same="task")
    assert [pair.rejected_rollout_id async for pair in by_task] == ["prompt", "tools"]
    with pytest.raises(BadInputError, match="same is"):
        preference_pairs(store, same="mood")  # type: ignore[arg-type]


async def test_attempts_that_were_named_are_the_ones_compared(store: InMemoryLightningStore) -> None:
    first = await run(store, "r", [call([USER], says("first"))])
    second = (await store.start_attempt("r")).attempt.attempt_id
    span = call([USER], says("second")).model_copy(update={"rollout_id": "r", "attempt_id": second})
    await store.add_span(span)
    await store.add_preference("r", "r", chosen_attempt_id=first, rejected_attempt_id=second)
    [pair] = [pair async for pair in preference_pairs(store)]
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("first", "second")


async def test_many_pages_are_read(store: InMemoryLightningStore) -> None:
    for n in range(30):
        await run(store, f"r{n}", [call([USER], says(str(n)))])
    for n in range(130):
        await store.add_preference(f"r{n % 30}", f"r{(n + 1) % 30}")
    stream = preference_pairs(store)
    assert len([pair async for pair in stream]) == 130
    assert len([pair async for pair in stream]) == 130  # once more
    assert stream.report.used == 130


async def test_scores_become_samples(store: InMemoryLightningStore) -> None:
    attempt_id = await run(store, "r", [call([USER], says("a cat"), tools=TOOLS)])
    await run(store, "empty", [])
    await store.add_feedback("r", score=4, score_min=1, score_max=5, thumb="up", comment="nice", author="ada")
    await store.add_feedback("r", attempt_id=attempt_id, score=0)
    await store.add_feedback("r", thumb="down", feedback_id="thumb")
    await store.add_feedback("empty", score=5, feedback_id="empty")
    stream = scored_samples(store)
    first, second = [sample async for sample in stream]
    assert (first.prompt, first.completion) == ([USER], [{"role": "assistant", "content": "a cat"}])
    assert (first.score, first.comment, first.thumb, first.author, first.attempt_id) == (
        0.75,
        "nice",
        "up",
        "ada",
        None,
    )
    assert (second.score, second.attempt_id) == (0.0, attempt_id)
    assert stream.report.as_dict()["examples"] == {"no_score": ["thumb"], "no_model_call": ["empty"]}
    assert [sample.score async for sample in scored_samples(store, author="ada")] == [0.75]
