"""Draws tokens for many rows at once; a row's draw depends on its own logits and its own random stream only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

UNIFORMS = 64
"""Uniform numbers made at a time for one sequence."""
_MASK64 = (1 << 64) - 1
# below 1 even after rounding, so that no token of probability zero is reached
_UNIFORM_STEP = 2.0**-24


def uniforms(key: tuple[int, int], block: int) -> np.ndarray:
    """Numbers `block * UNIFORMS ...` of the random stream `key`: float32 [UNIFORMS] in [0, 1 - 2^-23].

    Philox (Salmon et al. 2011) is counter-based: any block can be made without the ones before it.
    """
    # An explicit type: numpy would make floats of large integers, and many keys the same.
    words = np.array([key[0] & _MASK64, key[1] & _MASK64], dtype=np.uint64)
    bits = np.random.Philox(key=words, counter=[0, block, 0, 0]).random_raw(UNIFORMS)
    return np.minimum((bits >> np.uint64(40)) * _UNIFORM_STEP, 1 - 2.0**-23).astype(np.float32)


@dataclass
class Rules:
    """How to sample B rows: arrays [B], float32 `temperature` (0 is greedy) and `top_p`, int64 `top_k` (0 is off)."""

    temperature: np.ndarray
    top_p: np.ndarray
    top_k: np.ndarray


@dataclass
class Bans:
    """Tokens that C of B rows must not draw: int64 `rows` [C], bool `banned` [C, V]; at least one is left in each."""

    rows: np.ndarray
    banned: np.ndarray


def sample(
    logits_BV: torch.Tensor, uniforms_B: np.ndarray, rules: Rules, bans: Bans | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one token per row by inverting the cumulative distribution.

    Returns:
        int64 tokens [B] and float32 natural-log probabilities [B] under the softmax at the row's temperature before
        top_p, top_k and bans; at temperature 1 for greedy rows.
    """
    device = logits_BV.device
    greedy = rules.temperature == 0.0
    heat = np.where(greedy, np.float32(1), rules.temperature)
    if (heat != 1.0).any():
        logits_BV = logits_BV / torch.from_numpy(heat).to(device)[:, None]
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    drawn_BV = logprobs_BV if bans is None else _without(logprobs_BV, bans)
    best_BV = logits_BV if bans is None else drawn_BV
    if greedy.all():
        tokens_B = best_BV.argmax(-1)
    else:
        uniforms_B1 = torch.from_numpy(uniforms_B).to(device)[:, None]
        tokens_B = _invert(drawn_BV.exp(), uniforms_B1)
        cut = ((rules.top_p < 1.0) | (rules.top_k > 0)) & ~greedy
        if cut.any():
            rows = torch.from_numpy(np.flatnonzero(cut)).to(device)
            top_p = torch.from_numpy(rules.top_p[cut]).to(device)[:, None]
            top_k = torch.from_numpy(rules.top_k[cut]).to(device)[:, None]
            tokens_B[rows] = _truncated(drawn_BV[rows], uniforms_B1[rows], top_p, top_k)
        if greedy.any():
            tokens_B = torch.where(torch.from_numpy(greedy).to(device), best_BV.argmax(-1), tokens_B)
    chosen_B = logprobs_BV.gather(-1, tokens_B[:, None])[:, 0]
    return tokens_B.cpu().numpy(), chosen_B.cpu().numpy()


def _without(logprobs_BV: torch.Tensor, bans: Bans) -> torch.Tensor:
    """The distributions over what is left; normalised anew, because what is left may be too small for a float."""
    rows_C = torch.from_numpy(bans.rows).to(logprobs_BV.device)
    banned_CV = torch.from_numpy(bans.banned).to(logprobs_BV.device)
    drawn_BV = logprobs_BV.clone()
    drawn_BV[rows_C] = torch.log_softmax(logprobs_BV[rows_C].masked_fill(banned_CV, -torch.inf), dim=-1)
    return drawn_BV


def _invert(weights_BV: torch.Tensor, uniforms_B1: torch.Tensor) -> torch.Tensor:
    cumulative_BV = weights_BV.cumsum(-1)
    target_B1 = uniforms_B1 * cumulative_BV[:, -1:]
    found_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
    return found_B.clamp_(max=weights_BV.shape[-1] - 1)


def _truncated(
    logprobs_BV: torch.Tensor, uniforms_B1: torch.Tensor, top_p_B1: torch.Tensor, top_k_B1: torch.Tensor
) -> torch.Tensor:
    """top_k first, then the smallest set whose mass before its last member is below top_p of what top_k left."""
    sorted_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True, stable=True)
    weights_BV = sorted_BV.exp()
    rank_V = torch.arange(weights_BV.shape[-1], device=weights_BV.device)
    weights_BV = weights_BV.masked_fill((top_k_B1 > 0) & (rank_V >= top_k_B1), 0.0)
    mass_BV = weights_BV.cumsum(-1)
    before_BV = mass_BV - weights_BV
    beyond_BV = (before_BV >= top_p_B1 * mass_BV[:, -1:]) & (rank_V > 0)
    picked_B = _invert(weights_BV.masked_fill(beyond_BV, 0.0), uniforms_B1)
    return order_BV.gather(-1, picked_B[:, None])[:, 0]
