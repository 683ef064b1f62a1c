"""The workers of a process: they claim tasks, run them, keep their leases, and look after what others left behind.

Room for tasks grows with the queue and shrinks when it is empty. Whoever is killed loses its leases, and its tasks are
run again elsewhere. Knows no agents and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, MissingExtraError, StorageError
from agentlightning.kit.ids import new_id
from agentlightning.platform.columns import now
from agentlightning.platform.database import Database, DatabaseError, is_unavailable
from agentlightning.platform.masking import Masking
from agentlightning.platform.metrics import Metrics
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.tasks import repository
from agentlightning.platform.tasks.models import COMPLETED, FAILED, Task
from agentlightning.platform.tasks.wakes import Wakes

log = logging.getLogger(__name__)


class TaskTimeoutError(AgentLightningError):
    """An attempt took longer than it may."""

    code = "TASK_TIMEOUT"
    status = 504


class ResultUnfitError(AgentLightningError):
    """The database does not take what the agent answered."""

    code = "RESULT_UNFIT"
    status = 422


_random = random.Random()
"""Its own: who seeds the global one wants the same numbers again."""
_BACKOFF_S = 1.0
_BACKOFF_MAX_S = 60.0
_IDLE_S = 30.0
_SWEEP_S = 5.0
_EVENTS_KEPT = 10_000
_AWAY_S = 1.0
_CALM_S = 0.1
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class Runs(Protocol):
    """Runs one attempt."""

    async def run(self, task: Task) -> dict[str, Any]:
        """The result; raises what went wrong."""
        ...

    async def cancelled(self, task: Task) -> None:
        """A task was cancelled while it ran."""
        ...

    async def told(self, task: Task, result: dict[str, Any]) -> None:
        """A result was kept."""
        ...


class TaskPool:
    """One for each process.

    Attributes:
        name: Of this process' leases.
        size: Tasks that there is room for now.
    """

    def __init__(
        self,
        settings: PlatformSettings,
        database: Database,
        wakes: Wakes,
        runs: Runs,
        metrics: Metrics,
        masking: Masking,
    ) -> None:
        self._settings = settings
        self._masking = masking
        self._database = database
        self._wakes = wakes
        self._runs = runs
        self._metrics = metrics
        self._running: dict[str, asyncio.Task[None]] = {}
        self._settling: set[str] = set()
        self._leases = itertools.count(1)
        self._loops: list[asyncio.Task[None]] = []
        self._room = asyncio.Event()
        self._busy_at = time.monotonic()
        self.name = new_id("worker")
        self.size = min(settings.task_workers_min, settings.task_workers_max)

    @property
    def running(self) -> int:
        """Tasks at work here."""
        return len(self._running)

    def start(self) -> None:
        """Begin to claim."""
        loops: list[tuple[Callable[[], Coroutine[Any, Any, None]], str]] = [(self._sweep, "sweep")]
        if self._settings.task_workers_max:
            loops += [(self._claim, "claim"), (self._renew, "renew")]
        self._loops = [asyncio.create_task(self._steadily(loop), name=f"tasks:{name}") for loop, name in loops]

    async def stop(self, grace_s: float = 5.0) -> None:
        """Claim no more; what still runs after the grace is left to others."""
        running = list(self._running.values())
        claiming = [loop for loop in self._loops if loop.get_name() != "tasks:renew"]
        await cancelled(*claiming)
        if running:
            await asyncio.wait(running, timeout=grace_s)
        await cancelled(*[*self._running.values(), *self._loops])
        with contextlib.suppress(SQLAlchemyError, OSError):  # then the leases run out
            async with self._database.write() as session:
                await repository.hand_back(session, self.name)
                await repository.notify(session)
            await self._wakes.tell()

    # -- claiming --------------------------------------

    async def _claim(self) -> None:
        with self._wakes.ear() as event:
            self._room = event
            while True:
                event.clear()
                wait_s = await self._fill()
                await self._wakes.wait(event, wait_s)

    async def _fill(self) -> float | None:
        """Claim what there is room for; seconds after which there may be more."""
        async with self._database.read() as session:
            queued = await repository.queue_length(session)
            soon = await repository.next_start(session)
        self._resize(queued)
        while queued and self.running < self.size:
            lease = f"{self.name}:{next(self._leases)}"
            async with self._database.write() as session:
                task = await repository.claim(
                    session, lease, self._settings.task_lease_s, self._settings.tasks_per_agent
                )
                if task is None:
                    break  # others were faster, or the agents have enough to do
                agent = await _name(session, task)
                await repository.note_task(session, task, agent, attempt=task.attempts)
            self._begin(task, agent, lease)
            await self._wakes.tell()
        self._metrics.queued_tasks.set(queued)
        return None if soon is None else max(0.0, (soon - now()).total_seconds())

    def _resize(self, queued: int) -> None:
        settings = self._settings
        wanted = self.running + queued
        if wanted >= self.size or self.running:
            self._busy_at = time.monotonic()
        if wanted > self.size:
            self.size = min(wanted, settings.task_workers_max)
        elif time.monotonic() - self._busy_at > _IDLE_S:
            self.size = min(settings.task_workers_min, settings.task_workers_max)
        self._metrics.task_workers.set(self.size)

    def _begin(self, task: Task, agent: str, lease: str) -> None:
        worker = asyncio.create_task(self._work(task, agent, lease), name=f"task:{task.id}")
        self._running[lease] = worker
        self._metrics.running_tasks.set(self.running)

        def ended(_: asyncio.Task[None]) -> None:
            self._running.pop(lease, None)
            self._settling.discard(lease)
            self._metrics.running_tasks.set(self.running)
            self._room.set()

        worker.add_done_callback(ended)

    # -- one task --------------------------------------

    async def _work(self, task: Task, agent: str, lease: str) -> None:
        started = time.monotonic()
        error: BaseException | None = None
        result: dict[str, Any] | None = None
        limit = asyncio.timeout(task.timeout_s)
        try:
            async with limit:
                result = await self._runs.run(task)
        except asyncio.CancelledError:
            with contextlib.suppress(AgentLightningError):
                await self._runs.cancelled(task)
            raise
        except TimeoutError as caught:
            error = TaskTimeoutError(f"The task took longer than {task.timeout_s:g} s.") if limit.expired() else caught
        except Exception as caught:  # noqa: BLE001 - every failure becomes the task's
            error = caught
        self._settling.add(lease)
        elapsed_s = time.monotonic() - started
        ending = self._keep(task, agent, result, error, elapsed_s)
        try:
            await self._persistently(ending, task)
        except SQLAlchemyError as refused:  # the database takes no such result
            log.error("The result of task %s cannot be kept", task.id, exc_info=refused)
            error = ResultUnfitError("The task's result cannot be kept.", hint="Ask for plain text.")
            await self._persistently(
                lambda: self._end(task, agent, FAILED, elapsed_s, error=self._described(error)), task
            )

    async def _persistently(self, work: Callable[[], Awaitable[None]], task: Task) -> None:
        """Once it can be done: a database that is away loses no result, however long; the lease says if it counts.

        Raises:
            SQLAlchemyError: The database is there, and refuses.
        """
        while True:
            try:
                await work()
            except (SQLAlchemyError, OSError) as error:
                if isinstance(error, SQLAlchemyError) and not is_unavailable(error):
                    raise
                if now() > task.deadline_at:
                    log.error("How task %s ended could not be kept (%s)", task.id, type(error).__name__)
                    return
                await asyncio.sleep(_AWAY_S)
            else:
                return

    def _keep(
        self, task: Task, agent: str, result: dict[str, Any] | None, error: BaseException | None, elapsed_s: float
    ) -> Callable[[], Awaitable[None]]:
        async def keep() -> None:
            if error is None:
                assert result is not None
                await self._end(task, agent, COMPLETED, elapsed_s, result=result)
            elif task.attempts < task.max_attempts and is_passing(error):
                await self._again(task, agent, error)
            else:
                await self._end(task, agent, FAILED, elapsed_s, error=self._described(error))

        return keep

    async def _end(self, task: Task, agent: str, status: str, elapsed_s: float, **values: Any) -> None:
        kept = repository.ended_values(elapsed_s=elapsed_s, **values)
        async with self._database.write() as session:
            ended = await repository.end(session, task.id, task.leased_by, status, **kept)
            if ended is not None:
                await repository.note_task(session, ended, agent)
        if ended is None:
            return  # somebody else has it by now, or it was cancelled
        await self._wakes.tell()
        self._metrics.tasks.labels(agent, status).inc()
        self._metrics.task_seconds.labels(agent).observe(elapsed_s)
        if status == COMPLETED:
            await self._runs.told(ended, values["result"])

    async def _again(self, task: Task, agent: str, error: BaseException) -> None:
        delay_s = min(_BACKOFF_S * 2 ** (task.attempts - 1), _BACKOFF_MAX_S) * _random.uniform(0.8, 1.2)
        values = repository.ended_values(error=self._described(error))
        async with self._database.write() as session:
            if await repository.put_back(session, task.id, task.leased_by, delay_s=delay_s, **values):
                code = values["error_code"]
                await repository.note_task(session, task, agent, "task_retrying", attempt=task.attempts, code=code)
        await self._wakes.tell()

    def _described(self, error: BaseException) -> dict[str, str]:
        return {name: self._masking.text(said) for name, said in described(error).items()}

    # -- leases ----------------------------------------

    async def _renew(self) -> None:
        """Keep the leases; stop what is no longer ours: cancelled, restarted, or taken over."""
        pause_s = self._settings.task_lease_s / 3
        renewed_at = 0.0
        with self._wakes.ear() as event:
            while True:
                event.clear()
                mine = dict(self._running)
                if mine and time.monotonic() - renewed_at >= 0.9 * pause_s:
                    async with self._database.write() as session:
                        held = await repository.renew(session, mine, self._settings.task_lease_s)
                    renewed_at = time.monotonic()
                elif mine:
                    async with self._database.read() as session:
                        held = await repository.held(session, mine)
                else:
                    held = set[str]()
                for lease in mine.keys() - held - self._settling:
                    mine[lease].cancel()
                await asyncio.sleep(_CALM_S)
                await self._wakes.wait(event, pause_s)

    # -- the others' -----------------------------------

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S * _random.uniform(0.5, 1.0))
            if time.monotonic() - self._database.outage.seen_at < self._settings.task_lease_s:
                continue  # nobody could renew a lease; those who live do so first
            async with self._database.read() as session:
                found = await repository.troubled(session)
                types = await repository.active_types(session)
            for kind, count in types.items():
                self._metrics.active_agents.labels(kind).set(count)
            if found:
                await self._tidy()

    async def _tidy(self) -> None:
        """Tasks of the dead are run again; what is past its deadline fails."""
        async with self._database.write() as session:
            for task in await repository.lost(session):
                if task.attempts < task.max_attempts:
                    task.status, task.leased_by, task.lease_until, task.not_before = "pending", None, None, now()
                    await session.flush()
                    name = await _name(session, task)
                    await repository.note_task(session, task, name, "task_retrying", code="WORKER_LOST")
                    continue
                await self._fail(session, task.id, "WORKER_LOST", "The processes that ran this task died.")
            for number in await repository.overdue(session):
                await self._fail(session, number, "DEADLINE_EXCEEDED", "The task was not done by its deadline.")
            kept = timedelta(seconds=self._settings.events_kept_s)
            await repository.forget_events(session, now() - kept, _EVENTS_KEPT)
        await self._wakes.tell()

    async def _fail(self, session: Any, number: int, code: str, message: str) -> None:
        error = {"code": code, "message": message, "hint": "Assign it again."}
        ended = await repository.end(session, number, None, FAILED, **repository.ended_values(error=error))
        if ended is not None:
            await repository.note_task(session, ended, await _name(session, ended))

    async def _steadily(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A database that is away for a while ends none of them."""
        while True:
            try:
                await loop()
            except (SQLAlchemyError, OSError) as error:
                log.warning("Tasks wait for the database (%s)", type(error).__name__)
            except Exception:  # a loop that ended would strand every later task; what went wrong is logged whole
                log.exception("Tasks: going on after an error")
            await asyncio.sleep(_AWAY_S)


