"""Settings of a GRPO run on the embedded learner. Torch-free."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from agentlightning.config.strict import StrictModel


class GRPOConfig(StrictModel):
    """Group Relative Policy Optimization (Shao et al. 2024, DeepSeekMath section 4.1).

    The clip range is asymmetric and the loss token-averaged by default, as in DAPO (Yu et al. 2025).
    """

    steps: int = Field(default=30, ge=1)
    """Training steps; each samples `prompts_per_step * group_size` rollouts."""
    prompts_per_step: int = Field(default=32, ge=1)
    group_size: int = Field(default=8, ge=2)
    """Rollouts per prompt; advantages are relative to this group."""
    learning_rate: float = Field(default=1e-6, gt=0)
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=3, ge=0)
    minibatches: int = Field(default=2, ge=1)
    """Optimizer steps per training step."""
    clip_low: float = Field(default=0.2, ge=0)
    clip_high: float = Field(default=0.28, ge=0)
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    scale_rewards: Literal["group", "none"] = "group"
    """Divide advantages by the group's standard deviation, or not (Dr. GRPO, Liu et al. 2025)."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty to the starting weights (k3 estimator); 0 keeps no reference model."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of training rollouts."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest response of one model call."""
    eval_every: int = Field(default=5, ge=0)
    """Evaluate on `val_dataset` every so many steps; 0 means never."""
    eval_limit: int | None = Field(default=None, ge=1)
    """Tasks of `val_dataset` used by these evaluations; all when not given."""
    checkpoint_every: int = Field(default=1, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    missing_reward: Literal["drop", "fail"] = "drop"
    """A rollout without a reward is left out of its group, or ends the run. It never counts as 0."""
    max_missing_fraction: float = Field(default=0.5, ge=0, le=1)
    """More rollouts than this without reward or without trainable calls in a step end the run with the reason."""
    rollout_timeout_s: float = Field(default=120.0, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.minibatches > self.prompts_per_step * self.group_size:
            raise ValueError("minibatches cannot exceed prompts_per_step * group_size")
        return self

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step `step` (0-based): linear warm-up, then the schedule down to 0 at `steps`."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        progress = step / self.steps
        shape = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[self.lr_schedule]
        return self.learning_rate * warm * shape
