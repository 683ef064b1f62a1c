"""`LightningStore`: the interface that algorithms and runners talk to. Knows neither databases nor HTTP.

Every method packs its arguments into a verb and hands it to `execute`, the one method an implementation provides.
Names, parameters and behaviour are those of the public Agent Lightning 0.3 API; what goes beyond is keyword-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from pydantic import ValidationError

from agentlightning.schemas import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    NamedResources,
    PaginatedResult,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    Span,
    TaskInput,
    Worker,
    WorkerStatus,
    is_finished,
    is_queuing,
    is_running,
)
from agentlightning.schemas.building import assemble
from agentlightning.store import verbs
from agentlightning.store.bulk import Bulk
from agentlightning.store.history import History
from agentlightning.store.judgements import Judgements
from agentlightning.store.records import bad_model, checked, record_from_span, span_from_record
from agentlightning.store.verbs import UNSET, AttemptUpdate, Unset

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = [
    "UNSET",
    "AttemptUpdate",
    "LightningStore",
    "LightningStoreCapabilities",
    "LightningStoreStatistics",
    "Unset",
    "is_finished",
    "is_queuing",
    "is_running",
]


class LightningStoreCapabilities(TypedDict, total=False):
    """What an implementation can do; a missing key means no."""

    thread_safe: bool
    """May be called from several threads."""
    async_safe: bool
    """May be called from several tasks and event loops at once."""
    zero_copy: bool
    """One copy of the data, whichever process asks."""
    otlp_traces: bool
    """Accepts OTLP/HTTP traces at `otlp_traces_endpoint()`."""


class LightningStoreStatistics(TypedDict, total=False):
    """Totals; `uptime` in seconds since this object was created."""

    name: str
    total_rollouts: int
    total_attempts: int
    total_spans: int
    total_resources: int
    total_workers: int
    uptime: float
    total_span_bytes: int
    eviction_threshold_bytes: int
    safe_threshold_bytes: int
    memory_capacity_bytes: int


class LightningStore(Bulk, History, Judgements):
    """The queue of rollouts, their attempts and spans, and the resources that algorithms improve.

    Every method is atomic and may be called concurrently. What is acknowledged is committed. An unknown id raises
    `NotFoundError` (a `ValueError`) unless the method says that it returns `None`; a status change that the state
    machine does not allow raises `ConflictError`; unusable arguments raise `BadInputError`.
    """

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What this implementation can do."""
        return LightningStoreCapabilities(thread_safe=False, async_safe=False, zero_copy=False, otlp_traces=False)

    async def statistics(self) -> LightningStoreStatistics:
        """Count what is stored."""
        totals = {"name": type(self).__name__, **await self.execute(verbs.Statistics())}
        return cast(LightningStoreStatistics, totals)

    def otlp_traces_endpoint(self) -> str:
        """URL to which OpenTelemetry exporters may send traces (OTLP over HTTP).

        Raises:
            NotImplementedError: This store is not reachable over HTTP.
        """
        # What 0.3 raises.
        raise NotImplementedError(f"{type(self).__name__} has no OTLP endpoint; serve it with LightningStoreServer")

    async def close(self) -> None:
        """Finish pending work and let go of files and connections. The store cannot be used afterwards."""

    # --- rollouts: creating and claiming -------------------------------------------------------------------------

    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
        *,
        rollout_id: str | None = None,
    ) -> AttemptedRollout:
        """Create a rollout and its first attempt at once, past the queue; both are `preparing`.

        Args:
            input: The task.
            mode: What the rollout is for.
            resources_id: Resources to use; `None` means the latest ones now, if there are any.
            config: Time limits and retries.
            metadata: Free-form; kept as it is.
            worker_id: Who works on it.
            rollout_id: Own id, which makes the call idempotent, see `enqueue_rollout`.

        Raises:
            NotFoundError: `resources_id` does not exist.
        """
        return await self.execute(
            verbs.StartRollout(
                input=input,
                mode=mode,
                resources_id=resources_id,
                config=config,
                metadata=metadata,
                worker_id=worker_id,
                rollout_id=rollout_id,
            )
        )

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: Literal["train", "val", "test"] | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        *,
        rollout_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Rollout:
        """Put a task at the end of the queue.

        Args:
            input: The task.
            mode: What the rollout is for.
            resources_id: Resources to use; `None` means the latest ones now, if there are any.
            config: Time limits and retries.
            metadata: Free-form; kept as it is.
            rollout_id: Own id, which makes the call idempotent: the second call with the same id and input returns the
                existing rollout unchanged.
            idempotency_key: The same without choosing an id: whoever repeats the call with this key gets this rollout.

        Raises:
            NotFoundError: `resources_id` does not exist.
            ConflictError: `rollout_id` or `idempotency_key` was used for another input.
            BadInputError: Both are given, or the key is empty.
        """
        try:
            request = EnqueueRolloutRequest(
                input=input,
                mode=mode,
                resources_id=resources_id,
                config=config,
                metadata=metadata,
                rollout_id=rollout_id,
                idempotency_key=idempotency_key,
            )
        except ValidationError as error:
            raise bad_model(error) from error
        return (await self.execute(verbs.EnqueueManyRollouts(rollouts=[request])))[0]

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        """Put several tasks at the end of the queue, all or none, in order. See `enqueue_rollout`."""
        requests = [checked(EnqueueRolloutRequest, rollout) for rollout in rollouts]
        return await self.execute(verbs.EnqueueManyRollouts(rollouts=requests)) if requests else []

    async def dequeue_rollout(
        self, worker_id: str | None = None, *, lease_s: float | None = None
    ) -> AttemptedRollout | None:
        """Claim the oldest queued rollout as a new attempt (both `preparing`); `None` when the queue is empty."""
        claimed = await self.execute(verbs.DequeueManyRollouts(limit=1, worker_id=worker_id, lease_s=lease_s))
        return claimed[0] if claimed else None

    async def dequeue_many_rollouts(
        self,
        *,
        limit: int = 1,
        worker_id: str | None = None,
        timeout: float | None = None,
        lease_s: float | None = None,
    ) -> Sequence[AttemptedRollout]:
        """Claim up to `limit` queued rollouts, oldest first.

        Args:
            limit: Most rollouts to claim; none for 0 or less.
            worker_id: Who claims.
            timeout: How long to wait for the first rollout when the queue is empty, seconds; `None` does not wait.
            lease_s: How long the claims hold without a sign of life, seconds: a span, an update of the attempt's status
                or heartbeat, or `update_worker`. Then the attempt is `unresponsive` and the rollout is handed out
                again, whatever its `retry_condition`, at most 3 times more than `max_attempts`. `None`: for ever.

        Raises:
            BadInputError: `lease_s` is not a positive number.
        """
        if limit <= 0:
            return []
        verb = verbs.DequeueManyRollouts(limit=limit, worker_id=worker_id, timeout=timeout, lease_s=lease_s)
        return await self.execute(verb)

    async def start_attempt(
        self, rollout_id: str, worker_id: str | None = None, *, lease_s: float | None = None
    ) -> AttemptedRollout:
        """Create another attempt by hand, whatever the rollout's status and `max_attempts`; both become `preparing`."""
        return await self.execute(verbs.StartAttempt(rollout_id=rollout_id, worker_id=worker_id, lease_s=lease_s))

    # --- rollouts: reading and changing --------------------------------------------------------------------------

    async def query_rollouts(
        self,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[RolloutStatus] | None = None,
        rollout_ids: Sequence[str] | None = None,
    ) -> PaginatedResult[Rollout]:
        """Rollouts that match, as `AttemptedRollout` with their latest attempt where there is one.

        Args:
            status_in: Statuses to include.
            rollout_id_in: Ids to include.
            rollout_id_contains: Part of the id.
            filter_logic: How the filters combine.
            sort_by: A number or string field of `Rollout`; by default the order of creation.
            sort_order: Direction; applies to the default order too.
            limit: Longest page; -1 means all.
            offset: Matches to skip.
            status: Older name of `status_in`.
            rollout_ids: Older name of `rollout_id_in`.
        """
        wanted_status = status_in if status_in is not None else status
        wanted_ids = rollout_id_in if rollout_id_in is not None else rollout_ids
        return await self.execute(
            verbs.QueryRollouts(
                status_in=None if wanted_status is None else list(wanted_status),
                rollout_id_in=None if wanted_ids is None else list(wanted_ids),
                rollout_id_contains=rollout_id_contains,
                filter_logic=filter_logic,
                sort_by=sort_by,
                sort_order=sort_order,
                limit=limit,
                offset=offset,
            )
        )

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        """The rollout, with its latest attempt where there is one; `None` when unknown."""
        return await self.execute(verbs.GetRolloutById(rollout_id=rollout_id))

    async def wait_for_rollouts(self, *, rollout_ids: list[str], timeout: float | None = None) -> list[Rollout]:
        """Wait until all are `succeeded`, `failed` or `cancelled`, and return those that are, in the order asked for.

        Args:
            rollout_ids: Whom to wait for.
            timeout: Seconds; `None` waits for ever. After it the finished ones are returned.
        """
        return await self.execute(verbs.WaitForRollouts(rollout_ids=list(rollout_ids), timeout=timeout))

    async def update_rollout(
        self,
        rollout_id: str,
        input: TaskInput | Unset = UNSET,
        mode: Literal["train", "val", "test"] | Unset | None = UNSET,
        resources_id: str | Unset | None = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | Unset | None = UNSET,
    ) -> Rollout:
        """Replace the given fields. A final status sets `end_time`; a queue status puts the rollout into the queue.

        Raises:
            NotFoundError: The rollout or `resources_id` does not exist.
            ConflictError: The status change is not allowed.
        """
        return await self.execute(
            verbs.UpdateRollout(
                rollout_id=rollout_id,
                input=input,
                mode=mode,
                resources_id=resources_id,
                status=status,
                config=config if isinstance(config, Unset) else checked(RolloutConfig, config),
                metadata=metadata,
            )
        )

    # --- attempts ------------------------------------------------------------------------------------------------

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Attempt]:
        """All attempts of a rollout, oldest first by default."""
        return await self.execute(
            verbs.QueryAttempts(
                rollout_id=rollout_id, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset
            )
        )

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """The newest attempt; `None` when the rollout has none yet."""
        return await self.execute(verbs.GetLatestAttempt(rollout_id=rollout_id))

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | Unset | None = UNSET,
    ) -> Attempt:
        """Replace the given fields; a new status of the latest attempt carries over to the rollout and its worker.

        A failure, a timeout or silence queues the rollout again while its `retry_condition` and `max_attempts` allow,
        else fails it. A rollout that has ended stays as it is: a late success does not undo a cancellation.

        Raises:
            ConflictError: The status change is not allowed.
        """
        return await self.execute(
            verbs.UpdateAttempt(
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                status=status,
                worker_id=worker_id,
                last_heartbeat_time=last_heartbeat_time,
                metadata=metadata,
            )
        )

    # --- spans ---------------------------------------------------------------------------------------------------

    async def add_span(self, span: Span) -> Span | None:
        """Store a span. See `add_many_spans`; `None` when it was there already."""
        added = await self.add_many_spans([span])
        return added[0] if added else None

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Store spans, all or none, and return those that are new.

        A `sequence_id` of 0 or less is replaced by the attempt's next one. A span that the attempt has already (same
        `span_id`) is ignored. Spans are a sign of life: the latest attempt and its rollout become `running`. Spans of
        a superseded attempt are stored and change nothing else.

        Raises:
            NotFoundError: A rollout or an attempt does not exist.
            BadInputError: An attribute is not plain data.
        """
        if not spans:
            return []
        sequence_ids = await self.execute(
            verbs.AddManySpans(spans=[record_from_span(checked(Span, span)) for span in spans])
        )
        return [
            span if span.sequence_id == number else _numbered(span, number)
            for span, number in zip(spans, sequence_ids, strict=True)
            if number is not None
        ]

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        """Convert and store a span of the OpenTelemetry SDK; without `sequence_id` it gets the next one."""
        return await self.add_span(Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0))

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Reserve the attempt's next sequence id: 1, 2, …"""
        return (await self.get_many_span_sequence_ids([(rollout_id, attempt_id)]))[0]

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        """Reserve one sequence id for each pair."""
        pairs = [(rollout_id, attempt_id) for rollout_id, attempt_id in rollout_attempt_ids]
        return await self.execute(verbs.GetManySpanSequenceIds(rollout_attempt_ids=pairs)) if pairs else []

    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_id: str | None = None,
        parent_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
    ) -> PaginatedResult[Span]:
        """Spans of a rollout: of one attempt, of the `"latest"`, or of all (`None`).

        The filters combine by `filter_logic`; rollout and attempt always have to match.
        """
        page = await self.execute(
            verbs.QuerySpans(
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                trace_id=trace_id,
                trace_id_contains=trace_id_contains,
                span_id=span_id,
                span_id_contains=span_id_contains,
                parent_id=parent_id,
                parent_id_contains=parent_id_contains,
                name=name,
                name_contains=name_contains,
                filter_logic=filter_logic,
                limit=limit,
                offset=offset,
                sort_by=sort_by,
                sort_order=sort_order,
            )
        )
        items = [span_from_record(record) for record in page.items]
        return PaginatedResult[Span].model_construct(
            items=items, limit=page.limit, offset=page.offset, total=page.total
        )

    # --- resources -----------------------------------------------------------------------------------------------

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store a new snapshot (version 1 under a new id) and make it the latest."""
        return await self.execute(verbs.AddResources(resources=dict(resources)))

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Replace the content of a snapshot, count up its version, and make it the latest."""
        return await self.execute(verbs.UpdateResources(resources_id=resources_id, resources=dict(resources)))

    async def query_resources(
        self,
        *,
        resources_id: str | None = None,
        resources_id_contains: str | None = None,
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[ResourcesUpdate]:
        """Snapshots in the order they were added, or by a number or string field."""
        return await self.execute(
            verbs.QueryResources(
                resources_id=resources_id,
                resources_id_contains=resources_id_contains,
                sort_by=sort_by,
                sort_order=sort_order,
                limit=limit,
                offset=offset,
            )
        )

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """The snapshot; `None` when unknown."""
        return await self.execute(verbs.GetResourcesById(resources_id=resources_id))

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """The snapshot added or updated last; `None` when there is none."""
        return await self.execute(verbs.GetLatestResources())

    # --- workers -------------------------------------------------------------------------------------------------

    async def query_workers(
        self,
        *,
        status_in: Sequence[WorkerStatus] | None = None,
        worker_id_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Worker]:
        """Workers that match; see `query_rollouts` for the parameters."""
        return await self.execute(
            verbs.QueryWorkers(
                status_in=None if status_in is None else list(status_in),
                worker_id_contains=worker_id_contains,
                filter_logic=filter_logic,
                sort_by=sort_by,
                sort_order=sort_order,
                limit=limit,
                offset=offset,
            )
        )

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        """The worker; `None` when it has never been heard of."""
        return await self.execute(verbs.GetWorkerById(worker_id=worker_id))

    async def update_worker(self, worker_id: str, heartbeat_stats: dict[str, Any] | Unset = UNSET) -> Worker:
        """Record a heartbeat, which also renews the leases of all its attempts.

        Busy or idle follows from dequeuing and from attempts, not from here.
        """
        return await self.execute(verbs.UpdateWorker(worker_id=worker_id, heartbeat_stats=heartbeat_stats))


def _numbered(span: Span, number: int) -> Span:
    """A copy with this number; `model_copy` takes ten times as long."""
    extra = span.__pydantic_extra__
    values = {**vars(span), "sequence_id": number}
    return assemble(type(span), values, {*span.__pydantic_fields_set__, "sequence_id"}, dict(extra or {}))
