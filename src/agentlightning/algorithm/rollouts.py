"""Batches of rollouts: enqueue, wait, read back what happened. Knows nothing of who runs them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentlightning.agent import find_final_reward
from agentlightning.agent.adapter import Trajectory, calls_from_spans, merge_calls
from agentlightning.algorithm.base import RunContext
from agentlightning.kit.errors import AgentLightningError
from agentlightning.schemas import (
    EnqueueRolloutRequest,
    ModelCall,
    Rollout,
    RolloutConfig,
    RolloutMode,
    Span,
    is_finished,
)

# How long wait_for_rollouts blocks before progress is reported.
_PROGRESS_INTERVAL_S = 0.5


class StalledError(AgentLightningError):
    """No rollout of the batch moved for too long."""

    code = "ROLLOUTS_STALLED"
    status = 504


@dataclass(slots=True)
class Plan:
    """One rollout to be: a caller-chosen id (repeating it is harmless) and its task."""

    rollout_id: str
    task: Any
    group_id: str = ""
    resources_id: str | None = None
    """Resources of this one; by default the run's."""


@dataclass(slots=True)
class Outcome:
    """What became of a rollout. `reward is None` means that nobody gave one, which is not 0."""

    rollout_id: str
    group_id: str
    status: str
    reward: float | None
    calls: list[ModelCall] = field(default_factory=list[ModelCall])
    trajectories: list[Trajectory] = field(default_factory=list[Trajectory])
    spans: list[Span] = field(default_factory=list[Span])
    error: dict[str, Any] | None = None

    @property
    def not_trainable_because(self) -> str | None:
        """Why weights cannot learn from it; None if they can."""
        if self.reward is None:
            return f"error: {self.error.get('class', 'unknown')}" if self.error else "no reward"
        if not self.calls:
            return "no captured model call"
        if not self.trajectories:
            reasons = {call.not_trainable_because or "unknown" for call in self.calls}
            return "; ".join(sorted(reasons))
        return None


async def run_batch(
    context: RunContext,
    plans: Sequence[Plan],
    *,
    mode: RolloutMode,
    overrides: dict[str, Any] | None = None,
    timeout_s: float = 120.0,
    max_attempts: int = 3,
    label: str = "",
    with_calls: bool = True,
    keep_spans: bool = False,
    samples_freely: bool | None = None,
) -> list[Outcome]:
    """Run rollouts and read their outcomes, in the order of `plans`.

    Rollouts that exist already under the same id (after a restart) are not run again.

    Args:
        context: The run.
        plans: What to run.
        mode: `train`, `val` or `test`.
        overrides: Sampling parameters forced on the model calls, e.g. `{"temperature": 0.0}`.
        timeout_s: Time limit of one attempt.
        max_attempts: Attempts per rollout when the failure policy says retry.
        label: Shown in progress reports.
        with_calls: Read and merge the captured model calls (training needs them, evaluation does not).
        keep_spans: Leave each rollout's spans in its outcome.
        samples_freely: Do not hold the model to strict tools; by default in mode `train`.

    Raises:
        StalledError: Nothing moved for three times the time limit.
        RunStopped: The run was asked to stop.
    """
    ids = [plan.rollout_id for plan in plans]
    if context.sampling is not None:
        context.sampling.register(
            ids,
            overrides=overrides,
            seed_base=context.seed,
            unseeded_prefix=f"{context.run_id}.",
            samples_freely=mode == "train" if samples_freely is None else samples_freely,
        )
    try:
        await context.store.enqueue_many_rollouts(
            [
                EnqueueRolloutRequest(
                    rollout_id=plan.rollout_id,
                    input=plan.task,
                    mode=mode,
                    resources_id=plan.resources_id or context.resources_id,
                    config=RolloutConfig(
                        timeout_seconds=timeout_s,
                        unresponsive_seconds=max(30.0, timeout_s),
                        max_attempts=max_attempts,
                        retry_condition=["unresponsive"],
                    ),
                    metadata={"run_id": context.run_id, "label": label, "group_id": plan.group_id},
                )
                for plan in plans
            ]
        )
        rollouts = await _wait(context, ids, label=label, stall_s=3 * timeout_s)
        outcomes, spans = await _collect(context, plans, rollouts, with_calls=with_calls)
        for outcome in outcomes if keep_spans else ():
            outcome.spans = spans.get(outcome.rollout_id, [])
        return outcomes
    finally:
        if context.sampling is not None:
            context.sampling.forget(ids)


