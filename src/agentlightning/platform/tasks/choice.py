"""Which model an agent runs on: its own, the configured default, or the embedded one if it can. Loads nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

from agentlightning.gateway import CallError
from agentlightning.kit.errors import NotFoundError
from agentlightning.modelservice.composition import Composition
from agentlightning.modelservice.source import UNVERSIONED
from agentlightning.platform.models_config import ModelNotConfiguredError
from agentlightning.platform.mounts import EMBEDDED, TRAINED, ModelSetup
from agentlightning.platform.settings import PlatformSettings
from agentlightning.schemas.agent import AgentDefinition

_LISTED_FOR_S = 30.0


@dataclass(frozen=True)
class Choice:
    """A model's name, and how to talk to it if not by the agent's own prompt."""

    model: str
    style: str | None = None
    version: str | None = None
    """Which registered version answers under that name, where it is one: `name@v3`."""


class ModelChooser:
    """Chooses among the models of a platform.

    Args:
        models: What is served.
        setup: What was configured.
        settings: Say the model of agents that name none; it may change while the platform runs.
    """

    def __init__(self, models: Composition, setup: ModelSetup, settings: PlatformSettings) -> None:
        self._models = models
        self._setup = setup
        self._settings = settings
        self._listed: tuple[float, str | None] = (0.0, None)

    async def choose(self, agent: AgentDefinition) -> Choice:
        """The model for an agent.

        Raises:
            ModelNotConfiguredError: There is none that it works on.
        """
        wanted = agent.model or await self.default()
        if wanted is not None and self._is_served(wanted):
            return Choice(wanted, version=self._version_of(wanted))
        if agent.fallback is not None and self._is_served(agent.fallback.model):
            own = agent.fallback.model
            return Choice(own, agent.fallback.style, self._version_of(own))
        if wanted is not None:
            raise ModelNotConfiguredError(f"{agent.name} needs the model {wanted!r}, which nobody serves here.")
        if self._setup.is_configured:
            raise ModelNotConfiguredError("Which of the models agents use has not been said (AGL_DEFAULT_MODEL).")
        raise ModelNotConfiguredError(f"No model is configured, and {agent.name} does not work on the embedded one.")

    async def default(self) -> str | None:
        """The model of agents that name none."""
        if self._settings.default_model is not None:
            return self._settings.default_model
        if self._setup.specs:
            return self._setup.specs[0].name
        own = [name for name in self._models.routes.names() if _is_for_all(name)]
        if own:
            return own[0]
        return await self._only_one() if self._setup.fronts.any else None

    def _is_served(self, name: str) -> bool:
        if not self._is_routed(name) and name.startswith(TRAINED):
            self._models.service.add_registered()  # another worker may have promoted it a moment ago
        return self._is_routed(name)

    def _is_routed(self, name: str) -> bool:
        try:
            self._models.routes.find(name)
        except CallError:
            return False
        return True

    def _version_of(self, name: str) -> str | None:
        try:
            version = self._models.service.source_of(name).version
        except NotFoundError:  # it is behind another server
            return None
        return None if version == UNVERSIONED else version

    async def _only_one(self) -> str | None:
        """What the servers behind the gateway have, if it is one model."""
        at, name = self._listed
        if time.monotonic() - at > _LISTED_FOR_S or not at:
            found = [each for each in await self._models.routes.list_models() if _is_for_all(each)]
            name = found[0] if len(found) == 1 else None
            self._listed = (time.monotonic(), name)
        return name


def _is_for_all(name: str) -> bool:
    return name != EMBEDDED and not name.startswith(TRAINED)
