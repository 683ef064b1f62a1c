"""Training samples and examples to padded microbatches. Knows nothing of the model or the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from agentlightning.kit.errors import BadInputError
from agentlightning.schemas.call import TrainSample
from agentlightning.schemas.example import TokenExample, TokenPair


class Masked(Protocol):
    """Tokens of which some count."""

    token_ids: list[int]
    loss_mask: list[int]


@dataclass
class TokenBatch:
    """B right-padded sequences of T tokens, and the N tokens that count, one after the other.

    The logits that predict such token i stand at `rows[i], columns[i]`.
    """

    ids: torch.Tensor
    """int64 [B, T]."""
    rows: torch.Tensor
    """int64 [N]."""
    columns: torch.Tensor
    """int64 [N]: one before the token's own place."""
    targets: torch.Tensor
    """int64 [N]."""
    sequence_tokens: torch.Tensor
    """float32 [N]: how many such tokens the token's sequence has."""


@dataclass
class MicroBatch(TokenBatch):
    """Sequences in which the policy sampled the tokens that count."""

    old_logprobs: torch.Tensor
    """float32 [N]: when it was sampled."""
    advantages: torch.Tensor
    """float32 [N]: of the token's sequence."""


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


def check_examples(examples: Sequence[TokenExample], vocab_size: int) -> None:
    """Raise `BadInputError` for examples that contradict themselves or hold nothing to learn."""
    for example in examples:
        size = len(example.token_ids)
        if len(example.loss_mask) != size:
            raise BadInputError(f"An example has {size} tokens and {len(example.loss_mask)} mask entries.")
        if not any(example.loss_mask) or example.loss_mask[0]:
            raise BadInputError("An example learns no token, or its first one.", hint="The first has no predecessor.")
        if not 0 <= min(example.token_ids) <= max(example.token_ids) < vocab_size:
            raise BadInputError(
                f"An example has a token id outside 0 … {vocab_size - 1}.", hint="It is of another model's tokenizer."
            )
        if not np.isfinite(example.weight) or example.weight < 0:
            raise BadInputError(f"The weight {example.weight} of an example is no number from 0.")


def example_batches(
    examples: Sequence[TokenExample], most_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Examples of similar length together, at most `most_tokens` padded tokens each; at least one.

    Yields:
        The places of the examples in `examples`, and the batch with them as its rows.
    """
    lengths = [len(example.token_ids) for example in examples]
    for places in _groups(lengths, most_tokens):
        yield places, token_batch([examples[place] for place in places], device)


def pair_batches(
    pairs: Sequence[TokenPair], most_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Like `example_batches` for P pairs: rows `0:P` are the chosen, `P:2P` the rejected."""
    lengths = [max(len(pair.chosen.token_ids), len(pair.rejected.token_ids)) for pair in pairs]
    for places in _groups(lengths, most_tokens // 2):
        found = [pairs[place] for place in places]
        yield places, token_batch([p.chosen for p in found] + [p.rejected for p in found], device)


def _groups(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda place: lengths[place], reverse=True)
    start = 0
    while start < len(order):
        rows = max(1, most_tokens // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def token_batch(sequences: Sequence[Masked], device: torch.device) -> TokenBatch:
    """Pad sequences."""
    ids, mask = _grid(sequences)
    return TokenBatch(**_places(ids, mask, device))


def _grid(sequences: Sequence[Masked]) -> tuple[np.ndarray, np.ndarray]:
    shape = len(sequences), max(len(sequence.token_ids) for sequence in sequences)
    ids = np.zeros(shape, np.int64)
    mask = np.zeros(shape, bool)
    for i, sequence in enumerate(sequences):
        size = len(sequence.token_ids)
        ids[i, :size] = sequence.token_ids
        mask[i, :size] = sequence.loss_mask
    return ids, mask


def _places(ids: np.ndarray, mask: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
    rows, places = np.nonzero(mask)
    found = {
        "ids": ids,
        "rows": rows,
        "columns": places - 1,
        "targets": ids[rows, places],
        "sequence_tokens": mask.sum(1).astype(np.float32)[rows],
    }
    return {name: torch.from_numpy(array).to(device) for name, array in found.items()}


def _pad(samples: list[TrainSample], device: torch.device) -> MicroBatch:
    ids, mask = _grid(samples)
    rows, places = np.nonzero(mask)
    logprobs = np.zeros(ids.shape, np.float32)
    for i, sample in enumerate(samples):
        logprobs[i, : len(sample.logprobs)] = sample.logprobs
    advantages = np.array([s.advantage for s in samples], np.float32)
    return MicroBatch(
        **_places(ids, mask, device),
        old_logprobs=torch.from_numpy(logprobs[rows, places]).to(device),
        advantages=torch.from_numpy(advantages[rows]).to(device),
    )
