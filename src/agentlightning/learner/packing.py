"""Training samples to padded microbatches. Knows nothing of the model or the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from agentlightning.kit.errors import BadInputError
from agentlightning.schemas.call import TrainSample


@dataclass
class MicroBatch:
    """B right-padded sequences of T tokens, and the N tokens the policy sampled, one after the other.

    The logits that predict sampled token i stand at `rows[i], columns[i]`.
    """

    ids: torch.Tensor
    """int64 [B, T]."""
    rows: torch.Tensor
    """int64 [N]."""
    columns: torch.Tensor
    """int64 [N]: one before the token's own place."""
    targets: torch.Tensor
    """int64 [N]."""
    old_logprobs: torch.Tensor
    """float32 [N]: when it was sampled."""
    advantages: torch.Tensor
    """float32 [N]: of the token's sequence."""
    sequence_tokens: torch.Tensor
    """float32 [N]: how many sampled tokens the token's sequence has."""


def check_samples(samples: list[TrainSample], vocab_size: int) -> None:
    """Raise `BadInputError` for samples that contradict themselves or hold nothing to learn from."""
    if not any(any(s.loss_mask) for s in samples):
        raise BadInputError("No sample has a token the policy sampled.", hint="Look at the loss masks.")
    for sample in samples:
        size = len(sample.token_ids)
        if len(sample.loss_mask) != size or len(sample.logprobs) != size:
            raise BadInputError(
                f"A sample of rollout {sample.rollout_id!r} has {size} tokens, {len(sample.loss_mask)} mask entries "
                f"and {len(sample.logprobs)} logprobs.",
                hint="The three lists need the same length.",
            )
        if size and sample.loss_mask[0]:
            raise BadInputError(
                f"A sample of rollout {sample.rollout_id!r} marks its first token as sampled.",
                hint="The first token has no predecessor: start the mask with 0.",
            )
        if size and not 0 <= min(sample.token_ids) <= max(sample.token_ids) < vocab_size:
            raise BadInputError(
                f"A sample of rollout {sample.rollout_id!r} has a token id outside 0 … {vocab_size - 1}.",
                hint="It was captured from another model.",
            )
        if not np.isfinite(sample.advantage):
            raise BadInputError(f"The advantage of rollout {sample.rollout_id!r} is not finite.")


def minibatches(samples: list[TrainSample], count: int, rng: np.random.Generator) -> list[list[TrainSample]]:
    """Deal samples at random into at most `count` parts of about equal number."""
    order = rng.permutation(len(samples))
    parts = np.array_split(order, min(count, len(samples)))
    return [[samples[i] for i in part] for part in parts]


def microbatches(samples: list[TrainSample], most_tokens: int, device: torch.device) -> Iterator[MicroBatch]:
    """Sequences of similar length together, at most `most_tokens` padded tokens each; at least one sequence."""
    ordered = sorted((s for s in samples if any(s.loss_mask)), key=lambda s: len(s.token_ids), reverse=True)
    start = 0
    while start < len(ordered):
        rows = max(1, most_tokens // len(ordered[start].token_ids))
        yield _pad(ordered[start : start + rows], device)
        start += rows


def _pad(samples: list[TrainSample], device: torch.device) -> MicroBatch:
    shape = len(samples), len(samples[0].token_ids)
    ids = np.zeros(shape, np.int64)
    mask = np.zeros(shape, bool)
    logprobs = np.zeros(shape, np.float32)
    for i, sample in enumerate(samples):
        size = len(sample.token_ids)
        ids[i, :size] = sample.token_ids
        mask[i, :size] = sample.loss_mask
        logprobs[i, :size] = sample.logprobs
    rows, places = np.nonzero(mask)
    advantages = np.array([s.advantage for s in samples], np.float32)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return MicroBatch(
        ids=tensor(ids),
        rows=tensor(rows),
        columns=tensor(places - 1),
        targets=tensor(ids[rows, places]),
        old_logprobs=tensor(logprobs[rows, places]),
        advantages=tensor(advantages[rows]),
        sequence_tokens=tensor(mask.sum(1).astype(np.float32)[rows]),
    )
