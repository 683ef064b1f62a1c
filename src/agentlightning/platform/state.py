"""The parts of one running platform, put together. Knows no HTTP."""

from __future__ import annotations

from starlette.datastructures import State

from agentlightning.algorithm.evaluators import Checker
from agentlightning.gateway import Gateway
from agentlightning.modelservice.composition import Composition
from agentlightning.platform.agents.designer import Designer
from agentlightning.platform.agents.evaluations import EvaluationService
from agentlightning.platform.agents.metrics import AgentMetrics
from agentlightning.platform.agents.sandboxed import sandboxed
from agentlightning.platform.agents.service import AgentService
from agentlightning.platform.agents.shipped import shipped, shipped_names
from agentlightning.platform.agents.states import AgentStates
from agentlightning.platform.auth.identify import Identifier
from agentlightning.platform.auth.keys import KeyService
from agentlightning.platform.auth.passwords import PasswordHasher
from agentlightning.platform.auth.permissions import may
from agentlightning.platform.auth.service import AuthService
from agentlightning.platform.auth.tickets import Tickets
from agentlightning.platform.auth.tokens import Tokens
from agentlightning.platform.auth.users import UserService
from agentlightning.platform.cache import Cache, MemoryCache, RedisCache, RedisLink
from agentlightning.platform.context import Identity
from agentlightning.platform.crypto import Vaults
from agentlightning.platform.database import Database
from agentlightning.platform.embedding.choose import choose_embedder
from agentlightning.platform.knowledge.service import KnowledgeService, TaskResult
from agentlightning.platform.learning.service import ExperimentService
from agentlightning.platform.learning.supervisor import Supervisor
from agentlightning.platform.learning.weights import Weights
from agentlightning.platform.limits import Limiter, MemoryLimiter, RedisLimiter
from agentlightning.platform.masking import Masking, policy_of
from agentlightning.platform.memory.service import MemoryService
from agentlightning.platform.metrics import Metrics
from agentlightning.platform.model_calls import GatewayChat
from agentlightning.platform.models_config import WAYS, ModelNotConfiguredError
from agentlightning.platform.mounts import ModelSetup
from agentlightning.platform.outage import Outage, Probe
from agentlightning.platform.secrets import load_secrets
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.system.config import ConfigService
from agentlightning.platform.system.live import LiveSecrets
from agentlightning.platform.system.stored import StoredSecrets
from agentlightning.platform.tasks.evaluating import AgentActivity, TaskExecutor, judge_by
from agentlightning.platform.tasks.execution import Surroundings
from agentlightning.platform.tasks.models import Task
from agentlightning.platform.tasks.room import Tasks
from agentlightning.platform.tools.room import Tools
from agentlightning.schemas import Feedback
from agentlightning.store import LightningStore


