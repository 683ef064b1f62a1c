"""The part of `LightningStore` that reads what has happened: training events, once or as they come.

Knows neither databases nor HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from agentlightning.schemas import TrainingEvent
from agentlightning.store import verbs
from agentlightning.store.executor import Executor

_LONGEST_WAIT_S = 60.0


class History(Executor):
    """Reads the store's events. Everything here goes beyond the 0.3 API."""

    async def query_events(
        self,
        after: int = 0,
        *,
        kinds: Sequence[str] | None = None,
        rollout_id: str | None = None,
        limit: int = 1000,
        timeout: float | None = None,
    ) -> list[TrainingEvent]:
        """What has happened, in the order of commits. Whoever has seen an event has missed none before it.

        Args:
            after: Only events with a higher `no`.
            kinds: Kinds to include, of `EVENT_KINDS`; `None` for all.
            rollout_id: Only events of this rollout; none for an unknown one.
            limit: Most events; -1 for all.
            timeout: How long to wait for the first event when there is none yet, seconds; `None` does not wait.

        Raises:
            BadInputError: `after` is negative, or a kind is unknown.
        """
        verb = verbs.QueryEvents(
            after=after,
            kind_in=None if kinds is None else list(kinds),
            rollout_id=rollout_id,
            limit=limit,
            timeout=timeout,
        )
        return (await self.execute(verb)).items

    async def watch_events(
        self, *, after: int | None = 0, kinds: Sequence[str] | None = None, rollout_id: str | None = None
    ) -> AsyncIterator[TrainingEvent]:
        """Every event as it is committed, by whichever process; does not end by itself.

        Args:
            after: Begin behind this `no`: 0 for the whole history, `None` for what happens from now on.
            kinds: See `query_events`.
            rollout_id: See `query_events`.

        Raises:
            BadInputError: See `query_events`.
            StorageError: The store was closed, or does not answer.
        """
        verb = verbs.QueryEvents(kind_in=None if kinds is None else list(kinds), rollout_id=rollout_id)
        verb.after = after if after is not None else (await self.execute(verbs.QueryEvents(limit=0))).last
        verb.timeout = _LONGEST_WAIT_S
        while True:
            page = await self.execute(verb)
            for event in page.items:
                yield event
            verb.after = page.last
