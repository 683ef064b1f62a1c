"""Scores of people as samples: a prompt, what the model made of it, how good that was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from agentlightning.algorithm.judged.conversation import Message, conversation_of
from agentlightning.algorithm.judged.stream import Skips, Stream, pages, spans_of
from agentlightning.schemas import Thumb
from agentlightning.store import LightningStore

_PAGE = 50


@dataclass(frozen=True, kw_only=True)
class ScoredSample:
    """One judged completion."""

    prompt: list[Message]
    completion: list[Message]
    tools: list[dict[str, Any]] | None
    score: float
    """From 0 (worst) to 1 (best)."""
    thumb: Thumb | None
    comment: str | None
    author: str | None
    feedback_id: str
    rollout_id: str
    attempt_id: str | None


def scored_samples(store: LightningStore, *, author: str | None = None) -> Stream[ScoredSample]:
    """Samples out of the feedback of a store, from the model calls that were captured.

    What cannot be used is counted in `report.skipped`: `no_score` (a thumb or a comment alone is not turned into a
    number), `no_model_call`, `no_answer` and `not_one_conversation`, see `preference_pairs`.

    Args:
        store: Where from.
        author: Only this author's feedback.
    """

    async def read(report: Skips) -> AsyncIterator[ScoredSample]:
        async for page in pages(store.query_feedback, {"author": author}, size=_PAGE):
            for feedback in page:
                if feedback.score is None:
                    report.skip("no_score", feedback.feedback_id)
            scored = [feedback for feedback in page if feedback.score is not None]
            spans = await spans_of(store, [(feedback.rollout_id, feedback.attempt_id) for feedback in scored])
            for feedback in scored:
                found = conversation_of(spans[feedback.rollout_id, feedback.attempt_id])
                score = feedback.normalized_score
                if isinstance(found, str) or score is None:
                    report.skip(found if isinstance(found, str) else "no_score", feedback.feedback_id)
                    continue
                yield ScoredSample(
                    prompt=found.prompt,
                    completion=found.completion,
                    tools=found.tools,
                    score=score,
                    thumb=feedback.thumb,
                    comment=feedback.comment,
                    author=feedback.author,
                    feedback_id=feedback.feedback_id,
                    rollout_id=feedback.rollout_id,
                    attempt_id=feedback.attempt_id,
                )

    return Stream(read)
