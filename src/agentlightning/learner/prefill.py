"""Computes the prompts of new sequences, many together and in pieces that fit. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from agentlightning.learner.forward import Forward
from agentlightning.learner.sequence import Sequence

_PADDING_TOLERATED = 64


class Prefill:
    """Fills rows with the keys and values of prompts.

    Args:
        forward: The model over its rows.
        most_tokens: Tokens of one forward pass, padding included.
    """

    def __init__(self, forward: Forward, most_tokens: int) -> None:
        self._forward = forward
        self.most_tokens = most_tokens

    def __call__(self, sequences: list[Sequence], starts: list[int], low: int) -> torch.Tensor:
        """Compute the tokens of rows `low …` from `starts` on; logits [sequences, V] of their last tokens."""
        sizes = [len(s.ids) - start for s, start in zip(sequences, starts, strict=True)]
        parts: list[torch.Tensor] = []
        for first, last in _chunks(sizes, self.most_tokens):
            width = sizes[last - 1]
            ids = np.zeros((last - first, width), dtype=np.int64)
            positions = np.empty((last - first, width), dtype=np.int64)
            for i, (sequence, start) in enumerate(zip(sequences[first:last], starts[first:last], strict=True)):
                size = len(sequence.ids)
                pad = width - (size - start)
                ids[i, pad:] = sequence.ids[start:]
                positions[i, pad:] = np.arange(start, size)
                # Padding stands on the left and writes one place beyond the prompt, where the first
                # response token overwrites it before anyone reads it.
                positions[i, :pad] = size
            parts.append(self._in_pieces(low + first, ids, positions))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _in_pieces(self, low: int, ids: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        piece = max(1, self.most_tokens // len(ids))
        logits: Any = None
        for start in range(0, ids.shape[1], piece):
            logits = self._forward(low, ids[:, start : start + piece], positions[:, start : start + piece])
        return logits


def share_prompts(new: list[Sequence]) -> tuple[list[Sequence], list[tuple[Sequence, Sequence]]]:
    """Sequences to prefill, and pairs (sequence, the one whose identical prompt it copies)."""
    first: dict[bytes, Sequence] = {}
    followers: list[tuple[Sequence, Sequence]] = []
    for sequence in new:
        leader = first.setdefault(sequence.ids.tobytes(), sequence)
        if leader is not sequence:
            followers.append((sequence, leader))
    return list(first.values()), followers


def _chunks(sizes: list[int], most_tokens: int) -> Iterable[tuple[int, int]]:
    """Cut ascending sizes into runs that waste little on padding and stay below `most_tokens` padded."""
    first, real = 0, 0
    for i, size in enumerate(sizes):
        padded = (i - first + 1) * size
        wasted = padded - real - size
        if i > first and (padded > most_tokens or wasted > max(_PADDING_TOLERATED, real // 8)):
            yield first, i
            first, real = i, 0
        real += size
    yield first, len(sizes)
