"""Attention of one new token per row on the CPU, where the general kernel wastes most of its time.

PyTorch's fused kernel is made for long queries; for one query per row two batched products take half its time. Keys and
values that heads share are not repeated for each. Plugs into transformers' table of attention functions.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

NAME = "agentlightning_decode"

_UNSUPPORTED = ("softcap", "s_aux")


def decode_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax attention of one query per row.

    Args:
        module: Not used.
        query: [B, H, 1, D].
        key: [B, G, K, D]; H is a multiple of G, and head h reads group h // (H / G).
        value: [B, G, K, E].
        attention_mask: Added to the scores: [B, 1, 1, K] or more keys.
        dropout: Must be 0: nothing is trained here.
        scaling: Of the scores; 1 / sqrt(D) when not given.
        options: What other attention functions take.

    Returns:
        [B, 1, H, E], and no weights.

    Raises:
        ValueError: The model wants something that this function does not do.
    """
    if dropout or query.shape[2] != 1 or any(options.get(name) is not None for name in _UNSUPPORTED):
        raise ValueError("this attention decodes one plain token per row")
    rows, heads, _, size = query.shape
    groups, keys = key.shape[1:3]
    grouped = query.reshape(rows, groups, heads // groups, size)
    scores = torch.matmul(grouped, key.transpose(-1, -2)).float()
    scores *= size**-0.5 if scaling is None else scaling
    if attention_mask is not None:
        scores += attention_mask[..., :keys]
    weights = torch.softmax(scores, -1).to(value.dtype)
    return torch.matmul(weights, value).reshape(rows, 1, heads, value.shape[3]), None


AttentionInterface.register(NAME, decode_attention)


@contextmanager
def decoding(config: Any) -> Generator[None]:
    """Let the model with this (text) configuration use `decode_attention` inside the block."""
    usual = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
