"""The rows of one draw whose tokens have to follow a grammar. Knows nothing of models."""

from __future__ import annotations

import numpy as np

from agentlightning.kit.errors import UpstreamError
from agentlightning.learner.sampling import Bans
from agentlightning.learner.sequence import Sequence


class Following:
    """Matchers of rows `low …`; a row whose grammar breaks is noted in `failed` and left to its fate.

    Args:
        low: The first row.
        sequences: Those of the rows, in order.
    """

    def __init__(self, low: int, sequences: list[Sequence]) -> None:
        self.failed: dict[int, UpstreamError] = {}
        self._matchers = {low + i: s.matcher for i, s in enumerate(sequences) if s.matcher is not None}
        self._low = low

    def bans(self) -> Bans | None:
        """What these rows must not draw, relative to `low`."""
        rows: list[int] = []
        banned: list[np.ndarray] = []
        for row, matcher in self._matchers.items():
            try:
                banned.append(~matcher.allowed())
            except UpstreamError as error:
                self.failed[row] = error
            else:
                rows.append(row - self._low)
        return Bans(np.array(rows), np.stack(banned)) if rows else None

    def accept(self, tokens: np.ndarray) -> None:
        """Note the tokens that were drawn for the rows from `low` on."""
        for row, matcher in self._matchers.items():
            if row in self.failed:
                continue
            try:
                matcher.accept(int(tokens[row - self._low]))
            except UpstreamError as error:
                self.failed[row] = error
