"""Decode attention gives what PyTorch's own attention gives."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from agentlightning.learner.attention import NAME, decode_attention, decoding
from agentlightning.learner.kv import KVRows


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_equals_the_general_kernel(groups: int, scaling: float | None) -> None:
    torch.manual_seed(groups)
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, groups, 10, 8), torch.randn(3, groups, 10, 8)
    mask = torch.zeros(3, 1, 1, 12)
    mask[1, ..., 4:] = mask[2, ..., 7:] = torch.finfo(torch.float32).min
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask[..., :10], scale=scaling, enable_gqa=True
    )
    found, weights = decode_attention(torch.nn.Identity(), query, key, value, mask, scaling=scaling)
    assert weights is None
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_bfloat16_scores_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, n, 16, dtype=torch.bfloat16) for n in (1, 40, 40))
    exact, _ = decode_attention(torch.nn.Identity(), query.double(), key.double(), value.double(), None)
    found, _ = decode_attention(torch.nn.Identity(), query, key, value, None)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() < 0.02


@pytest.mark.parametrize(
    "wanted", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(2)}], ids=["dropout", "softcap", "sinks"]
)
def test_refuses_what_it_does_not_do(wanted: dict[str, object]) -> None:
    states = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match="plain token"):
        decode_attention(torch.nn.Identity(), states, states, states, None, **wanted)  # type: ignore[arg-type]


def test_only_inside_the_block() -> None:
    config = LlamaConfig(attn_implementation="sdpa")
    with decoding(config):
        assert config._attn_implementation == NAME
    assert config._attn_implementation == "sdpa"


@torch.inference_mode()
def test_rows_hold_layers_of_different_shapes() -> None:
    rows, other = KVRows(), KVRows()
    shapes = [(2, 4), (2, 6), (1, 4)]  # heads and size of keys; values are one wider
    for layer, (heads, size) in enumerate(shapes):
        rows.pair(layer, torch.zeros(1, heads, 1, size), torch.zeros(1, heads, 1, size + 1))
    rows.reserve(3, 5)
    written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer, (heads, size) in enumerate(shapes):
        keys, values = rows.pair(layer, torch.zeros(1, heads, 1, size), torch.zeros(1, heads, 1, size + 1))
        keys.normal_(), values.normal_()
        written[layer] = keys[2].clone(), values[2].clone()
    other.reserve(2, 5)
    other.copy(rows, [2], [1], [3])
    for layer, (heads, size) in enumerate(shapes):
        keys, values = other.pair(layer, torch.zeros(1, heads, 1, size), torch.zeros(1, heads, 1, size + 1))
        torch.testing.assert_close(keys[1, :, :3], written[layer][0][:, :3])
        torch.testing.assert_close(values[1, :, :3], written[layer][1][:, :3])
        assert not keys[1, :, 3:].any()
    assert rows.bytes_per_token() == 4 * sum(h * (2 * s + 1) for h, s in shapes)