async def _wait(context: RunContext, ids: list[str], *, label: str, stall_s: float) -> dict[str, Rollout]:
    finished: dict[str, Rollout] = {}
    pending = set(ids)
    moved_at = time.monotonic()
    while pending:
        context.check()
        ready = await context.store.wait_for_rollouts(
            rollout_ids=[rollout_id for rollout_id in ids if rollout_id in pending],
            timeout=_PROGRESS_INTERVAL_S,
        )
        fresh = [rollout for rollout in ready if is_finished(rollout)]
        if fresh:
            moved_at = time.monotonic()
        for rollout in fresh:
            finished[rollout.rollout_id] = rollout
            pending.discard(rollout.rollout_id)
        context.report(
            {
                "type": "rollouts",
                "label": label,
                "done": len(finished),
                "total": len(ids),
                **context.traffic(),
            }
        )
        if pending and time.monotonic() - moved_at > stall_s:
            raise await _stalled(context, sorted(pending), stall_s)
    return finished


async def _stalled(context: RunContext, pending: list[str], stall_s: float) -> StalledError:
    workers = await context.store.query_workers()
    seen = ", ".join(f"{worker.worker_id} ({worker.status})" for worker in workers) or "none"
    return StalledError(
        f"No rollout finished for {stall_s:.0f} s; {len(pending)} are waiting, the first is {pending[0]}. "
        f"Runners known to the store: {seen}.",
        hint=f"Look at one with `agl show {pending[0]}`; check that the runners are alive and the agent does not hang.",
    )


async def _collect(
    context: RunContext, plans: Sequence[Plan], rollouts: dict[str, Rollout], *, with_calls: bool
) -> tuple[list[Outcome], dict[str, list[Span]]]:
    await context.calls_stored()
    spans = await context.store.query_many_spans([plan.rollout_id for plan in plans])
    errors = await _errors(context, rollouts)
    outcomes: list[Outcome] = []
    for plan in plans:
        own = spans.get(plan.rollout_id, [])
        rollout = rollouts[plan.rollout_id]
        outcomes.append(_outcome(plan, rollout, own, errors.get(plan.rollout_id), with_calls=with_calls))
    return outcomes, spans


async def _errors(context: RunContext, rollouts: dict[str, Rollout]) -> dict[str, dict[str, Any]]:
    errors: dict[str, dict[str, Any]] = {}
    for rollout in rollouts.values():
        if rollout.status == "succeeded":
            continue
        attempt = await context.store.get_latest_attempt(rollout.rollout_id)
        recorded = (attempt.metadata or {}).get("error") if attempt else None
        errors[rollout.rollout_id] = recorded or {"class": attempt.status if attempt else rollout.status}
    return errors


def _outcome(
    plan: Plan, rollout: Rollout, spans: list[Span], error: dict[str, Any] | None, *, with_calls: bool
) -> Outcome:
    dropped = rollout.status != "succeeded"
    outcome = Outcome(
        rollout_id=plan.rollout_id,
        group_id=plan.group_id,
        status=rollout.status,
        reward=None if dropped else find_final_reward(spans),
        error=error,
    )
    if with_calls:
        outcome.calls = calls_from_spans(spans, messages=False)
        outcome.trajectories = merge_calls([call for call in outcome.calls if call.trainable])
    return outcome
