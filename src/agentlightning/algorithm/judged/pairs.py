"""Preferences as pairs that DPO trains on: one prompt, a better and a worse completion."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentlightning.algorithm.judged.conversation import Conversation, Message, conversation_of
from agentlightning.algorithm.judged.stream import Skips, Stream, pages, spans_of
from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import Preference, PreferenceSource, Rollout, Span
from agentlightning.store import LightningStore

Same = Literal["prompt", "task"]

_PAGE = 50
"""Preferences at a time; each may bring two conversations of tens of kilobytes."""


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two completions of one prompt, of which the first is better."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None
    """What the model could call; OpenAI's shape."""
    weight: float
    margin: float | None
    """How much better: as said, else the difference of the mean scores (0 to 1) where both have some, else `None`."""
    source: PreferenceSource
    preference_id: str
    chosen_rollout_id: str
    rejected_rollout_id: str

    def as_trl(self) -> dict[str, Any]:
        """A row for TRL's `DPOTrainer` (conversational, explicit prompt); tools are a JSON string, as it allows."""
        row = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**row, "tools": None if self.tools is None else json.dumps(self.tools)}


def preference_pairs(
    store: LightningStore,
    *,
    same: Same = "prompt",
    source_in: Sequence[PreferenceSource] | None = None,
    session_id: str | None = None,
    author: str | None = None,
) -> Stream[PreferencePair]:
    """Pairs out of the preferences of a store, from the model calls that were captured.

    What cannot be used is counted in `report.skipped`: `different_task` (the inputs of the rollouts differ),
    `different_prompt`, `different_tools`, `same_completion`, `no_model_call`, `no_answer` (all calls failed),
    `not_one_conversation` (an agent that rewrites its history), `rollout_deleted` (while this was reading).

    Args:
        store: Where from.
        same: What both sides must share: the task and all messages the model was given at first (`"prompt"`), or the
            task only (`"task"`), when prompts were changed between them; then the chosen one's is used.
        source_in: Only preferences of these sources.
        session_id: Only those of this lineage session.
        author: Only this author's.

    Raises:
        BadInputError: `same` is something else.
    """
    if same not in ("prompt", "task"):
        raise BadInputError(f"same is {same!r}.", hint="Use 'prompt' or 'task'.")
    filters = {"source_in": source_in, "session_id": session_id, "author": author}

    async def read(report: Skips) -> AsyncIterator[PreferencePair]:
        async for page in pages(store.query_preferences, filters, size=_PAGE):
            loaded = await _Loaded.of(store, page)
            for preference in page:
                pair = loaded.pair(preference, same)
                if isinstance(pair, str):
                    report.skip(pair, preference.preference_id)
                else:
                    yield pair

    return Stream(read)


@dataclass
class _Loaded:
    """What the store has about the rollouts of a page."""

    rollouts: dict[str, Rollout]
    spans: dict[tuple[str, str | None], list[Span]]
    scores: dict[str, float]
    """Mean normalised score of a rollout."""

    @classmethod
    async def of(cls, store: LightningStore, page: Sequence[Preference]) -> _Loaded:
        attempts = dict.fromkeys(
            side
            for p in page
            for side in ((p.chosen_rollout_id, p.chosen_attempt_id), (p.rejected_rollout_id, p.rejected_attempt_id))
        )
        ids = list(dict.fromkeys(rollout_id for rollout_id, _ in attempts))
        found = await store.query_rollouts(rollout_id_in=ids)
        given: dict[str, list[float]] = {}
        for feedback in await store.query_feedback(rollout_id_in=ids, has_score=True):
            if feedback.normalized_score is not None:
                given.setdefault(feedback.rollout_id, []).append(feedback.normalized_score)
        return cls(
            {rollout.rollout_id: rollout for rollout in found},
            await spans_of(store, list(attempts)),
            {rollout_id: sum(scores) / len(scores) for rollout_id, scores in given.items()},
        )

    def pair(self, preference: Preference, same: Same) -> PreferencePair | str:
        chosen_id, rejected_id = preference.chosen_rollout_id, preference.rejected_rollout_id
        if chosen_id not in self.rollouts or rejected_id not in self.rollouts:
            return "rollout_deleted"  # since the page was read
        if self.rollouts[chosen_id].input != self.rollouts[rejected_id].input:
            return "different_task"
        chosen = conversation_of(self.spans[chosen_id, preference.chosen_attempt_id])
        rejected = conversation_of(self.spans[rejected_id, preference.rejected_attempt_id])
        if isinstance(chosen, str):
            return chosen
        if isinstance(rejected, str):
            return rejected
        return _difference(chosen, rejected, same) or PreferencePair(
            prompt=chosen.prompt,
            chosen=chosen.completion,
            rejected=rejected.completion,
            tools=chosen.tools,
            weight=preference.weight,
            margin=self._margin(preference),
            source=preference.source,
            preference_id=preference.preference_id,
            chosen_rollout_id=chosen_id,
            rejected_rollout_id=rejected_id,
        )

    def _margin(self, preference: Preference) -> float | None:
        if preference.margin is not None:
            return preference.margin
        better, worse = (
            self.scores.get(rollout_id) for rollout_id in (preference.chosen_rollout_id, preference.rejected_rollout_id)
        )
        return None if better is None or worse is None else better - worse


def _difference(chosen: Conversation, rejected: Conversation, same: Same) -> str | None:
    """Why two conversations make no pair."""
    if same == "prompt" and chosen.prompt != rejected.prompt:
        return "different_prompt"
    if same == "prompt" and chosen.tools != rejected.tools:
        return "different_tools"
    return "same_completion" if chosen.completion == rejected.completion else None
