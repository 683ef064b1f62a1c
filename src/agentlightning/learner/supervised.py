"""Optimizer steps on given texts: imitation (SFT) and preference pairs (DPO). Knows nothing of where they come from.

SFT: mean negative log-likelihood of the learned tokens. DPO: Rafailov et al. 2023, equation 7, with the reference's
log-probabilities given, not computed; the optional likelihood of the chosen side is that of Pang et al. 2024 (RPO).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from agentlightning.kit.errors import BadInputError
from agentlightning.learner.loss import token_logprobs
from agentlightning.learner.packing import TokenBatch, check_examples, example_batches, pair_batches
from agentlightning.learner.protocol import FitConfig
from agentlightning.learner.step import PolicyTrainer
from agentlightning.schemas.example import TokenExample, TokenPair

Between = Callable[[], None]


def _nothing() -> None:
    pass


def fit_examples(
    trainer: PolicyTrainer, examples: Sequence[TokenExample], config: FitConfig, *, between: Between = _nothing
) -> dict[str, float]:
    """One optimizer step on the mean negative log-likelihood of all learned tokens, weighted by example.

    Args:
        trainer: Whose weights.
        examples: The batch.
        config: How to train.
        between: Called after each microbatch; may raise to stop.

    Returns:
        `loss` (nats a token), `token_accuracy` (share of learned tokens that were the likeliest), `grad_norm` (before
        clipping; absent when the step was skipped), `lr`, `examples`, `tokens`, `skipped_steps`, `train_seconds`.

    Raises:
        BadInputError: An example contradicts itself or is of another model's tokenizer, or all weights are 0.
    """
    started = time.perf_counter()
    check_examples(examples, trainer.vocab_size)
    total = sum(example.weight * example.learned for example in examples)
    _check_total(total)
    _begin(trainer, config)
    loss = hits = 0.0
    tokens = 0
    for places, batch in example_batches(examples, config.microbatch_tokens, trainer.device):
        logits_NV = trainer.logits(batch)
        weights_B = torch.tensor([examples[place].weight for place in places], device=trainer.device)
        losses_N = -token_logprobs(logits_NV, batch.targets, 1.0) * weights_B[batch.rows]
        part = losses_N.sum() / total
        part.backward()
        loss += float(part.detach())
        hits += float((logits_NV.detach().argmax(-1) == batch.targets).sum())
        tokens += len(batch.targets)
        between()
    facts = {"loss": loss, "token_accuracy": hits / tokens, "examples": float(len(examples)), "tokens": float(tokens)}
    return {**facts, **_end(trainer, config, loss), "train_seconds": time.perf_counter() - started}


def fit_pairs(
    trainer: PolicyTrainer, pairs: Sequence[TokenPair], config: FitConfig, *, between: Between = _nothing
) -> dict[str, float]:
    """One optimizer step on the DPO loss of pairs, averaged by their weights.

    Returns:
        `loss` (all of it), `dpo_loss`, `nll` (of the chosen side, nats a token), `reward_chosen`, `reward_rejected`,
        `margin` (their mean difference), `accuracy` (share of positive margins), `grad_norm`, `lr`, `pairs`, `tokens`,
        `skipped_steps`, `train_seconds`.

    Raises:
        BadInputError: As `fit_examples`.
    """
    started = time.perf_counter()
    check_examples([side for pair in pairs for side in (pair.chosen, pair.rejected)], trainer.vocab_size)
    total = sum(pair.weight for pair in pairs)
    _check_total(total)
    chosen_tokens = sum(pair.weight * pair.chosen.learned for pair in pairs)
    _begin(trainer, config)
    sums = dict.fromkeys(("dpo_loss", "nll", "reward_chosen", "reward_rejected", "margin", "accuracy"), 0.0)
    tokens = 0
    for places, batch in pair_batches(pairs, config.microbatch_tokens, trainer.device):
        found = [pairs[place] for place in places]
        chosen_P, rejected_P = sequence_logprobs(trainer.logits(batch), batch).chunk(2)
        weights_P = _tensor([pair.weight for pair in found], chosen_P)
        rewards_chosen_P = config.beta * (chosen_P - _tensor([pair.reference_chosen for pair in found], chosen_P))
        rewards_rejected_P = config.beta * (
            rejected_P - _tensor([pair.reference_rejected for pair in found], rejected_P)
        )
        margins_P = rewards_chosen_P - rewards_rejected_P
        dpo = (weights_P * -F.logsigmoid(margins_P)).sum() / total
        nll = -(weights_P * chosen_P).sum() / chosen_tokens
        (dpo + config.sft_weight * nll).backward()
        with torch.no_grad():
            sums["dpo_loss"] += float(dpo)
            sums["nll"] += float(nll)
            sums["reward_chosen"] += float(rewards_chosen_P.sum()) / len(pairs)
            sums["reward_rejected"] += float(rewards_rejected_P.sum()) / len(pairs)
            sums["margin"] += float(margins_P.sum()) / len(pairs)
            sums["accuracy"] += float((margins_P > 0).sum()) / len(pairs)
        tokens += len(batch.targets)
        between()
    loss = sums["dpo_loss"] + config.sft_weight * sums["nll"]
    facts = {"loss": loss, **sums, "pairs": float(len(pairs)), "tokens": float(tokens)}
    return {**facts, **_end(trainer, config, loss), "train_seconds": time.perf_counter() - started}


@torch.no_grad()
def score(
    trainer: PolicyTrainer, examples: Sequence[TokenExample], microbatch_tokens: int, *, between: Between = _nothing
) -> list[float]:
    """Log-probability (natural, summed over the learned tokens) of each example under the present weights.

    Raises:
        BadInputError: As `fit_examples`.
    """
    check_examples(examples, trainer.vocab_size)
    found = [0.0] * len(examples)
    for places, batch in example_batches(examples, microbatch_tokens, trainer.device):
        for place, value in zip(places, sequence_logprobs(trainer.logits(batch), batch).tolist(), strict=True):
            found[place] = value
        between()
    return found


def sequence_logprobs(logits_NV: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Log-probabilities [B] of the sequences of a batch: those of their learned tokens, summed up in float32."""
    logprobs_N = token_logprobs(logits_NV, batch.targets, 1.0)
    return torch.zeros(len(batch.ids), device=logprobs_N.device).index_add(0, batch.rows, logprobs_N)


def _begin(trainer: PolicyTrainer, config: FitConfig) -> None:
    trainer.set_optimizer(config, config.lr)
    trainer.clear_gradients()


def _end(trainer: PolicyTrainer, config: FitConfig, loss: float) -> dict[str, float]:
    norm = trainer.update(config, loss)
    trainer.clear_gradients()
    trainer.batches += 1
    facts = {"lr": config.lr, "skipped_steps": float(norm is None)}
    return facts if norm is None else {**facts, "grad_norm": norm}


def _check_total(total: float) -> None:
    if not total > 0:
        raise BadInputError("There is nothing to learn: no examples, or all their weights are 0.")


def _tensor(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)
