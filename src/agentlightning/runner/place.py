"""One place in a pool: a runner, and its successors. Says when one is replaced; knows no processes and no clusters."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError
from agentlightning.runner.failure import Failure, RunnerCrashedError
from agentlightning.runner.policy import FailurePolicy
from agentlightning.runner.recovery import attempts_of, settle
from agentlightning.store.base import LightningStore

logger = logging.getLogger(__name__)

STOP_MARGIN_S = 5.0
"""How much longer than agreed a runner may take to end."""
_RESTART_WINDOW_S = 300.0
_SETTLE_TIMEOUT_S = 60.0


class RunnerStartError(AgentLightningError):
    """A runner could not begin its work, most often because the agent's module does not import."""

    code = "RUNNER_NOT_STARTED"


class KilledAtStartError(RunnerStartError):
    """A runner died before it was ready and said nothing of the agent: the next one may be luckier."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the places of a pool have in common."""

    policy: FailurePolicy
    store: Callable[[], LightningStore]
    """The store, to settle what a dead runner leaves."""
    gave_up: Callable[[AgentLightningError], None]
    """Told when a runner is not replaced any more."""
    max_restarts: int
    start_timeout_s: float
    drain_timeout_s: float


class Place(ABC):
    """Keeps a runner running.

    Args:
        index: Number of the place.
        terms: What all places share.
    """

    def __init__(self, index: int, terms: Terms) -> None:
        self.index = index
        self.name = ""
        """Of the present runner, as the store knows it."""
        self.is_over = False
        """It runs no more, and will not."""
        self.restarts = 0
        """Runners that died and were to be replaced."""
        self._terms = terms
        self._stopping = False
        self._starting: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._deaths: deque[float] = deque()
        self._suspects = 0
        """Rollouts that were lost together: the next runner has so many, a few at a time, to see whose doing it was."""
        self._width = 1

    @abstractmethod
    async def _launch(self) -> None:
        """Start a runner and wait until it is ready.

        Raises:
            RunnerStartError: It could not begin.
        """

    @abstractmethod
    async def _end(self) -> RunnerCrashedError | Literal["finished", "next"]:
        """Wait for the runner's end: it died, the place has done its work, or the next one takes over."""

    @abstractmethod
    async def _rescue(self, store: LightningStore) -> None:
        """Deliver what the dead runner had finished."""

    def _cause(self, attempt_id: str, error: RunnerCrashedError) -> AgentLightningError:
        """Why the attempt ended when its runner died."""
        return error

    async def start(self) -> None:
        """Start the first runner; returns when it is ready.

        Raises:
            RunnerStartError: It could not begin.
        """
        # A task of its own, which `stop` can end: whoever waits for several of these leaves when one fails.
        self._starting = asyncio.create_task(self._launch())
        await self._starting

    def watch(self) -> None:
        """From now on, replace the runner when it dies."""
        self._watcher = asyncio.create_task(self._watch())

    async def ended(self) -> None:
        """Wait until it has ended for good."""
        if self._watcher is not None:
            await asyncio.shield(self._watcher)

    async def _watch(self) -> None:
        while True:
            end = await self._end()
            if self._stopping or end == "finished":
                self.is_over = True
                return
            if end != "next":
                is_replaced = self._may_restart()
                self.restarts += is_replaced
                await self._settle(end)
                if self._stopping:
                    return
                if not is_replaced:
                    self._give_up(end)
                    return
                logger.warning("%s It is replaced.", end)
            if not await self._relaunch():
                return

    async def _relaunch(self) -> bool:
        """Start the next runner; false when this place is given up, or over."""
        while not self._stopping:
            self._starting = asyncio.create_task(self._launch_in_time())
            await asyncio.wait({self._starting})
            if self._starting.cancelled():  # by `stop`
                return False
            failed = self._starting.exception()
            if failed is None:
                return True
            if not isinstance(failed, AgentLightningError | OSError):
                raise failed
            if self._stopping:
                return False
            if not (isinstance(failed, KilledAtStartError) and self._may_restart()):
                self._give_up(RunnerCrashedError(f"A runner died and could not be replaced: {failed}"))
                return False
            logger.warning("%s It is started again.", failed)
        return False

    async def _launch_in_time(self) -> None:
        async with asyncio.timeout(self._terms.start_timeout_s):
            await self._launch()

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > _RESTART_WINDOW_S:
            self._deaths.popleft()
        return len(self._deaths) <= self._terms.max_restarts

    def _give_up(self, error: AgentLightningError) -> None:
        self.is_over = True
        self._terms.gave_up(error)

    async def _settle(self, error: RunnerCrashedError) -> None:
        """Give the store what the runner can no longer say."""
        store = self._terms.store()
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                await self._rescue(store)
                lost = await attempts_of(store, self.name)
                causes = [self._cause(rollout.attempt.attempt_id, error) for rollout in lost]
                if all(cause is error for cause in causes):  # nobody knows the culprit
                    self._suspect(len(lost))
                for rollout, cause in zip(lost, causes, strict=True):
                    may_be_innocent = cause is error and len(lost) > 1
                    action = await settle(
                        store, self._terms.policy, rollout, Failure.of(cause), may_be_innocent=may_be_innocent
                    )
                    logger.info("Rollout %s of the dead runner: %s.", rollout.rollout_id, action)
        except (AgentLightningError, OSError):  # OSError: TimeoutError too
            logger.exception("What runner %s left could not be settled; the store will notice its silence.", self.name)

    def _suspect(self, lost: int) -> None:
        if lost > 1:  # one alone is the culprit
            self._width = 1 if self._suspects else math.ceil(math.sqrt(lost))
            self._suspects = max(self._suspects, lost)

    def _carefully(self, options: dict[str, Any]) -> dict[str, Any]:
        """The runner's options, changed when it has suspects to run."""
        if not self._suspects:
            return options
        limits = [self._suspects] if options["max_rollouts"] is None else [self._suspects, options["max_rollouts"]]
        width = min(self._width, options["max_concurrency"])
        return {**options, "max_concurrency": width, "max_rollouts": min(limits)}

    def _cleared(self) -> bool:
        """Whether the runner that has ended well was there for suspects; they are none any more."""
        had_some, self._suspects = self._suspects > 0, 0
        return had_some

    async def stop(self) -> None:
        """End the runner, politely first, and whatever was about to replace it."""
        self._stopping = True
        if self._starting is not None:
            await cancelled(self._starting)
        await self._end_runner()
        if self._watcher is not None:  # it may have to settle what the runner has left
            await asyncio.wait({self._watcher}, timeout=STOP_MARGIN_S)
            await cancelled(self._watcher)

    @abstractmethod
    async def _end_runner(self) -> None:
        """End the present runner within the drain time and a margin."""
