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
    """Rows of keys and values: per layer two tensors [rows, heads, length, head_dim], zero where never written.

    Both sizes grow on demand; layers appear when the model first writes them.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.length = 0
        self.most_tokens: int | None = None
        self._tensors: list[torch.Tensor | None] = []

    def pair(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tensors of a layer, created like the given new states [b, heads, n, head_dim] where missing."""
        while len(self._tensors) <= 2 * layer + 1:
            self._tensors.append(None)
        old_keys, old_values = self._tensors[2 * layer], self._tensors[2 * layer + 1]
        if old_keys is None or old_values is None:
            old_keys, old_values = self._empty_like(keys), self._empty_like(values)
            self._tensors[2 * layer : 2 * layer + 2] = old_keys, old_values
        return old_keys, old_values

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
        for i, old in enumerate(self._tensors):
            if old is not None:
                new = self._empty_like(old)
                new[:kept, :, : old.shape[2]] = old[:kept]
                self._tensors[i] = new

    @torch.inference_mode()
    def copy(self, source: KVRows, source_rows: list[int], rows: list[int], length: int) -> None:
        """Copy the first `length` positions of rows of `source` (possibly this object) into rows of this object."""
        if not rows or length == 0:
            return
        device = next(t.device for t in source._tensors if t is not None)
        origins, targets = (torch.tensor(x, device=device) for x in (source_rows, rows))
        for i, origin in enumerate(source._tensors):
            if origin is None:
                continue
            if i >= len(self._tensors) or self._tensors[i] is None:
                self._tensors.extend([None] * (i + 1 - len(self._tensors)))
                self._tensors[i] = self._empty_like(origin)
            target = self._tensors[i]
            assert target is not None
            target[targets, :, :length] = origin[origins, :, :length]

    def bytes_per_token(self) -> int:
        """Memory of one position of one row."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in self._tensors if t is not None)

    def release(self) -> None:
        """Give the memory back."""
        self.rows = self.length = 0
        self._tensors = []

    def _empty_like(self, states: torch.Tensor) -> torch.Tensor:
        # Zeros, not garbage: a masked key has weight 0, and 0 x NaN would still be NaN.
        return states.new_zeros((self.rows, states.shape[1], self.length, states.shape[3]))


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
