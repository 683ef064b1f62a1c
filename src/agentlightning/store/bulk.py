"""The part of `LightningStore` that does with many what others do with one. Knows neither databases nor HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from agentlightning.kit.errors import AgentLightningError, ConflictError
from agentlightning.schemas import Attempt, Span
from agentlightning.store import verbs
from agentlightning.store.executor import Executor
from agentlightning.store.records import span_from_record
from agentlightning.store.verbs import AttemptUpdate


class Bulk(Executor):
    """Calls for many; a part of `LightningStore`. All of it goes beyond 0.3."""

    async def update_many_attempts(self, updates: Sequence[AttemptUpdate]) -> Sequence[Attempt]:
        """`update_attempt` for each, together; one that fails does not hinder the others.

        Raises:
            AgentLightningError: The only failure there was.
            ConflictError: Several failed; `details["failed"]` has each with its index. The others are done.
        """
        results = await asyncio.gather(*(self._update_one(update) for update in updates), return_exceptions=True)
        done: list[Attempt] = []
        failed: list[tuple[int, AgentLightningError]] = []
        for index, result in enumerate(results):
            if isinstance(result, AgentLightningError):
                failed.append((index, result))
            elif isinstance(result, BaseException):
                raise result
            else:
                done.append(result)
        if len(failed) == 1:
            raise failed[0][1]
        if failed:
            raise ConflictError(
                f"{len(failed)} of {len(updates)} attempts could not be updated; the first: {failed[0][1].message}",
                hint="The others are updated.",
                details={"failed": [{"index": i, **error.as_dict()} for i, error in failed]},
            )
        return done

    async def _update_one(self, update: AttemptUpdate) -> Attempt:
        return await self.execute(
            verbs.UpdateAttempt(
                rollout_id=update.rollout_id,
                attempt_id=update.attempt_id,
                status=update.status,
                worker_id=update.worker_id,
                last_heartbeat_time=update.last_heartbeat_time,
                metadata=update.metadata,
            )
        )

    async def query_many_spans(
        self,
        rollout_ids: Sequence[str],
        *,
        attempt_id: Literal["latest"] | None = "latest",
        name: str | None = None,
    ) -> dict[str, list[Span]]:
        """Spans of many rollouts in one read, by rollout id, each list in sequence order; empty for unknown ids.

        Args:
            rollout_ids: Whose spans.
            attempt_id: `"latest"` for those of the latest attempt, `None` for all.
            name: Only spans of this name.
        """
        found: dict[str, list[Span]] = {rollout_id: [] for rollout_id in rollout_ids}
        if found:
            verb = verbs.QueryManySpans(rollout_ids=list(found), attempt_id=attempt_id, name=name)
            for record in await self.execute(verb):
                found[record.rollout_id].append(span_from_record(record))
        return found
