"""Keys and values of many sequences in preallocated rows, and the cache a Hugging Face model writes them through.

Sequence i lives in row i; the token at position p is stored at index p of its row, whatever its neighbours do. Knows
nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_LENGTH_STEP = 64


def rounded(length: int) -> int:
    """The row length that is allocated to hold `length` tokens."""
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


class KVRows:
    """Rows of keys and values, zero where never written; both sizes grow on demand.

    Keys and values of the same shape, of all layers, share one tensor [n, rows, heads, length, head_dim], so that a row
    is copied in all of them at once. Layers appear when the model first writes them.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.length = 0
        self.most_tokens: int | None = None
        self._blocks: list[torch.Tensor] = []
        self._place: list[tuple[int, int]] = []  # of keys and values of each layer: the block, and where in it

    def pair(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [rows, heads, length, head_dim] of a layer, which is created like the given new states
        [b, heads, n, head_dim] when it is the next one.
        """
        while len(self._place) <= 2 * layer:
            self._add(keys)
            self._add(values)
        (i, key_at), (j, value_at) = self._place[2 * layer : 2 * layer + 2]
        return self._blocks[i][key_at], self._blocks[j][value_at]

    def _add(self, states: torch.Tensor) -> None:
        fresh = _zeros(states, 1, self.rows, states.shape[1], self.length, states.shape[3])
        for i, block in enumerate(self._blocks):
            if block.shape[1:] == fresh.shape[1:] and block.dtype == fresh.dtype:
                self._place.append((i, len(block)))
                self._blocks[i] = torch.cat([block, fresh])
                return
        self._place.append((len(self._blocks), 0))
        self._blocks.append(fresh)

    @torch.inference_mode()
    def reserve(self, rows: int, length: int) -> None:
        """Grow to at least these sizes, keeping the content of the first `rows` rows.

        Spare rows are given up where rows and length together would exceed `most_tokens`.
        """
        if rows <= self.rows and length <= self.length:
            return
        length = rounded(max(length, self.length))
        roomy = max(rows, min(2 * self.rows, rows + 64)) if rows > self.rows else self.rows
        kept = self.rows
        self.rows = roomy if self.most_tokens is None or roomy * length <= self.most_tokens else rows
        self.length = length
        kept = min(kept, self.rows)
        for i, old in enumerate(self._blocks):
            new = _zeros(old, old.shape[0], self.rows, old.shape[2], length, old.shape[4])
            new[:, :kept, :, : old.shape[3]] = old[:, :kept]
            self._blocks[i] = new

    @torch.inference_mode()
    def copy(self, source: KVRows, source_rows: list[int], rows: list[int], lengths: list[int]) -> None:
        """Copy the first `lengths[i]` positions of row `source_rows[i]` of `source` into row `rows[i]` of this object.

        `source` may be this object, when no row is both read and written.
        """
        if not self._blocks:
            self._place = list(source._place)
            self._blocks = [
                _zeros(b, b.shape[0], self.rows, b.shape[2], self.length, b.shape[4]) for b in source._blocks
            ]
        for target, origin in zip(self._blocks, source._blocks, strict=True):
            for source_row, row, length in zip(source_rows, rows, lengths, strict=True):
                target[:, row, :, :length].copy_(origin[:, source_row, :, :length])

    @torch.inference_mode()
    def shorten(self, rows: int, length: int) -> None:
        """Give back what lies beyond the first `rows` rows and `length` positions."""
        self.rows, self.length = min(self.rows, rows), min(self.length, rounded(length))
        self._blocks = [block[:, : self.rows, :, : self.length].clone() for block in self._blocks]

    def bytes(self) -> int:
        """Memory of all rows."""
        return sum(block.numel() * block.element_size() for block in self._blocks)

    def bytes_per_token(self) -> int:
        """Memory of one position of one row."""
        return sum(b.shape[0] * b.shape[2] * b.shape[4] * b.element_size() for b in self._blocks)

    def release(self) -> None:
        """Give the memory back."""
        self.rows = self.length = 0
        self._blocks, self._place = [], []


def _zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    # Zeros, not garbage: a masked key has weight 0, and 0 x NaN would still be NaN.
    return like.new_zeros(shape)


@dataclass
class Window:
    """What the next forward pass touches: rows `low:high` at `positions` [b, N], the first `keys` keys."""

    low: int = 0
    high: int = 0
    keys: int = 0
    row_ids: Any = None
    positions: Any = None


class _SlotLayer(CacheLayerMixin):
    """One layer's view of `KVRows`, as transformers wants it."""

    is_sliding = False

    def __init__(self, rows: KVRows, window: Window, index: int) -> None:
        super().__init__()
        self._rows, self._window, self._index = rows, window, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        window = self._window
        keys, values = self._rows.pair(self._index, key_states, value_states)
        keys[window.row_ids, :, window.positions] = key_states.transpose(1, 2)
        values[window.row_ids, :, window.positions] = value_states.transpose(1, 2)
        low, high, length = window.low, window.high, window.keys
        return keys[low:high, :, :length], values[low:high, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._window.keys, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # its name before transformers 5
        return -1


def slot_cache(rows: KVRows, window: Window, layers: int) -> Cache:
    """A transformers cache that reads and writes `rows` where `window` points."""
    return Cache(layers=[_SlotLayer(rows, window, i) for i in range(layers)])
