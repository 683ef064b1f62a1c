"""Sends spans and outcomes of attempts to the store, many at a time.

While one batch is on its way the next one gathers. Spans go before the outcome of their attempt.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentlightning.agent.scope import RolloutScope
from agentlightning.kit.errors import AgentLightningError, StorageError, UpstreamError
from agentlightning.schemas import RolloutConfig, Span
from agentlightning.store.base import UNSET, AttemptUpdate, LightningStore

logger = logging.getLogger(__name__)

BATCH_INTERVAL_S = 0.015
"""How long outcomes gather before they are sent."""
LIVE_INTERVAL_S = 0.5
"""How often the spans of running attempts are sent when nothing else is."""
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


@dataclass
class Outcome:
    """How an attempt ended."""

    scope: RolloutScope
    update: AttemptUpdate
    config: RolloutConfig | None = None
    """New configuration of the rollout, to be set before the update."""
    sent: asyncio.Event = field(default_factory=asyncio.Event)


class Reporter:
    """Background task that writes to the store.

    Args:
        store: Where to.
        patience_s: How long an unreachable store is tried before the runner gives up.
    """

    def __init__(self, store: LightningStore, *, patience_s: float = 60.0) -> None:
        self._store = store
        self._patience_s = patience_s
        self._scopes: dict[int, RolloutScope] = {}
        self._outcomes: list[Outcome] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.rejected = 0
        """Updates the store refused, such as a late success of an attempt it had given up."""
        self.failed: AgentLightningError | None = None
        """Set when the store stayed unreachable; nothing is sent any more."""

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="agentlightning-reporter")

    def track(self, scope: RolloutScope) -> None:
        """Send the spans of a running attempt from now on."""
        self._scopes[id(scope)] = scope

    async def finish(self, outcome: Outcome) -> None:
        """Send an attempt's last spans and its outcome; returns once the store has them.

        Raises:
            StorageError: The store stayed unreachable.
        """
        self._scopes.pop(id(outcome.scope), None)
        self._outcomes.append(outcome)
        self._wake.set()
        await outcome.sent.wait()
        if self.failed is not None:
            raise self.failed

    async def close(self) -> None:
        """Send what is left and end."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), LIVE_INTERVAL_S)
            except TimeoutError:
                pass  # time for the spans of those that are running
            else:
                if not self._closing:
                    await asyncio.sleep(BATCH_INTERVAL_S)
            self._wake.clear()
            closing = self._closing
            await self._flush()
            if closing and not self._outcomes:
                return

    async def _flush(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        scopes = [*self._scopes.values(), *(outcome.scope for outcome in outcomes)]
        spans = [span for scope in scopes for span in scope.drain()]
        try:
            if self.failed is None:
                await self._patiently(spans, outcomes)
        except StorageError as error:
            self.failed = error
            logger.error("The runner gives up reporting: %s", error)
        except Exception as error:
            # A reporter that dies silently would leave every later attempt waiting for its outcome to be sent.
            self.failed = AgentLightningError(f"Reporting to the store failed: {type(error).__name__}: {error}")
            logger.exception("The runner gives up reporting.")
        finally:
            for outcome in outcomes:
                outcome.sent.set()

    async def _patiently(self, spans: list[Span], outcomes: list[Outcome]) -> None:
        """Send, and try again while the store is unreachable. Repeating is harmless: the store knows span ids."""
        started = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._send(spans, outcomes)
            except (UpstreamError, StorageError, OSError) as error:
                if time.monotonic() - started > self._patience_s:
                    raise StorageError(
                        f"The store could not be reached for {self._patience_s:.0f} s: {error}",
                        hint="Check that the coordinator is running; unreported rollouts are queued again by it.",
                    ) from error
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                return

    async def _send(self, spans: list[Span], outcomes: list[Outcome]) -> None:
        if spans:
            await self._send_spans(spans)
        for outcome in outcomes:
            if outcome.config is not None:
                await self._store.update_rollout(outcome.update.rollout_id, config=outcome.config)
        if outcomes:
            await self._send_updates([outcome.update for outcome in outcomes])

    async def _send_spans(self, spans: list[Span]) -> None:
        try:
            await self._store.add_many_spans(spans)
        except (UpstreamError, StorageError):
            raise
        except AgentLightningError:
            if len(spans) == 1:
                self._reject("span", spans[0].rollout_id)
                return
            for span in spans:  # all or none went in: find the bad one
                await self._send_spans([span])

    async def _send_updates(self, updates: Sequence[AttemptUpdate]) -> None:
        try:
            await self._store.update_many_attempts(updates)
        except (UpstreamError, StorageError):
            raise
        except AgentLightningError as error:
            if len(updates) == 1:
                await self._after_refusal(updates[0], error)
                return
            for update in updates:
                await self._send_updates([update])

    async def _after_refusal(self, update: AttemptUpdate, error: AgentLightningError) -> None:
        self._reject(f"status {update.status} ({error.message})", update.rollout_id)
        if update.metadata is UNSET:
            return
        # The store had ended the attempt already; the cause is worth keeping all the same.
        cause = AttemptUpdate(rollout_id=update.rollout_id, attempt_id=update.attempt_id, metadata=update.metadata)
        try:
            await self._store.update_many_attempts([cause])
        except (UpstreamError, StorageError):
            raise
        except AgentLightningError as refusal:
            logger.warning("The error of attempt %s is lost: %s", update.attempt_id, refusal)

    def _reject(self, what: str, rollout_id: str) -> None:
        self.rejected += 1
        logger.warning("The store refused the %s of rollout %s.", what, rollout_id)
