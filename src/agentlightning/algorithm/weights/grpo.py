"""GRPO on captured rollouts: sample groups, score, compare within the group, update the weights.

Shao et al. 2024 (DeepSeekMath), section 4.1; asymmetric clipping and token-mean loss from DAPO (Yu et al. 2025).
Knows nothing of tensors: the learner gets token ids, masks, log-probabilities and advantages.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from agentlightning.algorithm.base import Algorithm, Dataset, RunContext
from agentlightning.algorithm.evaluation import evaluate
from agentlightning.algorithm.rollouts import Outcome, Plan, run_batch
from agentlightning.algorithm.signal import check_signal, signal_report
from agentlightning.algorithm.weights.advantage import group_advantages
from agentlightning.config import GRPOConfig
from agentlightning.kit.errors import ConfigError, SignalError
from agentlightning.learner.protocol import StepConfig
from agentlightning.schemas import TrainSample


class GRPO(Algorithm):
    """Group Relative Policy Optimization.

    Args:
        config: A `GRPOConfig` or its fields as a mapping; keyword arguments override single fields.

    Raises:
        ConfigError: A key is unknown to this backend or a value is wrong.

    Example:
        ```python
        trainer = agl.Trainer(algorithm=agl.GRPO(steps=20, learning_rate=1e-5), model="path/to/model")
        trainer.fit(agent, train_dataset=train, val_dataset=val)
        ```
    """

    trains_weights = True

    def __init__(self, config: GRPOConfig | dict[str, Any] | None = None, **overrides: Any) -> None:
        base = config.model_dump(exclude_unset=True) if isinstance(config, GRPOConfig) else dict(config or {})
        self.config = GRPOConfig(**{**base, **overrides})

    async def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None:
        """Train for `config.steps` steps from the last checkpoint of this run.

        Raises:
            ConfigError: No training data, or no model to train.
            SignalError: The rollouts offer nothing to learn from.
            RunStopped: The run was asked to stop; the last checkpoint stays.
        """
        context = self.get_context()
        engine = context.require_engine()
        if train_dataset is None or len(train_dataset) == 0:
            raise ConfigError("GRPO needs a train_dataset with at least one task.")
        meta = await engine.load_checkpoint(self._checkpoints(context)) or {}
        first_step = int(meta.get("step", 0))
        context.report({"type": "resumed" if first_step else "started", "step": first_step, "steps": self.config.steps})
        for step in range(first_step, self.config.steps):
            if step > first_step or step == 0:
                await self._evaluate(context, val_dataset, step)
            await self._train_step(context, train_dataset, step)
            done = step + 1
            if done % self.config.checkpoint_every == 0 or done == self.config.steps:
                await engine.save_checkpoint(
                    self._checkpoints(context), meta={"step": done}, keep=self.config.keep_checkpoints
                )
                context.report({"type": "checkpoint", "step": done})
        await self._evaluate(context, val_dataset, self.config.steps)

    def _checkpoints(self, context: RunContext) -> Any:
        return context.directory / "checkpoints"

    async def _evaluate(self, context: RunContext, val_dataset: Dataset[Any] | None, step: int) -> None:
        config = self.config
        due = config.eval_every and (step % config.eval_every == 0 or step == config.steps)
        if val_dataset is None or len(val_dataset) == 0 or not due:
            return
        result = await evaluate(
            context,
            val_dataset,
            label=f"val-{step:05d}",
            overrides=self._sampling(),
            limit=config.eval_limit,
            timeout_s=config.rollout_timeout_s,
        )
        context.report({"type": "eval", "step": step, "name": "val", **result.as_dict()})

    async def _train_step(self, context: RunContext, train_dataset: Dataset[Any], step: int) -> None:
        started = time.monotonic()
        outcomes = await run_batch(
            context,
            self._plans(context, train_dataset, step),
            mode="train",
            overrides=self._sampling(),
            timeout_s=self.config.rollout_timeout_s,
            max_attempts=self.config.max_attempts,
            label=f"train-{step:05d}",
        )
        sampled = time.monotonic()
        self._check(outcomes, first=step == 0)
        samples = make_samples(outcomes, scale=self.config.scale_rewards == "group")
        metrics = await self._update(context, samples, step) if samples else {}
        context.report(
            {
                "type": "step",
                "step": step + 1,
                "steps": self.config.steps,
                **_batch_metrics(outcomes, samples),
                **metrics,
                "sample_s": sampled - started,
                "train_s": time.monotonic() - sampled,
            }
        )

    def _check(self, outcomes: Sequence[Outcome], *, first: bool) -> None:
        if self.config.missing_reward == "fail":
            missing = next((o for o in outcomes if o.reward is None), None)
            if missing is not None:
                raise SignalError(
                    f"Rollout {missing.rollout_id} has no reward ({missing.not_trainable_because}), and "
                    "missing_reward is 'fail'.",
                    hint=f"Look at it with `agl show {missing.rollout_id}`.",
                )
        if first:
            check_signal(outcomes, max_missing_fraction=self.config.max_missing_fraction)
            return
        # Later a batch without variance is normal (everything solved); a batch without data is not.
        report = signal_report(outcomes)
        if report.missing() not in (None, "variance"):
            check_signal(outcomes, max_missing_fraction=self.config.max_missing_fraction)

    async def _update(self, context: RunContext, samples: list[TrainSample], step: int) -> dict[str, float]:
        engine = context.require_engine()
        config = self.config
        metrics = await engine.train(
            samples,
            StepConfig(
                lr=config.learning_rate_at(step),
                minibatches=config.minibatches,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                loss_type=config.loss_type,
                beta=config.beta,
                max_grad_norm=config.max_grad_norm,
                weight_decay=config.weight_decay,
                temperature=config.temperature,
                max_completion_tokens=config.max_tokens,
                seed=context.seed * 1_000_003 + step,
            ),
        )
        await engine.set_version(f"{context.run_id}@step{step + 1}")
        return metrics

    def _sampling(self) -> dict[str, Any]:
        return {"temperature": self.config.temperature, "max_tokens": self.config.max_tokens}

    def _plans(self, context: RunContext, dataset: Dataset[Any], step: int) -> list[Plan]:
        config = self.config
        plans: list[Plan] = []
        for position in range(config.prompts_per_step):
            index = task_index(step * config.prompts_per_step + position, len(dataset), context.seed)
            group = f"{context.run_id}.t{step:05d}.{position:03d}"
            plans.extend(Plan(f"{group}.{k:02d}", dataset[index], group) for k in range(config.group_size))
        return plans


def task_index(position: int, size: int, seed: int) -> int:
    """The task at `position` of an endless stream in which each epoch is a permutation of `size` tasks by `seed`."""
    epoch, offset = divmod(position, size)
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[offset]


def make_samples(outcomes: Sequence[Outcome], *, scale: bool) -> list[TrainSample]:
    """Turn outcomes into weighted token sequences; groups without variance and unusable rollouts give none.

    Every token the policy sampled in a rollout carries the rollout's advantage (outcome supervision).
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.not_trainable_because is None:
            groups.setdefault(outcome.group_id, []).append(outcome)
    samples: list[TrainSample] = []
    for group_id, members in groups.items():
        group = group_advantages([member.reward for member in members], scale_by_std=scale)
        if group.flat:
            continue
        for member, advantage in zip(members, group.advantages, strict=True):
            if not advantage:
                continue
            samples.extend(
                TrainSample(
                    token_ids=trajectory.token_ids,
                    loss_mask=trajectory.loss_mask,
                    logprobs=trajectory.logprobs,
                    advantage=advantage,
                    rollout_id=member.rollout_id,
                    group_id=group_id,
                    reward=member.reward,
                )
                for trajectory in member.trajectories
            )
    return samples


def _batch_metrics(outcomes: Sequence[Outcome], samples: Sequence[TrainSample]) -> dict[str, Any]:
    rewards = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    report = signal_report(outcomes)
    return {
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "rollouts": report.rollouts,
        "rollouts_without_reward": report.rollouts - report.rewarded,
        "rollouts_not_trainable": report.rollouts - report.trainable,
        "groups": report.groups,
        "groups_with_variance": report.groups_with_variance,
        "calls": sum(len(outcome.calls) for outcome in outcomes),
        "history_breaks": sum(t.breaks for outcome in outcomes for t in outcome.trajectories),
        "samples": len(samples),
        "tokens_trained": sum(sum(sample.loss_mask) for sample in samples),
    }
