"""What the engine knows of each active row, as arrays over rows, so that a step costs no Python per row.

Knows nothing of keys, values or models.
"""

from __future__ import annotations

import numpy as np

from agentlightning.learner.sampling import UNIFORMS, Rules, uniforms
from agentlightning.learner.sequence import Sequence


class RowState:
    """What the engine knows of each active row, as arrays over rows."""

    def __init__(self, rows: int) -> None:
        self.token = np.zeros(rows, np.int64)
        """The newest token; its keys and values are not computed yet."""
        self.position = np.zeros(rows, np.int64)
        """Where the newest token stands."""
        self.count = np.zeros(rows, np.int64)
        self.limit = np.zeros(rows, np.int64)
        self._temperature = np.zeros(rows, np.float32)
        self._top_p = np.zeros(rows, np.float32)
        self._top_k = np.zeros(rows, np.int64)
        self._uniforms = np.zeros((rows, UNIFORMS), np.float32)
        self._tokens = np.zeros((rows, UNIFORMS), np.int32)
        self._logprobs = np.zeros((rows, UNIFORMS), np.float32)
        self._all_rows = np.arange(rows)

    def start(self, row: int, sequence: Sequence) -> None:
        """A sequence enters, its `ids` computed."""
        params = sequence.job.request.params
        given = len(sequence.prompt_ids)
        count = len(sequence.ids) - given
        self.position[row] = len(sequence.ids) - 1
        self.count[row] = count
        if count:
            self._make_room(count)
            self._tokens[row, :count] = sequence.ids[given:]
            self._logprobs[row, :count] = sequence.logprobs
            if count % UNIFORMS:
                self._uniforms[row] = uniforms(sequence.stream_key, count // UNIFORMS)
        self.limit[row] = sequence.limit
        self._temperature[row] = params.temperature
        self._top_p[row] = params.top_p
        self._top_k[row] = params.top_k

    def refill_uniforms(self, low: int, sequences: list[Sequence]) -> None:
        """Make random numbers for the rows from `low` on that have used theirs up."""
        due = np.flatnonzero(self.count[low : low + len(sequences)] % UNIFORMS == 0)
        for i in due.tolist():
            block = int(self.count[low + i]) // UNIFORMS
            self._uniforms[low + i] = uniforms(sequences[i].stream_key, block)

    def uniform(self, low: int, high: int) -> np.ndarray:
        """The random number of each row's next token, float32."""
        return self._uniforms[self._all_rows[low:high], self.count[low:high] % UNIFORMS]

    def rules(self, low: int, high: int) -> Rules:
        """How to sample rows `low:high`."""
        return Rules(self._temperature[low:high], self._top_p[low:high], self._top_k[low:high])

    def append(self, low: int, high: int, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Note a sampled token for rows `low:high`."""
        count = self.count[low:high]
        self._make_room(int(count.max()))
        rows = self._all_rows[low:high]
        self._tokens[rows, count] = tokens
        self._logprobs[rows, count] = logprobs
        self.token[low:high] = tokens
        self.count[low:high] += 1
        self.position[low:high] += 1

    def response(self, row: int) -> tuple[list[int], list[float]]:
        """Sampled tokens and their log-probabilities."""
        count = int(self.count[row])
        return self._tokens[row, :count].tolist(), self._logprobs[row, :count].tolist()

    def known_tokens(self, row: int, sequence: Sequence) -> np.ndarray:
        """The tokens whose keys and values are computed: all but the newest."""
        return np.concatenate([sequence.prompt_ids, self._tokens[row, : int(self.count[row]) - 1]])

    def length(self, active: int) -> int:
        """Positions that the longest active row fills with its next token."""
        return int(self.position[:active].max()) + 1 if active else 0

    def _make_room(self, count: int) -> None:
        while count >= self._tokens.shape[1]:
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)], axis=1)
            self._logprobs = np.concatenate([self._logprobs, np.zeros_like(self._logprobs)], axis=1)

    def move(self, sources: list[int], rows: list[int]) -> None:
        """Copy rows over others."""
        for array in (
            self.token, self.position, self.count, self.limit, self._temperature, self._top_p, self._top_k,
            self._uniforms, self._tokens, self._logprobs,
        ):  # fmt: skip
            array[rows] = array[sources]