class Platform:
    """Database, cache, limits and the services over them.

    Raises:
        ConfigError: A setting or secret cannot be used.
        MissingExtraError: A package that the settings need is missing.
    """

    def __init__(self, settings: PlatformSettings, setup: ModelSetup | None = None) -> None:
        secrets = load_secrets(settings)
        self.settings = settings
        self.setup = setup or ModelSetup()
        self.around = Surroundings()
        """What agents have around them: rooms add tools, memory, services."""
        self.tools = Tools(settings.home, self.around)
        self._tasks: Tasks | None = None
        self.models: Composition | None = None
        """Store, gateway and models; there while the app runs."""
        self.masking = Masking(policy_of(settings))
        self.database = Database(settings.location)
        self.database.info["mask"] = self.masking.details
        self.database_probe = Probe(self.database.ping)
        self.store_probe = Probe(lambda: self.store.get_rollout_by_id("health"))
        self.store_outage = Outage()
        self.cache: Cache = MemoryCache()
        self.limiter: Limiter = MemoryLimiter()
        self.redis: RedisLink | None = None
        if settings.redis_url is not None:
            self.redis = RedisLink(settings.redis_url.get_secret_value())
            self.cache, self.limiter = RedisCache(self.redis), RedisLimiter(self.redis)
        self.tokens = Tokens(secrets.jwt)
        self.secrets = StoredSecrets(self.database, Vaults(secrets.stored))
        self.live_secrets = LiveSecrets(settings, self.database, lambda: self._running.routes.upstreams)
        self.hasher = PasswordHasher()
        self.identifier = Identifier(self.database, self.cache, self.tokens)
        self.tickets = Tickets(self.database, self.cache)
        self.auth = AuthService(settings, self.database, self.cache, self.limiter, self.tokens, self.hasher)
        self.users = UserService(self.database, self.hasher, self.auth)
        self.keys = KeyService(self.database)
        self.agents = AgentService(self.database, self.cache)
        self.agent_states = AgentStates(self.agents, self.cache)
        self.evaluations = EvaluationService(self.database, self.agents, settings.task_lease_s)
        self.agent_metrics = AgentMetrics(self.agents, self.evaluations)
        chat = GatewayChat(lambda: self.gateway, self.default_model)
        self.evaluations.checker = Checker(run_python=sandboxed, ask=judge_by(chat))
        self.designer = Designer(chat, self.evaluations.checker)
        self.embedder = choose_embedder(settings)
        self.knowledge = KnowledgeService(self.database, self.cache, self.embedder, settings.home / "knowledge")
        self.experiments = ExperimentService(self.database, self.agents, settings.home)
        self.url = ""
        """Where this worker is reached from its own machine, once it is."""

        async def ask(prompt: str) -> str:
            if self.models is None:  # nothing runs but this
                raise ModelNotConfiguredError
            asked = [{"role": "user", "content": prompt}]
            return await chat.complete(asked, max_tokens=600, temperature=0.0)

        self.memory = MemoryService(self.database, self.embedder, ask)
        self.around.memory = self.memory
        self.around.services = lambda _: {"knowledge": self.knowledge}
        self.around.judged.append(self._grow_knowledge)
        self.metrics = Metrics()
        self.config = ConfigService(settings, self.database, self.cache)

    @property
    def store(self) -> LightningStore:
        """Where rollouts are kept.

        Raises:
            RuntimeError: The app does not run.
        """
        return self._running.store

    @property
    def gateway(self) -> Gateway:
        """Where agents reach models.

        Raises:
            RuntimeError: The app does not run.
        """
        return self._running.gateway

    @property
    def tasks(self) -> Tasks:
        """What users ask agents to do.

        Raises:
            RuntimeError: The app does not run.
        """
        if self._tasks is None:
            raise RuntimeError("The platform has not been started.")
        return self._tasks

    def start_tasks(self) -> Tasks:
        """Put them together over the models, which have to be there."""
        self._tasks = Tasks(
            self.settings,
            self.database,
            self.cache,
            self.redis,
            self.agents,
            self.metrics,
            self._running,
            self.setup,
            self.around,
            self.masking,
        )
        activity = AgentActivity(self.database)
        self.evaluations.executor = TaskExecutor(self._tasks.service, self._tasks.chooser, self.store)
        self.agent_states.workload, self.agent_metrics.tasks = activity.workload, activity.counts
        return self._tasks

    async def default_model(self) -> str | None:
        """The model for what names none; `None` without one."""
        return await self.tasks.chooser.default()

    def supervisor(self) -> Supervisor:
        """Runs experiments, once the models and tasks are there."""
        weights = self.experiments.weights = Weights(self._running, self.tasks.chooser)
        return Supervisor(
            self.settings,
            self.database,
            self.agents,
            self.experiments,
            self.keys,
            weights,
            lambda: self.url,
            self.masking,
        )

    def about_models(self) -> list[str]:
        """What to tell about the models, a line each."""
        if self.setup.is_configured:
            served = [f"model {name}" for name in self._running.routes.names()]
            return [*served, *self._running.fronted]
        able = ", ".join(name for name in shipped_names() if shipped(name).fallback is not None)
        return [f"no model is configured; on the embedded one work: {able}. To configure one:", *WAYS]

    async def _grow_knowledge(self, who: Identity, task: Task, agent: str, feedback: Feedback) -> None:
        """What was judged good by somebody who may write knowledge becomes some: others will read it."""
        if task.result is None or not may(who.role, who.scopes, "knowledge:write"):
            return
        judged = TaskResult(
            task_id=task.id,
            task=task.task_description,
            result=str(task.result.get("output", "")),
            score=feedback.normalized_score,
            agent=agent,
            rollout_id=task.rollout_id,
            author=who.username,
        )
        await self.knowledge.grow_from(judged)

    @property
    def _running(self) -> Composition:
        if self.models is None:
            raise RuntimeError("The platform has not been started.")
        return self.models

    async def close(self) -> None:
        """Let go of everything."""
        await self.database_probe.close()
        await self.store_probe.close()
        await self.evaluations.close()
        await self.knowledge.close()
        self.hasher.close()
        await self.cache.close()
        await self.database.close()


def platform_of(state: State) -> Platform:
    """The platform of an app, from `request.app.state`."""
    return state.platform
