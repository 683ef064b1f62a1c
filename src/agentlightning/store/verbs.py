"""The store's verbs as data: what each takes and gives. Shared by interface, SQL operations, routes and client.

A verb's struct is its wire format too (JSON or msgpack), so what arrives over HTTP is checked against the same types.
Knows no transport and no database.
"""

from __future__ import annotations

import re
from typing import Any, Generic, Literal, TypeVar

import msgspec

from agentlightning.schemas import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    Feedback,
    Lineage,
    LineageSession,
    LineageStep,
    PaginatedResult,
    Preference,
    PreferenceSource,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    Thumb,
    TrainingEvent,
    Worker,
    WorkerStatus,
)
from agentlightning.store.records import SpanRecord

R = TypeVar("R")

UNSET = msgspec.UNSET
"""Not given, as opposed to `None`."""
Unset = msgspec.UnsetType

FilterLogic = Literal["and", "or"]
SortOrder = Literal["asc", "desc"]


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class AttemptUpdate(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A change to one attempt; what is `UNSET` stays as it is. `attempt_id` may be `"latest"`."""

    rollout_id: str
    attempt_id: str
    status: AttemptStatus | Unset = UNSET
    worker_id: str | Unset = UNSET
    last_heartbeat_time: float | Unset = UNSET
    metadata: dict[str, Any] | Unset | None = UNSET


class SpanPage(msgspec.Struct, kw_only=True):
    """A page of packed spans."""

    items: list[SpanRecord]
    limit: int
    offset: int
    total: int


class EventPage(msgspec.Struct, kw_only=True):
    """Events, and up to where one has seen everything that matches."""

    items: list[TrainingEvent]
    last: int


class Verb(msgspec.Struct, Generic[R], kw_only=True, omit_defaults=True, tag=_snake, tag_field="verb"):
    """A call of the store: the type says which verb, the fields are its arguments, `R` is what it gives."""


class Page(Verb[R], kw_only=True):
    """Sorting and paging, the same for every query; `limit == -1` means all."""

    sort_by: str | None = None
    sort_order: SortOrder = "asc"
    limit: int = -1
    offset: int = 0


class StartRollout(Verb[AttemptedRollout], kw_only=True):
    input: Any
    mode: RolloutMode | None = None
    resources_id: str | None = None
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None
    worker_id: str | None = None
    rollout_id: str | None = None


class EnqueueManyRollouts(Verb[list[Rollout]], kw_only=True):
    rollouts: list[EnqueueRolloutRequest]


class DequeueManyRollouts(Verb[list[AttemptedRollout]], kw_only=True):
    limit: int = 1
    worker_id: str | None = None
    timeout: float | None = None
    """Longest wait for work, seconds; `None` does not wait."""
    claim_id: str | None = None
    """Names this claim, so that asking again after a lost answer gives the same attempts."""
    lease_s: float | None = None
    """How long the claims hold without a sign of life, seconds; `None`: until they are given up."""


class ReleaseClaim(Verb[int], kw_only=True):
    """Undo a claim whose answer nobody took; gives how many attempts were given back."""

    claim_id: str


class StartAttempt(Verb[AttemptedRollout], kw_only=True):
    rollout_id: str
    worker_id: str | None = None
    claim_id: str | None = None
    lease_s: float | None = None


class QueryRollouts(Page[PaginatedResult[Rollout]], kw_only=True):
    status_in: list[RolloutStatus] | None = None
    rollout_id_in: list[str] | None = None
    rollout_id_contains: str | None = None
    filter_logic: FilterLogic = "and"


class GetRolloutById(Verb[Rollout | None], kw_only=True):
    rollout_id: str


class WaitForRollouts(Verb[list[Rollout]], kw_only=True):
    rollout_ids: list[str]
    timeout: float | None = None


class UpdateRollout(Verb[Rollout], kw_only=True):
    rollout_id: str
    input: Any = UNSET
    mode: RolloutMode | Unset | None = UNSET
    resources_id: str | Unset | None = UNSET
    status: RolloutStatus | Unset = UNSET
    config: RolloutConfig | Unset = UNSET
    metadata: dict[str, Any] | Unset | None = UNSET


class QueryAttempts(Page[PaginatedResult[Attempt]], kw_only=True):
    rollout_id: str
    sort_by: str | None = "sequence_id"


class GetLatestAttempt(Verb[Attempt | None], kw_only=True):
    rollout_id: str


class UpdateAttempt(Verb[Attempt], kw_only=True):
    rollout_id: str
    attempt_id: str
    status: AttemptStatus | Unset = UNSET
    worker_id: str | Unset = UNSET
    last_heartbeat_time: float | Unset = UNSET
    metadata: dict[str, Any] | Unset | None = UNSET


class AddManySpans(Verb[list[int | None]], kw_only=True):
    """Gives the sequence id of every span, `None` for a duplicate."""

    spans: list[SpanRecord]


class GetManySpanSequenceIds(Verb[list[int]], kw_only=True):
    rollout_attempt_ids: list[tuple[str, str]]


class QuerySpans(Page[SpanPage], kw_only=True):
    rollout_id: str
    attempt_id: str | None = None
    trace_id: str | None = None
    trace_id_contains: str | None = None
    span_id: str | None = None
    span_id_contains: str | None = None
    parent_id: str | None = None
    parent_id_contains: str | None = None
    name: str | None = None
    name_contains: str | None = None
    filter_logic: FilterLogic = "and"
    sort_by: str | None = "sequence_id"


class QueryManySpans(Verb[list[SpanRecord]], kw_only=True):
    rollout_ids: list[str]
    attempt_id: Literal["latest"] | None = "latest"
    name: str | None = None


class AddResources(Verb[ResourcesUpdate], kw_only=True):
    resources: dict[str, Any]


class UpdateResources(Verb[ResourcesUpdate], kw_only=True):
    resources_id: str
    resources: dict[str, Any]


class QueryResources(Page[PaginatedResult[ResourcesUpdate]], kw_only=True):
    resources_id: str | None = None
    resources_id_contains: str | None = None


class GetResourcesById(Verb[ResourcesUpdate | None], kw_only=True):
    resources_id: str


class GetLatestResources(Verb[ResourcesUpdate | None], kw_only=True):
    pass


class QueryWorkers(Page[PaginatedResult[Worker]], kw_only=True):
    status_in: list[WorkerStatus] | None = None
    worker_id_contains: str | None = None
    filter_logic: FilterLogic = "and"


class GetWorkerById(Verb[Worker | None], kw_only=True):
    worker_id: str


class UpdateWorker(Verb[Worker], kw_only=True):
    worker_id: str
    heartbeat_stats: dict[str, Any] | Unset = UNSET


class AddFeedback(Verb[Feedback], kw_only=True):
    rollout_id: str
    attempt_id: str | None = None
    score: float | None = None
    score_min: float = 0.0
    score_max: float = 10.0
    thumb: Thumb | None = None
    comment: str | None = None
    author: str | None = None
    metadata: dict[str, Any] | None = None
    feedback_id: str | None = None


class QueryFeedback(Page[PaginatedResult[Feedback]], kw_only=True):
    rollout_id_in: list[str] | None = None
    author: str | None = None
    thumb: Thumb | None = None
    has_score: bool | None = None
    has_comment: bool | None = None
    filter_logic: FilterLogic = "and"


class AddPreference(Verb[Preference], kw_only=True):
    chosen_rollout_id: str
    rejected_rollout_id: str
    chosen_attempt_id: str | None = None
    rejected_attempt_id: str | None = None
    source: PreferenceSource = "person"
    weight: float = 1.0
    margin: float | None = None
    comment: str | None = None
    author: str | None = None
    metadata: dict[str, Any] | None = None
    preference_id: str | None = None


class QueryPreferences(Page[PaginatedResult[Preference]], kw_only=True):
    rollout_id_in: list[str] | None = None
    source_in: list[PreferenceSource] | None = None
    session_id: str | None = None
    cycle: int | None = None
    author: str | None = None
    filter_logic: FilterLogic = "and"


class CreateLineageSession(Verb[LineageSession], kw_only=True):
    lineages: int = 4
    names: list[str] | None = None
    name: str | None = None
    metadata: dict[str, Any] | None = None
    session_id: str | None = None


class QueryLineageSessions(Page[PaginatedResult[LineageSession]], kw_only=True):
    session_id_in: list[str] | None = None
    name: str | None = None
    name_contains: str | None = None
    filter_logic: FilterLogic = "and"


class GetLineageSession(Verb[LineageSession | None], kw_only=True):
    session_id: str


class AddToLineage(Verb[Lineage], kw_only=True):
    lineage_id: str
    rollout_id: str
    cycle: int | None = None
    author: str | None = None


class LockLineage(Verb[Lineage], kw_only=True):
    lineage_id: str
    author: str | None = None


class UnlockLineage(Verb[Lineage], kw_only=True):
    lineage_id: str
    author: str | None = None


class QueryLineageHistory(Page[PaginatedResult[LineageStep]], kw_only=True):
    session_id: str
    lineage_id: str | None = None
    cycle: int | None = None
    kind: str | None = None


class QueryEvents(Verb[EventPage], kw_only=True):
    after: int = 0
    kind_in: list[str] | None = None
    rollout_id: str | None = None
    limit: int = 1000
    timeout: float | None = None
    """Longest wait for an event, seconds; `None` does not wait."""


class Statistics(Verb[dict[str, Any]], kw_only=True):
    pass


AnyVerb = (
    StartRollout
    | EnqueueManyRollouts
    | DequeueManyRollouts
    | ReleaseClaim
    | StartAttempt
    | QueryRollouts
    | GetRolloutById
    | WaitForRollouts
    | UpdateRollout
    | QueryAttempts
    | GetLatestAttempt
    | UpdateAttempt
    | AddManySpans
    | GetManySpanSequenceIds
    | QuerySpans
    | QueryManySpans
    | AddResources
    | UpdateResources
    | QueryResources
    | GetResourcesById
    | GetLatestResources
    | QueryWorkers
    | GetWorkerById
    | UpdateWorker
    | AddFeedback
    | QueryFeedback
    | AddPreference
    | QueryPreferences
    | CreateLineageSession
    | QueryLineageSessions
    | GetLineageSession
    | AddToLineage
    | LockLineage
    | UnlockLineage
    | QueryLineageHistory
    | QueryEvents
    | Statistics
)
