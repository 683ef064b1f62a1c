"""The clipped policy-gradient loss of the GRPO family, on the sampled tokens alone. Knows nothing of models.

Sources: PPO's clipped ratio (Schulman et al. 2017); GRPO and its k3 KL penalty (Shao et al. 2024); separate clip
bounds and token-mean (DAPO, Yu et al. 2025); the constant normaliser (Dr. GRPO, Liu et al. 2025). Options are named as
in TRL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agentlightning.learner.packing import MicroBatch
from agentlightning.learner.protocol import LossType, StepConfig


@dataclass
class Totals:
    """Sizes of the whole optimizer minibatch, by which the loss is normalised."""

    sequences: int
    tokens: int
    max_completion_tokens: int


def token_weights(sequence_tokens_N: torch.Tensor, loss_type: LossType, totals: Totals) -> torch.Tensor:
    """The share of each token in the minibatch's loss, float32 [N].

    `dapo` and `bnpo`: every token of the minibatch weighs the same (TRL's `bnpo` means its local batch, and a minibatch
    here is one). `grpo`: every sequence weighs the same. `dr_grpo`: tokens weigh the same, by a constant.
    """
    if loss_type == "grpo":
        return 1.0 / (sequence_tokens_N * totals.sequences)
    if loss_type == "dr_grpo":
        return torch.full_like(sequence_tokens_N, 1.0 / (totals.sequences * totals.max_completion_tokens))
    return torch.full_like(sequence_tokens_N, 1.0 / totals.tokens)


def token_logprobs(logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """Natural-log probabilities [N] of the targets at a temperature, computed in float32."""
    logits_NV = logits_NV.float() if temperature == 1.0 else logits_NV.float() / temperature
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def policy_loss(
    logits_NV: torch.Tensor,
    batch: MicroBatch,
    totals: Totals,
    config: StepConfig,
    reference_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The microbatch's part of the minibatch loss, to be added up over microbatches.

    Args:
        logits_NV: Logits that predict the sampled tokens, before temperature.
        batch: The sampled tokens.
        totals: Of the whole minibatch.
        config: Loss type, clip bounds, temperature, `beta`.
        reference_N: Log-probabilities under the reference model, for `beta > 0`.

    Returns:
        The loss (a scalar with gradient) and metrics as sums over the N tokens.
    """
    logprobs_N = token_logprobs(logits_NV, batch.targets, config.temperature)
    log_ratio_N = logprobs_N - batch.old_logprobs
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    losses_N = -torch.minimum(ratio_N * batch.advantages, clipped_N * batch.advantages)
    sums: dict[str, torch.Tensor] = {}
    if reference_N is not None:
        gap_N = reference_N - logprobs_N
        divergence_N = gap_N.exp() - gap_N - 1
        losses_N = losses_N + config.beta * divergence_N
        sums["kl_reference"] = divergence_N.detach().sum()
    loss = (losses_N * token_weights(batch.sequence_tokens, config.loss_type, totals)).sum()
    with torch.no_grad():
        low_N = (ratio_N < 1 - config.clip_low) & (batch.advantages < 0)
        high_N = (ratio_N > 1 + config.clip_high) & (batch.advantages > 0)
        sums["clip_fraction"] = (low_N | high_N).float().sum()
        sums["ratio_mean"] = ratio_N.sum()
        sums["approx_kl"] = (ratio_N - 1 - log_ratio_N).sum()
        sums["entropy"] = _entropy(logits_NV, config.temperature)
    return loss, sums


def _entropy(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    logprobs_NV = torch.log_softmax(logits_NV.float() / temperature, -1)
    return -(logprobs_NV.exp() * logprobs_NV).sum()
