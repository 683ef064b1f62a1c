"""Settings of fine-tuning on examples (SFT) and on preference pairs (DPO). Torch-free."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from agentlightning.config.strict import StrictModel


class SupervisedConfig(StrictModel):
    """What both have in common."""

    epochs: int = Field(default=2, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens of one optimizer step, prompts included; a longer example makes a step of its own."""
    learning_rate: float = Field(default=1e-5, gt=0)
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    microbatch_tokens: int = Field(default=4096, ge=1)
    """Padded tokens of one forward and backward pass: memory, not results, depend on it."""
    max_length: int | None = Field(default=None, ge=2)
    """Examples of more tokens are left out and counted, never cut; by default the model's context."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the tasks that is only measured on, where no held-out data are given."""
    eval_every: int = Field(default=0, ge=0)
    """Measure on the held-out examples every so many steps, too; 0: before and after only."""
    checkpoint_every: int = Field(default=50, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    plain_text: Literal["chat", "raw"] = "chat"
    """Prompts and completions that are plain texts: `chat` puts them into the chat template, `raw` does not."""
    run: str | None = None
    """Store: only rollouts whose id contains this."""
    modes: tuple[Literal["train", "val", "test", "none"], ...] = ("train", "none")
    """Store: only rollouts of these modes; without `val` and `test` nothing is learned that is measured on."""
    tokens: Literal["auto", "captured", "messages"] = "auto"
    """Store: the very tokens that were sampled, or the messages through the chat template; `auto` takes tokens where
    they were captured."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the agent before and after."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest response of one model call before and after."""
    seed: int = 0

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (0-based) of `steps`: linear warm-up, then the schedule down to 0."""
        warmup = math.ceil(self.warmup_fraction * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        shape = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[self.lr_schedule]
        return self.learning_rate * shape


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning on demonstrations or on the best traces of a store."""

    min_reward: float | None = None
    """Store: only rollouts with at least this reward."""
    top_k: int | None = Field(default=None, ge=1)
    """Store: at most so many rollouts of a task, the best."""
    feedback: bool = False
    """Store: scores of feedback, the newest of each author, stand for the reward of rollouts that have some."""


class DPOConfig(SupervisedConfig):
    """Direct Preference Optimization (Rafailov et al. 2023) on pairs of a better and a worse answer."""

    learning_rate: float = Field(default=1e-6, gt=0)
    epochs: int = Field(default=1, ge=1)
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to the one it started as."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the better answers' negative log-likelihood in the loss; keeps them from getting rarer, too."""
    pairs: Literal["preferences", "rewards"] = "preferences"
    """Store: what people, locks and judges preferred, or rollouts of the same task with different rewards."""
    same: Literal["prompt", "task"] = "prompt"
    """Store, `preferences`: what both sides must share, see `preference_pairs`."""
    sources: tuple[Literal["person", "lock", "judge"], ...] | None = None
    """Store, `preferences`: only those of a `person`, a `lock`, a `judge`."""
    min_margin: float = Field(default=0.0, ge=0)
    """Store, `rewards`: the difference has to be greater than this."""
    pairs_per_task: int = Field(default=4, ge=1)
    """Store, `rewards`: the best with the worst, the second best with the second worst, and so on."""
