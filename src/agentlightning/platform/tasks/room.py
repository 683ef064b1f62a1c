"""The parts of tasks, put together and started with the platform. Knows no HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from agentlightning.modelservice.composition import Composition
from agentlightning.platform.agents.service import AgentService
from agentlightning.platform.auth.tickets import Tickets
from agentlightning.platform.cache import Cache, RedisLink
from agentlightning.platform.database import Database
from agentlightning.platform.masking import Masking
from agentlightning.platform.metrics import Metrics
from agentlightning.platform.mounts import ModelSetup
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.tasks.choice import ModelChooser
from agentlightning.platform.tasks.events import EventHub
from agentlightning.platform.tasks.execution import Surroundings, TaskRunner
from agentlightning.platform.tasks.pool import TaskPool
from agentlightning.platform.tasks.record import Recorder
from agentlightning.platform.tasks.service import TaskService
from agentlightning.platform.tasks.wakes import Wakes


class Tasks:
    """Tasks of a running platform.

    Attributes:
        service: Makes and finds them.
        pool: Runs them.
        events: Tells of them.
        chooser: Says which model an agent runs on.
        tickets: For websockets.
    """

    def __init__(
        self,
        settings: PlatformSettings,
        database: Database,
        cache: Cache,
        redis: RedisLink | None,
        agents: AgentService,
        metrics: Metrics,
        models: Composition,
        setup: ModelSetup,
        around: Surroundings,
        masking: Masking,
    ) -> None:
        self.settings = settings
        self.database = database
        self.agents = agents
        self.chooser = ModelChooser(models, setup, settings)
        self.wakes = Wakes(database, redis)
        self.service = TaskService(settings, database, agents, self.wakes, models.store, self.chooser)
        self.service.judged = around.judged
        self.runner = TaskRunner(
            settings, database, agents, cache, models.store, models.gateway, self.chooser, around, Recorder(masking)
        )
        self.pool = TaskPool(settings, database, self.wakes, self.runner, metrics, masking)
        self.events = EventHub(database, self.wakes)
        self.tickets = Tickets(database, cache)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Claim and run within the block."""
        self.wakes.start()
        self.runner.start()
        self.events.start()
        self.pool.start()
        self.agents.on_change.append(self.service.agent_changed)
        try:
            yield
        finally:
            self.agents.on_change.remove(self.service.agent_changed)
            await self.events.stop()
            await self.pool.stop()
            await self.wakes.stop()
            await self.runner.close()
