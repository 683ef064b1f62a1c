"""What a store holds to learn from: its best rollouts, pairs of a better and a worse one, preferences.

The tokens that were sampled are taken as they are where they were captured. Knows no models.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentlightning.agent import find_final_reward
from agentlightning.agent.adapter import calls_from_spans, merge_calls
from agentlightning.algorithm.datasets import example_key
from agentlightning.algorithm.judged import preference_pairs
from agentlightning.algorithm.judged.conversation import Conversation, conversation_of, turns_of
from agentlightning.algorithm.judged.stream import Skips, pages
from agentlightning.algorithm.supervised.rows import Demonstration, Preferred
from agentlightning.config import DPOConfig, SFTConfig, SupervisedConfig
from agentlightning.schemas import ModelCall, Rollout, Span
from agentlightning.schemas.example import Dialogue, TokenExample
from agentlightning.store import LightningStore

Tokens = Literal["auto", "captured", "messages"]

LeaveOut = Callable[[Rollout], str | None]
"""Why a rollout is not learned from, in a word; `None` if it is."""

_PAGE = 50
"""Rollouts at a time; each may bring conversations of tens of kilobytes."""


@dataclass(frozen=True)
class Rated:
    """A finished rollout and its reward."""

    rollout_id: str
    key: str
    """Of its task."""
    reward: float


async def rated_rollouts(
    store: LightningStore,
    config: SupervisedConfig,
    report: Skips,
    *,
    without: str,
    leave_out: LeaveOut | None = None,
    feedback: bool = False,
) -> list[Rated]:
    """The rollouts that are open to learning, in the order they were made.

    Args:
        store: Where from.
        config: Which run and modes.
        report: Counts what is left out: `other_mode`, `no_reward`.
        without: Rollouts whose id begins with this are not looked at (the run's own).
        leave_out: Says of a rollout why it is left out, if it is.
        feedback: Scores of feedback stand for the reward where there are some.
    """
    found: list[Rated] = []
    filters: dict[str, Any] = {"status_in": ["succeeded"], "rollout_id_contains": config.run}
    async for page in pages(store.query_rollouts, filters, size=_PAGE):
        own = [rollout for rollout in page if not rollout.rollout_id.startswith(without)]
        kept: list[Rollout] = []
        for rollout in own:
            is_other = (rollout.mode or "none") not in config.modes
            why = "other_mode" if is_other else leave_out(rollout) if leave_out is not None else None
            if why is None:
                kept.append(rollout)
            else:
                report.skip(why, rollout.rollout_id)
        ids = [rollout.rollout_id for rollout in kept]
        spans = await store.query_many_spans(ids)
        scores = await _scores(store, ids) if feedback and ids else {}
        for rollout in kept:
            reward = scores.get(rollout.rollout_id, find_final_reward(spans.get(rollout.rollout_id, [])))
            if reward is None:
                report.skip("no_reward", rollout.rollout_id)
            else:
                found.append(Rated(rollout.rollout_id, example_key(rollout.input), reward))
    return found


async def _scores(store: LightningStore, rollout_ids: Sequence[str]) -> dict[str, float]:
    """Mean score of those that have one, from 0 to 1: what each author said last."""
    said: dict[str, dict[str | None, float]] = {}
    for one in await store.query_feedback(rollout_id_in=rollout_ids, has_score=True):
        if one.normalized_score is not None:
            said.setdefault(one.rollout_id, {})[one.author] = one.normalized_score
    return {rollout_id: sum(scores.values()) / len(scores) for rollout_id, scores in said.items()}


def best_of(rated: Sequence[Rated], config: SFTConfig, report: Skips) -> list[Rated]:
    """Those with enough reward, the best of each task; equals in the order they were made."""
    good: list[Rated] = []
    for one in rated:
        if config.min_reward is not None and one.reward < config.min_reward:
            report.skip("low_reward", one.rollout_id)
        else:
            good.append(one)
    if config.top_k is None:
        return good
    taken: dict[str, int] = {}
    chosen: set[str] = set()
    for one in sorted(good, key=lambda one: -one.reward):
        taken[one.key] = taken.get(one.key, 0) + 1
        if taken[one.key] <= config.top_k:
            chosen.add(one.rollout_id)
        else:
            report.skip("not_among_the_best", one.rollout_id)
    return [one for one in good if one.rollout_id in chosen]


def contrasts(rated: Sequence[Rated], config: DPOConfig, report: Skips) -> list[tuple[Rated, Rated]]:
    """Better and worse rollouts of the same task: the best with the worst, then the next two, and so on."""
    tasks: dict[str, list[Rated]] = {}
    for one in rated:
        tasks.setdefault(one.key, []).append(one)
    found: list[tuple[Rated, Rated]] = []
    for members in tasks.values():
        order = sorted(members, key=lambda one: -one.reward)
        outer = [(order[i], order[-1 - i]) for i in range(min(len(order) // 2, config.pairs_per_task))]
        kept = [(best, worst) for best, worst in outer if best.reward - worst.reward > config.min_margin]
        if not kept:
            report.skip("equal_rewards" if len(order) > 1 else "only_one_rollout", order[0].rollout_id)
        found += kept
    return found


async def demonstrations(
    store: LightningStore, chosen: Sequence[Rated], tokens: Tokens, report: Skips
) -> AsyncIterator[Demonstration]:
    """What the model said in rollouts; those without a usable call are counted in `report`."""
    for start in range(0, len(chosen), _PAGE):
        page = chosen[start : start + _PAGE]
        spans = await store.query_many_spans([one.rollout_id for one in page])
        for one in page:
            parts = said_in(spans.get(one.rollout_id, []), tokens)
            if isinstance(parts, str):
                report.skip(parts, one.rollout_id)
            else:
                yield Demonstration(key=one.key, origin=one.rollout_id, parts=parts)


async def contrasted(
    store: LightningStore, pairs: Sequence[tuple[Rated, Rated]], tokens: Tokens, report: Skips
) -> AsyncIterator[Preferred]:
    """Pairs of rollouts as pairs of what the model said; each side has to be one conversation."""
    for start in range(0, len(pairs), _PAGE):
        page = pairs[start : start + _PAGE]
        spans = await store.query_many_spans(sorted({one.rollout_id for pair in page for one in pair}))
        for better, worse in page:
            pair = _preferred(better, spans.get(better.rollout_id, []), spans.get(worse.rollout_id, []), tokens)
            if isinstance(pair, str):
                report.skip(pair, better.rollout_id)
            else:
                yield pair


async def preferred(store: LightningStore, config: DPOConfig, report: Skips) -> AsyncIterator[Preferred]:
    """The preferences of a store."""
    stream = preference_pairs(store, same=config.same, source_in=config.sources)
    async for pair in stream:
        if config.run is not None and config.run not in pair.chosen_rollout_id:
            report.skip("other_run", pair.preference_id)
            continue
        sides = [
            Dialogue(prompt=pair.prompt, completion=side, tools=pair.tools) for side in (pair.chosen, pair.rejected)
        ]
        yield Preferred(
            key=example_key([pair.prompt, pair.tools]),
            origin=pair.preference_id,
            chosen=sides[0],
            rejected=sides[1],
            weight=pair.weight,
        )
    for reason, count in stream.report.skipped.items():
        for name in stream.report.examples[reason]:
            report.skip(reason, name)
        report.skipped[reason] += count - len(stream.report.examples[reason])


def said_in(spans: Sequence[Span], tokens: Tokens) -> list[Dialogue | TokenExample] | str:
    """What the model said in an attempt, or why there is nothing: `no_model_call`, `no_answer`, `no_tokens`."""
    if tokens != "messages":
        captured = captured_in(spans)
        if captured:
            return list(captured)
        if tokens == "captured":
            return "no_tokens"
    conversation = conversation_of(spans)
    if isinstance(conversation, Conversation):
        return [_dialogue(conversation)]
    if conversation != "not_one_conversation":
        return conversation
    return [_dialogue(turn) for turn in turns_of(spans)]


def captured_in(spans: Sequence[Span]) -> list[TokenExample]:
    """Sequences of the very tokens that went through the model; none unless every answered call has them.

    What keeps a call from being reinforced (a format was enforced, log-probabilities are missing) does not matter here.
    """
    calls = [call for call in calls_from_spans(spans, messages=False) if _is_answered(call)]
    if not calls or not all(call.prompt_token_ids and call.response_token_ids for call in calls):
        return []
    for call in calls:
        call.not_trainable_because = None
    return [TokenExample(token_ids=found.token_ids, loss_mask=found.loss_mask) for found in merge_calls(calls)]


def first_call(spans: Sequence[Span]) -> tuple[Dialogue, ModelCall] | None:
    """The first captured call with tokens, as messages, too: to see whether a model would read it the same way."""
    for call in calls_from_spans(spans):
        if call.messages and call.output and call.prompt_token_ids and call.response_token_ids:
            dialogue = Dialogue(prompt=call.messages, completion=[call.output], tools=call.tools or None)
            return dialogue, call
    return None


def _is_answered(call: ModelCall) -> bool:
    return bool(call.response_token_ids or call.finish_reason)


def _preferred(key: Rated, better: Sequence[Span], worse: Sequence[Span], tokens: Tokens) -> Preferred | str:
    sides: list[Dialogue | TokenExample] = []
    for spans in (better, worse):
        parts = said_in(spans, tokens)
        if isinstance(parts, str):
            return parts
        if len(parts) != 1:
            return "not_one_conversation"
        sides += parts
    if type(sides[0]) is not type(sides[1]):
        parts = [said_in(spans, "messages") for spans in (better, worse)]
        sides = [part[0] for part in parts if not isinstance(part, str) and len(part) == 1]
        if len(sides) != 2:
            return "not_one_conversation"
    return Preferred(key=key.key, origin=key.rollout_id, chosen=sides[0], rejected=sides[1])


def _dialogue(conversation: Conversation) -> Dialogue:
    return Dialogue(prompt=conversation.prompt, completion=conversation.completion, tools=conversation.tools)
