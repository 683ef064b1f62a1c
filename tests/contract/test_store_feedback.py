"""Feedback and preferences: kept as they were said, idempotent, refused without a trace when they make no sense."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.store import LightningStore


async def rollout(store: LightningStore, rollout_id: str) -> str:
    return (await store.start_rollout("task", rollout_id=rollout_id)).attempt.attempt_id


async def test_feedback_is_kept_as_it_was_said(store: LightningStore) -> None:
    attempt_id = await rollout(store, "r")
    given = await store.add_feedback(
        "r", attempt_id=attempt_id, score=7, comment="shorter", author="ada", metadata={"ui": [1, 2]}
    )
    assert (given.score, given.score_min, given.score_max, given.normalized_score) == (7.0, 0.0, 10.0, 0.7)
    thumb = await store.add_feedback("r", thumb="up")
    assert thumb.score is None
    assert thumb.normalized_score is None
    stars = await store.add_feedback("r", score=1, score_min=1, score_max=5)
    assert stars.normalized_score == 0.0
    found = await store.query_feedback()
    assert list(found) == [given, thumb, stars]
    assert found.total == 3


async def test_feedback_is_filtered_sorted_and_paged(store: LightningStore) -> None:
    for name, fields in {
        "a": {"score": 3, "author": "ada"},
        "b": {"thumb": "down", "comment": "no"},
        "c": {"score": 9, "author": "bob"},
    }.items():
        await rollout(store, name)
        await store.add_feedback(name, **fields)  # type: ignore[arg-type]

    async def ids(**query: Any) -> list[str]:
        return [f.rollout_id for f in await store.query_feedback(**query)]

    assert await ids(has_score=True) == ["a", "c"]
    assert await ids(has_score=False) == ["b"]
    assert await ids(has_comment=True) == ["b"]
    assert await ids(rollout_id_in=["c", "b", "x"]) == ["b", "c"]
    assert await ids(author="bob") == ["c"]
    assert await ids(thumb="down") == ["b"]
    assert await ids(author="ada", thumb="down", filter_logic="or") == ["a", "b"]
    assert await ids(sort_by="score", sort_order="desc") == ["c", "a", "b"]
    page = await store.query_feedback(sort_by="rollout_id", limit=1, offset=1)
    assert ([f.rollout_id for f in page], page.total) == (["b"], 3)
    with pytest.raises(BadInputError, match="sort by"):
        await store.query_feedback(sort_by="mood")


async def test_feedback_with_an_id_may_be_repeated(store: LightningStore) -> None:
    await rollout(store, "r")
    first = await store.add_feedback("r", score=5, metadata={"b": 1, "a": 2}, feedback_id="mine")
    again = await store.add_feedback("r", score=5, metadata={"b": 1, "a": 2}, feedback_id="mine")
    assert again == first
    with pytest.raises(ConflictError, match="something else"):
        await store.add_feedback("r", score=6, feedback_id="mine")
    many = await asyncio.gather(*(store.add_feedback("r", thumb="up", feedback_id="same") for _ in range(8)))
    assert len({f.create_time for f in many}) == 1
    assert (await store.query_feedback()).total == 2


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"score": 11}, "outside"),
        ({"score": -0.1}, "outside"),
        ({"score": math.nan}, "outside"),
        ({"score": 1, "score_min": 2, "score_max": 2}, "scale"),
        ({"score": 1, "score_max": math.inf}, "scale"),
        ({}, "says nothing"),
        ({"comment": ""}, "says nothing"),
        ({"thumb": "sideways"}, "thumb|sideways"),
    ],
)
async def test_senseless_feedback_leaves_no_trace(store: LightningStore, fields: dict[str, Any], match: str) -> None:
    await rollout(store, "r")
    with pytest.raises(BadInputError, match=match):
        await store.add_feedback("r", **fields)
    assert (await store.query_feedback()).total == 0


async def test_feedback_needs_its_rollout_and_attempt(store: LightningStore) -> None:
    await rollout(store, "r")
    other = await rollout(store, "other")
    with pytest.raises(NotFoundError, match="nobody"):
        await store.add_feedback("nobody", thumb="up")
    with pytest.raises(NotFoundError, match="no attempt"):
        await store.add_feedback("r", attempt_id=other, thumb="up")
    assert (await store.query_feedback()).total == 0


async def test_preferences_are_kept_and_found(store: LightningStore) -> None:
    for name in "abc":
        await rollout(store, name)
    first = await store.add_preference("a", "b", weight=2, margin=0.5, comment="clearer", author="ada")
    assert (first.source, first.weight, first.margin, first.session_id) == ("person", 2.0, 0.5, None)
    second = await store.add_preference("c", "b", source="judge", metadata={"model": "m"}, preference_id="p")
    assert await store.add_preference("c", "b", source="judge", metadata={"model": "m"}, preference_id="p") == second
    with pytest.raises(ConflictError, match="something else"):
        await store.add_preference("b", "c", source="judge", preference_id="p")
    assert list(await store.query_preferences()) == [first, second]
    assert list(await store.query_preferences(rollout_id_in=["a"])) == [first]
    assert list(await store.query_preferences(source_in=["judge", "lock"])) == [second]
    assert list(await store.query_preferences(author="ada", cycle=1, filter_logic="or")) == [first]
    newest = await store.query_preferences(sort_by="chosen_rollout_id", sort_order="desc", limit=1)
    assert (list(newest), newest.total) == ([second], 2)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"rejected_rollout_id": "a"}, "than itself"),
        ({"rejected_rollout_id": "b", "weight": 0}, "weight"),
        ({"rejected_rollout_id": "b", "weight": math.nan}, "weight"),
        ({"rejected_rollout_id": "b", "margin": -1}, "margin"),
        ({"rejected_rollout_id": "b", "source": "oracle"}, "source|oracle"),
    ],
)
async def test_senseless_preferences_leave_no_trace(store: LightningStore, fields: dict[str, Any], match: str) -> None:
    for name in "ab":
        await rollout(store, name)
    with pytest.raises(BadInputError, match=match):
        await store.add_preference("a", **fields)
    for pair in (("a", "x"), ("x", "a")):
        with pytest.raises(NotFoundError, match="'x'"):
            await store.add_preference(*pair)
    with pytest.raises(NotFoundError, match="no attempt"):
        await store.add_preference("a", "b", chosen_attempt_id="at-x")
    assert (await store.query_preferences()).total == 0


async def test_two_attempts_of_a_rollout_may_be_compared(store: LightningStore) -> None:
    first = await rollout(store, "r")
    second = (await store.start_attempt("r")).attempt.attempt_id
    kept = await store.add_preference("r", "r", chosen_attempt_id=second, rejected_attempt_id=first)
    assert (kept.chosen_attempt_id, kept.rejected_attempt_id) == (second, first)
    with pytest.raises(BadInputError, match="itself"):
        await store.add_preference("r", "r", chosen_attempt_id=first, rejected_attempt_id=first)
    with pytest.raises(BadInputError, match="itself"):
        await store.add_preference("r", "r", chosen_attempt_id=first)
