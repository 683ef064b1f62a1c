"""The store on SQL: `SqlLightningStore` on a file or a server.

Verbs become operations (`store/ops`) run by `kit.db`; waiting is done here. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from agentlightning.config import Settings
from agentlightning.kit.collector import relax_collector, restore_collector
from agentlightning.kit.db import Merge, Session, Synchronous
from agentlightning.kit.errors import NotFoundError, StorageError
from agentlightning.schemas import AttemptedRollout, Rollout
from agentlightning.store import retention, verbs
from agentlightning.store.base import LightningStore, LightningStoreCapabilities
from agentlightning.store.databases import Hooks, open_database, parse_location
from agentlightning.store.ops import (
    events,
    feedback,
    lifecycle,
    lineages,
    payloads,
    preferences,
    queries,
    queue,
    resources,
    spans,
    watchdog,
    workers,
)
from agentlightning.store.progress import Progress, silent
from agentlightning.store.signals import Signals

R = TypeVar("R")
Operation = Callable[[Session, Any], Any]

_WRITES: dict[type, Operation] = {
    verbs.StartRollout: queue.start_rollout,
    verbs.EnqueueManyRollouts: queue.enqueue_many_rollouts,
    verbs.ReleaseClaim: queue.release_claim,
    verbs.StartAttempt: queue.start_attempt,
    verbs.UpdateRollout: lifecycle.update_rollout,
    verbs.UpdateAttempt: lifecycle.update_attempt,
    verbs.AddManySpans: spans.add_many_spans,
    verbs.GetManySpanSequenceIds: spans.get_many_span_sequence_ids,
    verbs.AddResources: resources.add_resources,
    verbs.UpdateResources: resources.update_resources,
    verbs.UpdateWorker: workers.update_worker,
    verbs.AddFeedback: feedback.add_feedback,
    verbs.AddPreference: preferences.add_preference,
    verbs.CreateLineageSession: lineages.create_lineage_session,
    verbs.AddToLineage: lineages.add_to_lineage,
    verbs.LockLineage: lineages.lock_lineage,
    verbs.UnlockLineage: lineages.unlock_lineage,
}
# Ranks: what is queued may be claimed (0) in the same transaction, and spans come before the end of their attempt.
_MERGED: dict[type, tuple[int, Callable[[Session, Any], Sequence[Any]]]] = {
    verbs.EnqueueManyRollouts: (-1, queue.merged_enqueue_many_rollouts),
    verbs.AddManySpans: (1, spans.merged_add_many_spans),
    verbs.UpdateAttempt: (2, lifecycle.merged_update_attempt),
}
_READS: dict[type, Operation] = {
    verbs.QueryRollouts: queries.query_rollouts,
    verbs.GetRolloutById: queries.get_rollout_by_id,
    verbs.QueryAttempts: queries.query_attempts,
    verbs.GetLatestAttempt: queries.get_latest_attempt,
    verbs.QuerySpans: queries.query_spans,
    verbs.QueryManySpans: spans.query_many_spans,
    verbs.QueryResources: queries.query_resources,
    verbs.GetResourcesById: resources.get_resources_by_id,
    verbs.GetLatestResources: resources.get_latest_resources,
    verbs.QueryWorkers: queries.query_workers,
    verbs.GetWorkerById: workers.get_worker_by_id,
    verbs.QueryFeedback: feedback.query_feedback,
    verbs.QueryPreferences: preferences.query_preferences,
    verbs.QueryLineageSessions: lineages.query_lineage_sessions,
    verbs.GetLineageSession: lineages.get_lineage_session,
    verbs.QueryLineageHistory: lineages.query_lineage_history,
    verbs.Statistics: queries.statistics,
}


_BRIEF = {
    verbs.GetRolloutById,
    verbs.GetLatestAttempt,
    verbs.GetResourcesById,
    verbs.GetLatestResources,
    verbs.GetWorkerById,
}
"""Reads of one thing by its id."""
_FINISHED = Merge(0, queries.merged_finished_rollouts)


class SqlLightningStore(LightningStore):
    """A durable store in one SQLite file or a PostgreSQL database, which several processes may share.

    Writes of all tasks are grouped into one transaction each time the writer thread comes round; no call returns
    before its write is committed. On PostgreSQL, calls wait up to half a minute for a server that is away. While a
    store is open, Python's cycle collector runs less often, unless somebody else has set it (`gc.set_threshold`).

    Args:
        path_or_url: The file, created when missing, as a path or a `sqlite:///` URL; or
            `postgresql://user:password@host:5432/database?schema=name`, whose schema (`agentlightning` when not given)
            is created when missing. PostgreSQL needs the extra `postgres`.
        synchronous: For files: `"normal"` survives the death of any process; `"full"` a power cut too, at one fsync per
            commit. PostgreSQL's own setting says what it survives; by default that includes a power cut.
        watchdog_interval_s: How often attempts are checked for time limits, seconds; claiming work checks as well.
        max_value_bytes: The largest input, metadata, span or resource taken, packed; by default `AGL_MAX_VALUE_BYTES`,
            256 MiB.

    Raises:
        StorageError: The file or server cannot be used; the message says why and what to do.
        ConfigError: The URL names another kind of database, or is malformed.
        MissingExtraError: PostgreSQL's driver is not installed.
    """

    def __init__(
        self,
        path_or_url: str | Path,
        synchronous: Synchronous = "normal",
        *,
        watchdog_interval_s: float = 1.0,
        max_value_bytes: int | None = None,
    ) -> None:
        self.location = parse_location(path_or_url)
        self._synchronous: Synchronous = synchronous
        self._watchdog_interval_s = watchdog_interval_s
        self._max_value_bytes = Settings().max_value_bytes if max_value_bytes is None else max_value_bytes
        self._open()

    def _open(self) -> None:
        self._started, self._opened = time.monotonic(), time.time()
        self._closed = False
        self._owner = os.getpid()
        self._signals = Signals()
        self._merges = {
            kind: Merge(rank, partial(_limited_merge, run, self._max_value_bytes))
            for kind, (rank, run) in _MERGED.items()
        }
        self._merged_claims = Merge(0, partial(queue.merged_dequeue_many_rollouts, since=self._opened))
        hooks = Hooks(
            publish=self._publish,
            before_commit=events.write,
            look_again=self._signals.wake_all,
            watching=self._signals.anyone_waiting,
            is_due=partial(watchdog.has_expired, since=self._opened),
            periodic=partial(watchdog.check_timeouts, since=self._opened),
            periodic_s=self._watchdog_interval_s,
        )
        self._database = open_database(self.location, hooks, self._synchronous)
        self._shared_queue = isinstance(self.location, str)
        relax_collector()  # each rollout makes a few hundred objects that reference counting frees
        self._restore_collector = weakref.finalize(self, restore_collector)

    @property
    def path(self) -> Path | None:
        """The file; `None` when the store is not in one."""
        return self.location if isinstance(self.location, Path) else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the same database."""
        options = {"watchdog_interval_s": self._watchdog_interval_s, "max_value_bytes": self._max_value_bytes}
        return partial(type(self), **options), (self.location, self._synchronous)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What this implementation can do."""
        return LightningStoreCapabilities(
            thread_safe=True, async_safe=True, zero_copy=self.location is not None, otlp_traces=False
        )

    async def check_timeouts(self) -> int:
        """Apply time limits now rather than at the next round of the watchdog; returns how many attempts ended."""
        return await self._database.write(partial(watchdog.check_timeouts, since=self._opened))

    async def collect_garbage(self, progress: Progress = silent) -> retention.CollectionReport:
        """Remove the payloads that nothing refers to any more; see `retention.collect_garbage`."""
        return await retention.collect_garbage(self._database, progress)

    async def prune(
        self,
        *,
        ended_before: float | None = None,
        keep_last: int | None = None,
        force: bool = False,
        dry_run: bool = False,
        progress: Progress = silent,
    ) -> retention.PruneReport:
        """Delete old rollouts that have ended, with all that belongs to them; see `retention.prune`."""
        return await retention.prune(
            self._database,
            ended_before=ended_before,
            keep_last=keep_last,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )

    async def close(self) -> None:
        """Finish pending writes and close the database; waiting calls raise `StorageError`.

        In a process that was forked from the one that opened it: nothing, since it is not the forked one's to close.
        """
        if os.getpid() != self._owner:
            return
        self._closed = True
        self._restore_collector()
        self._signals.wake_all()
        await self._database.close()

    async def execute(self, verb: verbs.Verb[R]) -> R:
        if os.getpid() != self._owner:  # the threads that would answer were not forked with it
            raise StorageError(
                f"This store was opened by process {self._owner}; {os.getpid()}, forked from it, cannot use it.",
                hint="Open it again here, or serve it with LightningStoreServer, which a forked process may use.",
            )
        kind = type(verb)
        write = _WRITES.get(kind)
        if write is not None:
            operation = partial(_limited, write, verb, self._max_value_bytes)
            return await self._database.write(operation, merge=self._merges.get(kind), argument=verb)
        read = _READS.get(kind)
        if read is not None:
            result = await self._database.read(lambda db: read(db, verb), is_brief=kind in _BRIEF)
            if isinstance(verb, verbs.Statistics):
                result |= {"name": type(self).__name__, "uptime": time.monotonic() - self._started}
            return result
        if isinstance(verb, verbs.DequeueManyRollouts):
            return cast(R, await self._dequeue(verb))
        if isinstance(verb, verbs.WaitForRollouts):
            return cast(R, await self._wait(verb))
        if isinstance(verb, verbs.QueryEvents):
            return cast(R, await self._events(verb))
        raise NotImplementedError(f"unknown verb {kind.__name__}")  # a fault of ours: every verb has its line above

    async def _dequeue(self, verb: verbs.DequeueManyRollouts) -> list[AttemptedRollout]:
        if not verb.timeout or verb.timeout <= 0:
            return await self._claim(verb)
        deadline = time.monotonic() + verb.timeout
        with self._signals.waiting_for_work() as waiter:
            while True:
                claimed = await self._claim(verb)
                left_s = deadline - time.monotonic()
                if claimed or left_s <= 0:
                    return claimed
                await waiter.wait(left_s)
                self._check_open()

    async def _claim(self, verb: verbs.DequeueManyRollouts) -> list[AttemptedRollout]:
        """Claim; come back empty only when there is nothing to claim.

        PostgreSQL passes over rollouts that another process is claiming at the moment, and does not see what was queued
        since the statement began, so an empty claim alone does not mean that the queue is empty.
        """
        for tries in range(_CLAIM_TRIES):
            claimed = await self._database.write(
                partial(queue.dequeue_many_rollouts, verb=verb, since=self._opened),
                undelivered=self._release,
                merge=self._merged_claims,
                argument=verb,
            )
            if claimed or not self._shared_queue or verb.limit <= 0:
                return claimed
            if not await self._database.read(queue.has_queued, is_brief=True):
                return claimed
            await asyncio.sleep(random.uniform(0, 0.001 * 2**tries))
        return []

    def _release(self, claimed: list[AttemptedRollout]) -> None:
        """The claimer was cancelled before it got the answer: nobody else would ever run these."""
        if claimed and not self._closed:
            _in_background(self._database.write(lambda db: queue.release_claims(db, claimed)))

    async def _wait(self, verb: verbs.WaitForRollouts) -> list[Rollout]:
        deadline = None if verb.timeout is None else time.monotonic() + verb.timeout
        wanted = len(set(verb.rollout_ids))
        if wanted <= queries.FEW:  # often they have ended: then nobody has to be woken
            finished = await self._finished(verb.rollout_ids)
            if len(finished) == wanted:
                return [finished[i] for i in verb.rollout_ids]
        finished: dict[str, Rollout] = {}
        with self._signals.waiting_for_ends(verb.rollout_ids) as waiter:
            while True:
                finished |= await self._finished([i for i in verb.rollout_ids if i not in finished])
                waiter.pending.difference_update(finished)
                left_s = None if deadline is None else deadline - time.monotonic()
                if len(finished) == wanted or (left_s is not None and left_s <= 0):
                    return [finished[i] for i in verb.rollout_ids if i in finished]
                await waiter.wait(left_s)
                self._check_open()

    async def _finished(self, rollout_ids: list[str]) -> dict[str, Rollout]:
        """Those that have ended, by id.

        Raises:
            NotFoundError: One does not exist.
        """
        found, unknown = await self._database.read(
            lambda db: queries.finished_rollouts(db, rollout_ids),
            is_brief=len(rollout_ids) <= queries.FEW,
            merge=_FINISHED,
            argument=rollout_ids,
        )
        if unknown:
            raise NotFoundError(f"There is no rollout {unknown[0]!r}.", details={"rollout_ids": unknown})
        return found

    async def _events(self, verb: verbs.QueryEvents) -> verbs.EventPage:
        deadline = time.monotonic() + (verb.timeout or 0.0)
        with self._signals.waiting_for_events() as waiter:
            while True:
                page = await self._database.read(lambda db, verb=verb: events.query_events(db, verb))
                left_s = deadline - time.monotonic()
                if page.items or left_s <= 0 or verb.limit == 0:
                    return page
                verb = msgspec.structs.replace(verb, after=page.last)
                await waiter.wait(left_s)
                self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("The store was closed while this call was waiting.")

    def _publish(self, announcements: list[tuple[str, str]]) -> None:
        topics: set[str] = set()
        for topic, key in announcements:
            if topic == lifecycle.FINISHED:
                self._signals.rollout_ended(key)
            else:
                topics.add(topic)
        if lifecycle.QUEUED in topics:
            self._signals.work_queued()
        if events.RECORDED in topics:
            self._signals.events_recorded()


def _limited(operation: Operation, verb: verbs.Verb[Any], max_value_bytes: int, db: Session) -> Any:
    db.memo[payloads.LIMIT] = max_value_bytes
    return operation(db, verb)


def _limited_merge(
    run: Callable[[Session, Any], Sequence[Any]], max_value_bytes: int, db: Session, together: list[Any]
) -> Sequence[Any]:
    db.memo[payloads.LIMIT] = max_value_bytes
    return run(db, together)


_CLAIM_TRIES = 8
"""More than a quarter of a second in all; a claim under way takes a few milliseconds."""

_background: set[asyncio.Future[Any]] = set()


def _in_background(work: Awaitable[Any]) -> None:
    task = asyncio.ensure_future(work)
    _background.add(task)  # the loop keeps only a weak reference
    task.add_done_callback(_background.discard)