def is_passing(error: BaseException) -> bool:
    """Whether it may work another time: outages, limits of servers, connections. Not: mistakes, time limits."""
    if isinstance(error, (TaskTimeoutError, MissingExtraError)):
        return False
    if isinstance(error, AgentLightningError):
        return isinstance(error, (DatabaseError, StorageError)) or error.status in _RETRIED - {409, 500}
    status = getattr(error, "status_code", None)
    if status is not None:  # a model's answer
        return status in _RETRIED
    return isinstance(error, (SQLAlchemyError, OSError)) or _is_of(error, "openai", "httpx")


def described(error: BaseException) -> dict[str, str]:
    """What the task's owner is told; what is unexpected is logged and says nothing of the inside."""
    if isinstance(error, AgentLightningError):
        return {"code": error.code, "message": error.message[:2_000], "hint": error.hint[:2_000]}
    if _is_of(error, "openai"):
        return {
            "code": "MODEL_CALL_FAILED",
            "message": f"The model's call failed: {str(error)[:1_000]}",
            "hint": "Look at the trace of the task, and at GET /models.",
        }
    log.error("A task failed unexpectedly", exc_info=error)
    return {"code": "INTERNAL_ERROR", "message": "The task failed unexpectedly.", "hint": "Tell us its number."}


def _is_of(error: BaseException, *packages: str) -> bool:
    """Whether it is a package's error, or made of one."""
    return any(kind.__module__.partition(".")[0] in packages for kind in type(error).__mro__)


async def _name(session: Any, task: Task) -> str:
    return (await repository.agent_names(session, [task.agent_id])).get(task.agent_id, "")
