"""What a store offers to learn from: the best of each task, pairs by reward, preferences."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from agentlightning.agent.emit.rewards import RewardDimension, reward_attributes
from agentlightning.algorithm.judged.stream import Skips
from agentlightning.algorithm.supervised.traces import (
    Rated,
    best_of,
    contrasted,
    contrasts,
    demonstrations,
    first_call,
    preferred,
    rated_rollouts,
    said_in,
)
from agentlightning.config import DPOConfig, SFTConfig
from agentlightning.schemas import Span, semconv
from agentlightning.schemas.example import Dialogue, TokenExample
from agentlightning.store import InMemoryLightningStore
from tests.unit.agent.builders import model_call

USER = {"role": "user", "content": "hi"}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest_asyncio.fixture
async def store() -> AsyncIterator[InMemoryLightningStore]:
    opened = InMemoryLightningStore()
    yield opened
    await opened.close()


async def add(
    store: InMemoryLightningStore,
    name: str,
    task: Any,
    reward: float | None,
    *spans: Span,
    mode: Any = "train",
    status: Any = "succeeded",
) -> None:
    rollout = await store.start_rollout(task, mode=mode, rollout_id=name)
    attempt = rollout.attempt.attempt_id
    found = list(spans)
    if reward is not None:
        attributes = reward_attributes([RewardDimension("primary", reward)])
        found.append(
            Span.from_attributes(
                name=semconv.AGL_ANNOTATION, attributes=attributes, rollout_id=name, attempt_id=attempt, sequence_id=99
            )
        )
    for span in found:
        await store.add_span(span.model_copy(update={"rollout_id": name, "attempt_id": attempt}))
    await store.update_attempt(name, attempt, status=status)


def call(prompt: list[int] | None, response: list[int] | None, text: str = "yo", **extra: Any) -> Span:
    return model_call(prompt, response, messages=[USER], output=says(text), **extra)


async def rated(store: InMemoryLightningStore, config: Any = None) -> tuple[list[Rated], Skips]:
    report = Skips()
    return await rated_rollouts(store, config or SFTConfig(), report, without="own."), report


async def test_only_rewarded_rollouts_of_open_modes_count(store: InMemoryLightningStore) -> None:
    await add(store, "a", {"q": 1}, 1.0)
    await add(store, "b", {"q": 1}, None)
    await add(store, "c", {"q": 2}, 0.5, mode="val")
    await add(store, "own.d", {"q": 2}, 0.5)
    await add(store, "e", {"q": 2}, 0.5, status="failed")
    await add(store, "f", {"q": 2}, 0.5, mode=None)
    found, report = await rated(store)
    assert [(one.rollout_id, one.reward) for one in found] == [("a", 1.0), ("f", 0.5)]
    assert dict(report.skipped) == {"no_reward": 1, "other_mode": 1}
    found, _ = await rated(store, SFTConfig(modes=("val",), run="c"))
    assert [one.rollout_id for one in found] == ["c"]


async def test_scores_of_feedback_stand_for_the_reward_where_wanted(store: InMemoryLightningStore) -> None:
    for name, reward in (("a", 0.25), ("b", 0.5), ("c", None)):
        await add(store, name, {"q": name}, reward)
    for author, score in (("ada", 1), ("bob", 10), ("ada", 8)):
        await store.add_feedback("a", score=score, score_min=0, score_max=10, author=author)
    await store.add_feedback("b", thumb="up")
    await store.add_feedback("c", score=0, author="ada")
    report = Skips()
    found = await rated_rollouts(store, SFTConfig(), report, without="own.", feedback=True)
    assert [(one.rollout_id, one.reward) for one in found] == [("a", 0.9), ("b", 0.5), ("c", 0.0)]
    plain, report = await rated(store)
    assert [(one.rollout_id, one.reward) for one in plain] == [("a", 0.25), ("b", 0.5)]


async def test_who_trains_says_what_is_left_out(store: InMemoryLightningStore) -> None:
    await add(store, "a", {"q": 1}, 1.0)
    await add(store, "b", {"q": 2}, 1.0)
    report = Skips()
    found = await rated_rollouts(
        store, SFTConfig(), report, without="own.", leave_out=lambda one: "asked" if one.input["q"] == 1 else None
    )
    assert [one.rollout_id for one in found] == ["b"]
    assert dict(report.skipped) == {"asked": 1}


def test_the_best_of_each_task() -> None:
    rollouts = [Rated("a", "x", 0.5), Rated("b", "x", 1.0), Rated("c", "x", 1.0), Rated("d", "y", 0.2)]
    report = Skips()
    assert [one.rollout_id for one in best_of(rollouts, SFTConfig(top_k=1), report)] == ["b", "d"]
    assert dict(report.skipped) == {"not_among_the_best": 2}
    report = Skips()
    assert [one.rollout_id for one in best_of(rollouts, SFTConfig(min_reward=0.5), report)] == ["a", "b", "c"]
    assert dict(report.skipped) == {"low_reward": 1}


def test_pairs_are_the_extremes_of_a_task() -> None:
    rollouts = [Rated(f"a{i}", "x", i / 4) for i in range(5)] + [Rated("b", "y", 1.0), Rated("c", "z", 0.0)]
    rollouts.append(Rated("c2", "z", 0.0))
    report = Skips()
    found = contrasts(rollouts, DPOConfig(pairs_per_task=4), report)
    assert [(better.rollout_id, worse.rollout_id) for better, worse in found] == [("a4", "a0"), ("a3", "a1")]
    assert dict(report.skipped) == {"only_one_rollout": 1, "equal_rewards": 1}
    assert len(contrasts(rollouts, DPOConfig(min_margin=0.6), Skips())) == 1
    assert len(contrasts(rollouts, DPOConfig(pairs_per_task=1), Skips())) == 1


def test_captured_tokens_are_taken_as_they_are() -> None:
    first = call([1, 2], [3, 4], **{semconv.NOT_TRAINABLE_BECAUSE: "a format was enforced"})
    second = call([1, 2, 3, 4, 5], [6], sequence_id=2)
    [example] = said_in([first, second], "auto")
    assert example == TokenExample(token_ids=[1, 2, 3, 4, 5, 6], loss_mask=[0, 0, 1, 1, 0, 1])
    # Without log-probabilities it cannot be reinforced, but it can be imitated.
    bare = call([1], [2])
    del bare.attributes[semconv.RESPONSE_LOGPROBS]
    assert said_in([bare], "captured") == [TokenExample(token_ids=[1, 2], loss_mask=[0, 1])]
    found = first_call([first])
    assert found is not None
    assert found[0] == Dialogue(prompt=[USER], completion=[says("yo")])


def test_without_tokens_the_messages_are_taken() -> None:
    spans = [call([1, 2], [3, 4]), call(None, None, "no", sequence_id=2)]
    found = said_in(spans, "auto")  # two answers to the same prompt: no conversation
    assert found == [Dialogue(prompt=[USER], completion=[says(text)]) for text in ("yo", "no")]
    assert said_in(spans, "captured") == "no_tokens"
    assert said_in(spans[:1], "messages") == [Dialogue(prompt=[USER], completion=[says("yo")])]
    assert said_in([], "auto") == "no_model_call"
    assert first_call([]) is None


async def test_demonstrations_and_pairs_of_rollouts(store: InMemoryLightningStore) -> None:
    await add(store, "a", {"q": 1}, 1.0, call([1], [2]))
    await add(store, "b", {"q": 1}, 0.0, call([1], [3], "no"))
    await add(store, "c", {"q": 2}, 1.0)
    await add(store, "d", {"q": 2}, 0.0, call(None, None))
    await add(store, "e", {"q": 3}, 1.0, call([1], [2]), call([7], [8], sequence_id=2))
    await add(store, "f", {"q": 3}, 0.0, call([1], [2]))
    await add(store, "g", {"q": 4}, 1.0, call([1], [2]))
    await add(store, "h", {"q": 4}, 0.0, call(None, None, "no"))
    found, report = await rated(store)
    shown = [one async for one in demonstrations(store, best_of(found, SFTConfig(top_k=1), report), "auto", report)]
    assert [(one.origin, len(one.parts)) for one in shown] == [("a", 1), ("e", 2), ("g", 1)]
    assert report.skipped["no_model_call"] == 1

    report = Skips()
    pairs = [pair async for pair in contrasted(store, contrasts(found, DPOConfig(), report), "auto", report)]
    assert [pair.origin for pair in pairs] == ["a", "g"]
    assert pairs[0].chosen == TokenExample(token_ids=[1, 2], loss_mask=[0, 1])
    assert isinstance(pairs[1].chosen, Dialogue), "tokens on one side only: both are taken as messages"
    assert isinstance(pairs[1].rejected, Dialogue)
    assert dict(report.skipped) == {"no_model_call": 1, "not_one_conversation": 1}


async def test_preferences_of_a_store(store: InMemoryLightningStore) -> None:
    for name, text in (("a", "yo"), ("b", "no"), ("c", "so")):
        await add(store, name, "task", None, call([1], [2], text))
    await store.add_preference("a", "b", weight=3.0)
    await store.add_preference("b", "c")
    report = Skips()
    found = [pair async for pair in preferred(store, DPOConfig(), report)]
    assert [(pair.weight, pair.chosen.completion, pair.rejected.completion) for pair in found] == [  # type: ignore[union-attr]
        (3.0, [says("yo")], [says("no")]),
        (1.0, [says("no")], [says("so")]),
    ]
    found = [pair async for pair in preferred(store, DPOConfig(run="b"), report)]
    assert [pair.weight for pair in found] == [1.0]
    assert dict(report.skipped) == {"other_run": 1}
    assert [pair async for pair in preferred(store, DPOConfig(sources=("judge",)), Skips())] == []


async def test_preferences_that_make_no_pair_are_counted(store: InMemoryLightningStore) -> None:
    for number in range(8):
        await add(store, f"r{number}", {"q": number}, None, call([1], [2]))
    for number in range(7):
        await store.add_preference(f"r{number}", f"r{number + 1}")
    report = Skips()
    assert [pair async for pair in preferred(store, DPOConfig(), report)] == []
    assert dict(report.skipped) == {"different_task": 7}
