"""The signal check: is there anything to learn from? Names what is missing instead of training on nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from agentlightning.algorithm.rollouts import Outcome
from agentlightning.kit.errors import SignalError

_NEXT_STEP = {
    "reward": "Return a number from the agent, call agl.emit_reward(), or give an evaluator that scores its output.",
    "calls": "Make the agent use the base URL it is given (OPENAI_BASE_URL, or llm.get_base_url(...)).",
    "trainable": "Serve the model with the embedded engine or a server that reports token ids (vLLM).",
    "variance": "Use a larger group_size, a higher temperature, easier or harder tasks, or a finer reward.",
}


@dataclass(frozen=True, slots=True)
class SignalReport:
    """Counts over a batch of rollouts."""

    rollouts: int
    rewarded: int
    with_calls: int
    trainable: int
    groups: int
    groups_with_variance: int
    reasons: tuple[tuple[str, int], ...]

    def missing(self) -> str | None:
        """The first thing that makes training impossible: `reward`, `calls`, `trainable`, `variance`, or None."""
        if self.rewarded == 0:
            return "reward"
        if self.with_calls == 0:
            return "calls"
        if self.trainable == 0:
            return "trainable"
        if self.groups_with_variance == 0:
            return "variance"
        return None


def signal_report(outcomes: Sequence[Outcome]) -> SignalReport:
    """Count what a batch offers to a group-relative weight update."""
    groups: dict[str, set[float]] = defaultdict(set)
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        reason = outcome.not_trainable_because
        if reason is not None:
            reasons[reason] += 1
        elif outcome.reward is not None:
            groups[outcome.group_id].add(outcome.reward)
    return SignalReport(
        rollouts=len(outcomes),
        rewarded=sum(outcome.reward is not None for outcome in outcomes),
        with_calls=sum(bool(outcome.calls) for outcome in outcomes),
        trainable=sum(outcome.not_trainable_because is None for outcome in outcomes),
        groups=len(groups),
        groups_with_variance=sum(len(rewards) > 1 for rewards in groups.values()),
        reasons=tuple(reasons.most_common()),
    )


def check_signal(outcomes: Sequence[Outcome], *, max_missing_fraction: float = 0.5) -> SignalReport:
    """Raise when a batch cannot teach anything.

    Raises:
        SignalError: No reward, no captured call, no trainable call, no variance within any group, or too many unusable
            rollouts; the message has the counts, the causes and the next step.
    """
    report = signal_report(outcomes)
    causes = "; ".join(f"{count} x {reason}" for reason, count in report.reasons[:5]) or "none"
    missing = report.missing()
    if missing is not None:
        what = {
            "reward": f"none of {report.rollouts} rollouts has a reward",
            "calls": f"no model call was captured in {report.rollouts} rollouts",
            "trainable": f"no captured call of {report.rollouts} rollouts is trainable",
            "variance": f"all rewards are equal within each of {report.groups} groups, so every advantage is zero",
        }[missing]
        raise SignalError(f"There is nothing to learn from: {what}. Causes: {causes}.", hint=_NEXT_STEP[missing])
    unusable = report.rollouts - report.trainable
    if unusable > max_missing_fraction * report.rollouts:
        raise SignalError(
            f"{unusable} of {report.rollouts} rollouts cannot be trained on. Causes: {causes}.",
            hint="Fix the cause, or raise max_missing_fraction if this loss is expected.",
            details={"reasons": dict(report.reasons)},
        )
    return report
