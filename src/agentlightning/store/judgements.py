"""The part of the store's interface about what people and judges say of rollouts. Knows neither databases nor HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from agentlightning.schemas import (
    Feedback,
    Lineage,
    LineageSession,
    LineageStep,
    LineageStepKind,
    PaginatedResult,
    Preference,
    PreferenceSource,
    Thumb,
)
from agentlightning.schemas.feedback import LINEAGES, SCORE_MAX, SCORE_MIN
from agentlightning.store import verbs
from agentlightning.store.executor import Executor


class Judgements(Executor):
    """Feedback, preferences and lineages; a part of `LightningStore`. All of it goes beyond 0.3."""

    # --- feedback ------------------------------------------------------------------------------------------------

    async def add_feedback(
        self,
        rollout_id: str,
        *,
        attempt_id: str | None = None,
        score: float | None = None,
        score_min: float = SCORE_MIN,
        score_max: float = SCORE_MAX,
        thumb: Thumb | None = None,
        comment: str | None = None,
        author: str | None = None,
        metadata: dict[str, Any] | None = None,
        feedback_id: str | None = None,
    ) -> Feedback:
        """Keep what somebody says of a rollout. Records the event `artifact.scored`, or `feedback.given` without score.

        Args:
            rollout_id: What is judged.
            attempt_id: Which attempt of it; `None` for the rollout as a whole.
            score: On the scale from `score_min` to `score_max`; `None` means that none was given, which is not 0.
            score_min: The worst score.
            score_max: The best score.
            thumb: `"up"` or `"down"`.
            comment: In the author's words.
            author: Who says it.
            metadata: Free-form; kept as it is.
            feedback_id: Own id, which makes the call idempotent: repeated, it returns what is there.

        Raises:
            NotFoundError: There is no such rollout or attempt.
            BadInputError: The score is outside of its scale, or nothing is said.
            ConflictError: `feedback_id` exists and says something else.
        """
        return await self.execute(
            verbs.AddFeedback(
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                score=score,
                score_min=score_min,
                score_max=score_max,
                thumb=thumb,
                comment=comment,
                author=author,
                metadata=metadata,
                feedback_id=feedback_id,
            )
        )

    async def query_feedback(
        self,
        *,
        rollout_id_in: Sequence[str] | None = None,
        author: str | None = None,
        thumb: Thumb | None = None,
        has_score: bool | None = None,
        has_comment: bool | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Feedback]:
        """Feedback that matches, in the order it came by default; see `query_rollouts` for sorting and paging."""
        return await self.execute(
            verbs.QueryFeedback(
                rollout_id_in=None if rollout_id_in is None else list(rollout_id_in),
                author=author,
                thumb=thumb,
                has_score=has_score,
                has_comment=has_comment,
                filter_logic=filter_logic,
                sort_by=sort_by,
                sort_order=sort_order,
                limit=limit,
                offset=offset,
            )
        )

    # --- preferences ---------------------------------------------------------------------------------------------

    async def add_preference(
        self,
        chosen_rollout_id: str,
        rejected_rollout_id: str,
        *,
        chosen_attempt_id: str | None = None,
        rejected_attempt_id: str | None = None,
        source: PreferenceSource = "person",
        weight: float = 1.0,
        margin: float | None = None,
        comment: str | None = None,
        author: str | None = None,
        metadata: dict[str, Any] | None = None,
        preference_id: str | None = None,
    ) -> Preference:
        """Keep that one rollout is better than another.

        Args:
            chosen_rollout_id: The better one.
            rejected_rollout_id: The worse one.
            chosen_attempt_id: Which attempt; `None` for the latest.
            rejected_attempt_id: Which attempt; `None` for the latest.
            source: Who says so: a `"person"`, a `"judge"` (a model), or a `"lock"` (see `lock_lineage`).
            weight: How much it counts in training, above 0.
            margin: How much better, on a scale of the author's, 0 or more.
            comment: In the author's words.
            author: Who says it.
            metadata: Free-form; kept as it is.
            preference_id: Own id, which makes the call idempotent.

        Raises:
            NotFoundError: A rollout or an attempt does not exist.
            BadInputError: Both are the same, or a number is out of range.
            ConflictError: `preference_id` exists and says something else.
        """
        return await self.execute(
            verbs.AddPreference(
                chosen_rollout_id=chosen_rollout_id,
                rejected_rollout_id=rejected_rollout_id,
                chosen_attempt_id=chosen_attempt_id,
                rejected_attempt_id=rejected_attempt_id,
                source=source,
                weight=weight,
                margin=margin,
                comment=comment,
                author=author,
                metadata=metadata,
                preference_id=preference_id,
            )
        )

    async def query_preferences(
        self,
        *,
        rollout_id_in: Sequence[str] | None = None,
        source_in: Sequence[PreferenceSource] | None = None,
        session_id: str | None = None,
        cycle: int | None = None,
        author: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Preference]:
        """Preferences that match, in the order they came by default; `rollout_id_in` matches either side."""
        return await self.execute(
            verbs.QueryPreferences(
                rollout_id_in=None if rollout_id_in is None else list(rollout_id_in),
                source_in=None if source_in is None else list(source_in),
                session_id=session_id,
                cycle=cycle,
                author=author,
                filter_logic=filter_logic,
                sort_by=sort_by,
                sort_order=sort_order,
                limit=limit,
                offset=offset,
            )
        )

    # --- lineages ------------------------------------------------------------------------------------------------

    async def create_lineage_session(
        self,
        lineages: int = LINEAGES,
        *,
        names: Sequence[str] | None = None,
        name: str | None = None,
        metadata: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> LineageSession:
        """Set up lineages to be compared side by side; they are called `<session_id>.0`, `.1`, and so on.

        Args:
            lineages: How many; 1 to 64.
            names: Their names, instead of a number.
            name: The session's name.
            metadata: Free-form; kept as it is.
            session_id: Own id, which makes the call idempotent.

        Raises:
            ConflictError: `session_id` exists with another name or another number of lineages.
        """
        return await self.execute(
            verbs.CreateLineageSession(
                lineages=lineages,
                names=None if names is None else list(names),
                name=name,
                metadata=metadata,
                session_id=session_id,
            )
        )

    async def get_lineage_session(self, session_id: str) -> LineageSession | None:
        """The session with its lineages as they are now; `None` when unknown."""
        return await self.execute(verbs.GetLineageSession(session_id=session_id))

    async def query_lineage_sessions(
        self,
        *,
        session_id_in: Sequence[str] | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[LineageSession]:
        """Sessions that match, in the order of creation by default."""
        return await self.execute(
            verbs.QueryLineageSessions(
                session_id_in=None if session_id_in is None else list(session_id_in),
                name=name,
                name_contains=name_contains,
                filter_logic=filter_logic,
                sort_by=sort_by,
                sort_order=sort_order,
                limit=limit,
                offset=offset,
            )
        )

    async def add_to_lineage(
        self, lineage_id: str, rollout_id: str, *, cycle: int | None = None, author: str | None = None
    ) -> Lineage:
        """Make a rollout the lineage's one in a cycle; repeated, it changes nothing.

        Args:
            lineage_id: Which lineage.
            rollout_id: Which rollout.
            cycle: 0 or more; `None` means the session's newest cycle, or the next if the lineage has a rollout there.
            author: Who does it.

        Raises:
            NotFoundError: The lineage or the rollout does not exist.
            ConflictError: The lineage is locked, has another rollout in that cycle, or has the rollout in another.
        """
        return await self.execute(
            verbs.AddToLineage(lineage_id=lineage_id, rollout_id=rollout_id, cycle=cycle, author=author)
        )

    async def lock_lineage(self, lineage_id: str, *, author: str | None = None) -> Lineage:
        """Keep a lineage as it is while the others are made anew; locked already, it stays so.

        Each rollout of a locked lineage is then preferred (`source="lock"`) to each rollout of the same cycle whose
        lineage is not locked. The pairs follow the locks until the session's next cycle begins.

        Raises:
            ConflictError: The lineage has no rollout yet.
        """
        return await self.execute(verbs.LockLineage(lineage_id=lineage_id, author=author))

    async def unlock_lineage(self, lineage_id: str, *, author: str | None = None) -> Lineage:
        """Let a lineage go on; not locked, it stays so. See `lock_lineage` for what becomes of the preferences."""
        return await self.execute(verbs.UnlockLineage(lineage_id=lineage_id, author=author))

    async def query_lineage_history(
        self,
        session_id: str,
        *,
        lineage_id: str | None = None,
        cycle: int | None = None,
        kind: LineageStepKind | None = None,
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[LineageStep]:
        """What happened to the lineages of a session, oldest first by default."""
        return await self.execute(
            verbs.QueryLineageHistory(
                session_id=session_id,
                lineage_id=lineage_id,
                cycle=cycle,
                kind=kind,
                sort_by=sort_by,
                sort_order=sort_order,
                limit=limit,
                offset=offset,
            )
        )
