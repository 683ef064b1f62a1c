"""Settles what a dead runner process was working on. Knows nothing of processes."""

from __future__ import annotations

from agentlightning.agent.emit import make_tag_attributes
from agentlightning.agent.emit.rewards import PRIMARY, RewardDimension, reward_attributes
from agentlightning.kit.errors import ConflictError
from agentlightning.runner.execution import POLICY_SCORE_TAG
from agentlightning.runner.failure import Failure
from agentlightning.runner.policy import FailurePolicy
from agentlightning.schemas import AttemptedRollout, Span, semconv
from agentlightning.store.base import AttemptUpdate, LightningStore


async def attempts_of(store: LightningStore, worker: str) -> list[AttemptedRollout]:
    """What the worker has claimed and not ended."""
    claimed = await store.query_rollouts(status_in=["preparing", "running"])
    return [r for r in claimed if isinstance(r, AttemptedRollout) and r.attempt.worker_id == worker]


async def settle(
    store: LightningStore,
    policy: FailurePolicy,
    rollout: AttemptedRollout,
    failure: Failure,
    *,
    may_be_innocent: bool = False,
) -> str:
    """Record that the rollout's attempt failed, and do what the policy says; returns the kind of action."""
    attempt = rollout.attempt
    decision = policy.decide(failure, rollout, attempt.sequence_id, may_be_innocent=may_be_innocent)
    if decision.reward is not None:
        tags = make_tag_attributes([POLICY_SCORE_TAG, f"error_class:{failure.error_class}"])
        span = Span.from_attributes(
            attributes={**reward_attributes([RewardDimension(PRIMARY, decision.reward)]), **tags},
            rollout_id=rollout.rollout_id,
            attempt_id=attempt.attempt_id,
            name=semconv.AGL_ANNOTATION,
        )
        await store.add_many_spans([span])
    if decision.config is not None:
        await store.update_rollout(rollout.rollout_id, config=decision.config)
    update = AttemptUpdate(
        rollout_id=rollout.rollout_id,
        attempt_id=attempt.attempt_id,
        status=decision.status,
        metadata={**(attempt.metadata or {}), "error": failure.as_metadata(), "action": decision.kind},
    )
    try:
        await store.update_many_attempts([update])
    except ConflictError:
        return "ended"  # its last report had arrived after all
    return decision.kind
