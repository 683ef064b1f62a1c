"""How agents are at this moment: their state from the cache or the database, their tasks from whoever runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from agentlightning.platform.agents.schemas import StatusOut, StatusOverview
from agentlightning.platform.agents.service import AgentService, status_key
from agentlightning.platform.cache import Cache

TTL_S = 300.0

Workload = Callable[[], Awaitable[Mapping[int, dict[str, Any]]]]
"""Answers, by number of the agent, what it is doing: `{"running": 1, "pending": 3}`."""


class AgentStates:
    """The states of a platform's agents.

    Attributes:
        workload: Tells of tasks; `None` until somebody runs some.
    """

    def __init__(self, agents: AgentService, cache: Cache) -> None:
        self._agents = agents
        self._cache = cache
        self.workload: Workload | None = None

    async def all(self) -> list[dict[str, Any]]:
        """States without tasks, by number: cached for five minutes each, or until the agent changes."""
        numbers = await self._agents.ids()
        kept = {number: await self._cache.get(status_key(number)) for number in numbers}
        found = {number: orjson.loads(raw) for number, raw in kept.items() if raw is not None}
        missing = [number for number in numbers if number not in found]
        for state in await self._agents.states(missing) if missing else []:
            raw = orjson.dumps(state)
            await self._cache.set(status_key(state["id"]), raw, TTL_S)
            found[state["id"]] = orjson.loads(raw)
        return [found[number] for number in numbers if number in found]

    async def overview(self) -> StatusOverview:
        """All of them."""
        work = await self.workload() if self.workload is not None else {}
        found = [{**state, "workload": work.get(state["id"], {})} for state in await self.all()]
        states = [StatusOut.model_validate(state) for state in found]
        return StatusOverview(
            total=len(states),
            by_status=dict(Counter(state.status for state in states)),
            by_type=dict(Counter(state.type for state in states)),
            agents=states,
        )
