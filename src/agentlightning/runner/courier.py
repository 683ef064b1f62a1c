"""Takes spans and outcomes of attempts to the store, in that order; says which errors mean "later". Knows no queue.

Repeating a delivery is harmless: the store knows span ids, and an attempt that has ended stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from agentlightning.kit.errors import (
    AgentLightningError,
    ForbiddenError,
    StorageError,
    UnauthorizedError,
    UpstreamError,
)
from agentlightning.schemas import RolloutConfig, Span
from agentlightning.store.base import UNSET, AttemptUpdate, LightningStore

logger = logging.getLogger(__name__)

AWAY: tuple[type[Exception], ...] = (UpstreamError, StorageError, OSError)
"""The store cannot be reached, or cannot write just now: the same delivery may succeed later."""
_NOT_ABOUT_THE_DATA: tuple[type[Exception], ...] = (*AWAY, UnauthorizedError, ForbiddenError)


class Report(msgspec.Struct, omit_defaults=True):
    """How an attempt ended."""

    update: AttemptUpdate
    config: RolloutConfig | None = None
    """New configuration of the rollout, to be set before the update."""


class Courier:
    """Delivers to one store.

    Args:
        store: Where to.
    """

    def __init__(self, store: LightningStore) -> None:
        self._store = store
        self.rejected = 0
        """What the store refused, such as a late success of an attempt it had given up."""

    async def deliver(self, spans: Sequence[Span], reports: Sequence[Report]) -> None:
        """Send; what the store refuses for its content is logged and counted, and takes nothing else with it.

        Raises:
            StorageError: (or another of `AWAY`) Not now; nothing or a part has arrived.
            UnauthorizedError: (or `ForbiddenError`) The store wants another token.
        """
        if spans:
            await self._send_spans(spans)
        for report in reports:
            if report.config is not None:
                await self._send_config(report.update.rollout_id, report.config)
        if reports:
            await self._send_updates([report.update for report in reports])

    async def _send_spans(self, spans: Sequence[Span]) -> None:
        try:
            await self._store.add_many_spans(spans)
        except _NOT_ABOUT_THE_DATA:
            raise
        except AgentLightningError as error:
            if len(spans) == 1:
                self._reject(f"span {spans[0].name!r} ({error.message})", spans[0].rollout_id)
                return
            for span in spans:  # all or none went in: find the bad one
                await self._send_spans([span])

    async def _send_config(self, rollout_id: str, config: RolloutConfig) -> None:
        try:
            await self._store.update_rollout(rollout_id, config=config)
        except _NOT_ABOUT_THE_DATA:
            raise
        except AgentLightningError as error:
            self._reject(f"retry ({error.message})", rollout_id)

    async def _send_updates(self, updates: Sequence[AttemptUpdate]) -> None:
        try:
            await self._store.update_many_attempts(updates)
        except _NOT_ABOUT_THE_DATA:
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
        except _NOT_ABOUT_THE_DATA:
            raise
        except AgentLightningError as refusal:
            logger.warning("The error of attempt %s is lost: %s", update.attempt_id, refusal)

    def _reject(self, what: str, rollout_id: str) -> None:
        self.rejected += 1
        logger.warning("The store refused the %s of rollout %s.", what, rollout_id)
