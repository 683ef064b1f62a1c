"""Finds rows whose keys and values already hold the beginning of a prompt, so that it is not computed again.

Token blocks are hashed in a chain; a hit is confirmed token by token. Knows nothing of models.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from agentlightning.learner.kv import KVRows

_BLOCK = 8


@dataclass(eq=False)
class Entry:
    """`tokens` (int32) whose keys and values are in row `row` of `store`."""

    tokens: np.ndarray
    store: KVRows
    row: int
    keys: list[int] = field(default_factory=list[int])


class PrefixIndex:
    """All rows that can be copied from; the newest wins where several hold the same beginning."""

    def __init__(self) -> None:
        self._by_block: dict[int, Entry] = {}

    def find(self, tokens: np.ndarray) -> tuple[Entry | None, int]:
        """The entry that shares most of `tokens`, and how many tokens it shares, at most all but the last."""
        for key in reversed(_chain(tokens)):
            entry = self._by_block.get(key)
            if entry is None:
                continue
            size = min(len(entry.tokens), len(tokens) - 1)
            differ = np.flatnonzero(entry.tokens[:size] != tokens[:size])
            shared = int(differ[0]) if len(differ) else size
            if shared:
                return entry, shared
        return None, 0

    def add(self, entry: Entry) -> None:
        """Make an entry findable, or refresh it after its tokens grew."""
        self.discard(entry)
        entry.keys = _chain(entry.tokens)
        for key in entry.keys:
            self._by_block[key] = entry

    def discard(self, entry: Entry) -> None:
        """Forget an entry."""
        for key in entry.keys:
            if self._by_block.get(key) is entry:
                del self._by_block[key]
        entry.keys = []

    def clear(self) -> None:
        """Forget all, because the weights changed."""
        self._by_block.clear()


class Parking:
    """Keeps the rows of finished sequences for the next turn of their conversation; the oldest give way."""

    def __init__(self, index: PrefixIndex) -> None:
        self.store = KVRows()
        self._index = index
        self._parked: OrderedDict[int, Entry] = OrderedDict()

    def park(self, entries: list[Entry], *, capacity: int) -> None:
        """Move entries (their rows are about to be reused) into parked rows, at most `capacity` in all."""
        entries = entries[-capacity:] if capacity > 0 else []
        while self._parked and len(self._parked) + len(entries) > capacity:
            _, old = self._parked.popitem(last=False)
            self._index.discard(old)
        if not entries:
            return
        free = [i for i in range(capacity) if i not in self._parked][: len(entries)]
        lengths = [len(e.tokens) for e in entries]
        self.store.reserve(max(free) + 1, max(lengths))
        self.store.copy(entries[0].store, [e.row for e in entries], free, lengths)
        for entry, row in zip(entries, free, strict=True):
            entry.store, entry.row = self.store, row
            self._parked[row] = entry
            self._index.add(entry)

    def clear(self) -> None:
        """Drop everything; the memory stays for the next rows."""
        self._parked.clear()


def _chain(tokens: np.ndarray) -> list[int]:
    data = tokens.tobytes()
    width = _BLOCK * tokens.itemsize
    keys: list[int] = []
    key = 0
    for start in range(0, len(data) - width + 1, width):
        key = hash((key, data[start : start + width]))
        keys.append(key)
    return keys
