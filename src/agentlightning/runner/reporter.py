"""Reports to the store, many attempts at a time, and holds on to what it says while the store is away.

While one delivery is on its way the next one gathers. Spans go before the outcome of their attempt. What a store does
not take within a second goes to the spool as well, and from there to the store, in order, when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentlightning.agent.scope import RolloutScope
from agentlightning.kit.errors import AgentLightningError, BusyError, StorageError
from agentlightning.runner.courier import AWAY, Courier, Report
from agentlightning.runner.spool import Spool, deliver_leftovers
from agentlightning.schemas import RolloutConfig, Span
from agentlightning.store.base import AttemptUpdate, LightningStore

logger = logging.getLogger(__name__)

BATCH_INTERVAL_S = 0.015
"""How long outcomes gather before they are sent."""
LIVE_INTERVAL_S = 0.5
"""How often the spans of running attempts are sent when nothing else is."""
SPOOL_AFTER_S = 1.0
"""How long a delivery may take before it is spooled."""
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
        spool: Keeps on disk what the store does not take; without one it is kept in memory.
    """

    def __init__(self, store: LightningStore, *, patience_s: float = 60.0, spool: Spool | None = None) -> None:
        self._store = store
        self._courier = Courier(store)
        self._patience_s = patience_s
        self._spool = spool
        self._scopes: dict[int, RolloutScope] = {}
        self._outcomes: list[Outcome] = []
        self._spooled: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._backlog: asyncio.Task[None] | None = None
        self._leftovers: asyncio.Task[None] | None = None
        self.failed: AgentLightningError | None = None
        """Set when the store stayed unreachable; nothing is sent any more."""

    @property
    def rejected(self) -> int:
        """Updates the store refused, such as a late success of an attempt it had given up."""
        return self._courier.rejected

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="agentlightning-reporter")
        if self._spool is not None:
            self._leftovers = asyncio.create_task(self._deliver_leftovers(self._spool))

    def track(self, scope: RolloutScope) -> None:
        """Send the spans of a running attempt from now on."""
        self._scopes[id(scope)] = scope

    def held(self) -> list[tuple[str, str]]:
        """Rollout and attempt ids of outcomes that are on disk and not with the store yet."""
        return [(rollout_id, attempt_id) for attempt_id, rollout_id in self._spooled.items()]

    async def finish(self, outcome: Outcome) -> None:
        """Send an attempt's last spans and its outcome; returns once they are safe, with the store or on disk.

        Raises:
            StorageError: The store stayed unreachable.
        """
        self._scopes.pop(id(outcome.scope), None)
        self._outcomes.append(outcome)
        self._wake.set()
        await outcome.sent.wait()
        if self.failed is not None:
            raise self.failed

    async def close(self, *, within_s: float | None = None) -> None:
        """Send what is left and end.

        Args:
            within_s: How long what is on disk may take; the rest stays there for the next runner. By default as long
                as the patience lasts.
        """
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        tasks = {task for task in (self._backlog, self._leftovers) if task is not None}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._spool is not None:
            if len(self._spool):
                logger.warning("%d reports stay in %s for the next runner there.", len(self._spool), self._spool.path)
            self._spool.close()

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
            if self.failed is None and (spans or outcomes):
                await self._deliver(spans, [Report(outcome.update, outcome.config) for outcome in outcomes])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to hear of it
            self._fail(error)
        finally:
            for outcome in outcomes:
                outcome.sent.set()

    def _fail(self, error: Exception) -> None:
        if isinstance(error, AgentLightningError):
            self.failed = error
            logger.error("The runner gives up reporting: %s", error)
        else:
            # A reporter that dies silently would leave every later attempt waiting for its outcome to be sent.
            self.failed = AgentLightningError(f"Reporting to the store failed: {type(error).__name__}: {error}")
            logger.error("The runner gives up reporting.", exc_info=error)

    async def _deliver(self, spans: Sequence[Span], reports: Sequence[Report]) -> None:
        if self._spool is None:
            await self._patiently(spans, reports)
            return
        if self._backlog is not None:
            if self._keep(self._spool, spans, reports):
                return
            await asyncio.wait({self._backlog})  # nowhere to put it: it has to wait for its turn
            if self.failed is not None:
                return
        sending = asyncio.create_task(self._courier.deliver(spans, reports))
        try:
            await asyncio.wait({sending}, timeout=SPOOL_AFTER_S)
            if sending.done() and not isinstance(sending.exception(), AWAY):
                return sending.result()
            if self._keep(self._spool, spans, reports):
                self._backlog = asyncio.create_task(self._work_off(self._spool, sending))
                return
            with contextlib.suppress(*AWAY):  # then it is sent again, with patience
                return await sending
            await self._patiently(spans, reports)
        except asyncio.CancelledError:
            sending.cancel()
            raise

    def _keep(self, spool: Spool, spans: Sequence[Span], reports: Sequence[Report]) -> bool:
        """Write to the spool; whether that was possible."""
        try:
            spool.append(spans, reports)
        except (StorageError, BusyError) as error:
            logger.warning("The store is away and its spool of no use, so reports wait in memory: %s", error)
            return False
        if not self._spooled:
            logger.warning("The store does not take reports; they are kept in %s meanwhile.", spool.path)
        self._spooled.update({report.update.attempt_id: report.update.rollout_id for report in reports})
        return True

    async def _work_off(self, spool: Spool, sending: asyncio.Task[None]) -> None:
        """Empty the spool; `sending` is the delivery of its first entry, which may have arrived meanwhile."""
        try:
            await asyncio.gather(sending, return_exceptions=True)
            while (backlog := spool.first()) is not None:
                await self._patiently(backlog.spans, backlog.reports)
                spool.remove(backlog)
                for report in backlog.reports:
                    self._spooled.pop(report.update.attempt_id, None)
            logger.warning("The store takes reports again.")
        except Exception as error:  # noqa: BLE001 - the reporter tells everybody
            self._fail(error)
        finally:
            sending.cancel()
            self._backlog = None

    async def _deliver_leftovers(self, spool: Spool) -> None:
        """What earlier runners have left goes to the store; while it is away that can wait, too."""
        started = time.monotonic()
        while True:
            try:
                await deliver_leftovers(self._store, spool.path.parent)
            except AWAY as error:
                if time.monotonic() - started > self._patience_s:
                    return
                logger.info("Reports of earlier runners have to wait: %s", error)
                await asyncio.sleep(_LONGEST_PAUSE_S)
            except AgentLightningError as error:
                logger.warning("Reports of earlier runners stay in %s: %s", spool.path.parent, error)
                return
            else:
                return

    async def _patiently(self, spans: Sequence[Span], reports: Sequence[Report]) -> None:
        """Deliver, and try again while the store is unreachable.

        Raises:
            StorageError: It stayed so for longer than the patience lasts.
        """
        started = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await self._courier.deliver(spans, reports)
            except AWAY as error:
                if time.monotonic() - started > self._patience_s:
                    if self._spool is None:
                        hint = "Check that the coordinator is running; unreported rollouts are queued again by it."
                    else:
                        hint = f"Reports are kept in {self._spool.path.parent}; the next runner there delivers them."
                    raise StorageError(
                        f"The store could not be reached for {self._patience_s:.0f} s: {error}", hint=hint
                    ) from error
                await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # not all runners in the same moment
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
