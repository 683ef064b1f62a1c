"""Live counters of the gateway, for progress views and `/health`."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Literal, TypedDict

from agentlightning.gateway.cache import CacheStats
from agentlightning.gateway.call import Capture
from agentlightning.gateway.continuity import BREAKS, History
from agentlightning.gateway.spooling import RecordingStats

_WINDOW_S = 5.0


class GatewayStats(TypedDict):
    """A snapshot. Counts are since the start of the gateway."""

    calls: int
    """Calls answered, well or not."""
    errors: int
    errors_by_reason: dict[str, int]
    in_flight: int
    waiting: int
    """Calls held by a pause or queueing for a free place."""
    input_tokens: int
    output_tokens: int
    tokens_per_s: float
    """Output tokens, over the last seconds."""
    recorded: int
    """Choices written to the store."""
    unattributed: int
    """Answered calls on URLs that name no rollout: passed through, not recorded."""
    not_trainable: dict[str, int]
    """Recorded choices that weights cannot be trained on, by reason."""
    histories: dict[History, int]
    """Answered calls with token ids, by how they relate to the calls before them: `start`, `continues`, and the breaks
    `history_changed`, `retokenized`, `prompt_shorter`."""
    history_breaks: int
    """Sum of the breaks."""
    recording: RecordingStats
    cache: CacheStats | None
    """`None` when there is no response cache."""
    targets: dict[str, str]
    """Circuit breakers by target: `closed`, `open` or `half_open`."""
    paused: bool


def status_of(stats: GatewayStats) -> Literal["ok", "degraded", "paused"]:
    """How a gateway with these counters is: `degraded` while a breaker is open or records go to the spool."""
    if stats["paused"]:
        return "paused"
    is_open = "open" in stats["targets"].values()
    return "degraded" if is_open or stats["recording"]["to"] == "spool" else "ok"


class Meter:
    """Counts calls and tokens."""

    def __init__(self) -> None:
        self.calls = 0
        self.in_flight = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.recorded = 0
        self.unattributed = 0
        self.errors: Counter[str] = Counter()
        self.not_trainable: Counter[str] = Counter()
        self.histories: Counter[History] = Counter()
        self._recent: deque[tuple[float, int]] = deque()

    def count_answer(self, capture: Capture, *, is_attributed: bool) -> None:
        """Count an answered call."""
        self.input_tokens += capture.prompt_tokens or 0
        self.output_tokens += capture.completion_tokens or 0
        if capture.completion_tokens:
            self._recent.append((time.monotonic(), capture.completion_tokens))
            self._trim()
        if not is_attributed:
            self.unattributed += 1
            return
        self.recorded += len(capture.choices)
        for choice in capture.choices:
            if choice.not_trainable_because is not None:
                self.not_trainable[choice.not_trainable_because] += 1

    def _trim(self) -> None:
        oldest = time.monotonic() - _WINDOW_S
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()

    def snapshot(
        self,
        *,
        waiting: int,
        paused: bool,
        recording: RecordingStats,
        cache: CacheStats | None,
        targets: dict[str, str],
    ) -> GatewayStats:
        """The counters as they are now."""
        self._trim()
        return GatewayStats(
            calls=self.calls,
            errors=self.errors.total(),
            errors_by_reason=dict(self.errors),
            in_flight=self.in_flight,
            waiting=waiting,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            tokens_per_s=sum(tokens for _, tokens in self._recent) / _WINDOW_S,
            recorded=self.recorded,
            unattributed=self.unattributed,
            not_trainable=dict(self.not_trainable),
            histories=dict(self.histories),
            history_breaks=sum(count for history, count in self.histories.items() if history in BREAKS),
            recording=recording,
            cache=cache,
            targets=targets,
            paused=paused,
        )
