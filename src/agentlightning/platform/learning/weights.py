"""The weights that experiments train: which model an agent's are, where the result goes, into use and back again.

An agent's trained models are versions of one registered model of its own, so that no other agent changes with it.
Imports no torch: engines are processes of their own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from agentlightning.kit.errors import AgentLightningError, BadInputError, ConflictError, NotFoundError
from agentlightning.modelservice.composition import Composition
from agentlightning.platform.agents.models import Agent
from agentlightning.platform.learning.algorithms import ALGORITHMS, AlgorithmNotAvailableError, ExperimentConfig
from agentlightning.platform.learning.models import Experiment
from agentlightning.platform.models_config import ModelNotConfiguredError
from agentlightning.platform.mounts import TRAINED
from agentlightning.platform.tasks.choice import Choice, ModelChooser
from agentlightning.schemas.agent import AgentDefinition, Fallback

log = logging.getLogger(__name__)

BASE, MODEL = "base", "model"
"""Kinds of checkpoints: what an experiment begins with, and the version that came out."""
_PACKAGES = ("torch", "transformers", "safetensors")
_NAME_CHARS = 64


class Base(BaseModel):
    """What an experiment begins with, and where its result goes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    """Under this name the agent reaches it."""
    version: str
    """Which version it is: `name@v3`, or `base` for weights that are no version."""
    style: str | None = None
    """The conversation that it knows instead of the agent's prompt."""
    name: str
    """The registered model that results become versions of."""

    @property
    def is_own(self) -> bool:
        """Whether the agent runs on a version that an earlier experiment made."""
        return self.model == self.name


class Located(BaseModel):
    """Where weights are on this machine."""

    path: str
    """A directory or a hub id."""
    device: str


class Weights:
    """Over the models of a platform.

    Args:
        models: What is served, and the registry.
        chooser: Says which model an agent runs on.
    """

    def __init__(self, models: Composition, chooser: ModelChooser) -> None:
        self._models = models
        self._chooser = chooser

    async def base_of(self, agent: Agent, definition: AgentDefinition, model: str | None = None) -> Base:
        """The weights that an agent runs on.

        Args:
            agent: Who.
            definition: What it is.
            model: Instead of its own model.

        Raises:
            AlgorithmNotAvailableError: They are not here, or cannot be trained here.
            ModelNotConfiguredError: There is no model for it.
        """
        choice = await self._choice(definition, model)
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise _refused(
                f"Training weights needs the packages {', '.join(missing)}.",
                "Run: pip install 'agentlightning[learn]'; auto improves the prompt.",
            )
        try:
            served = self._models.service.get(choice.model)
        except NotFoundError as error:
            raise _refused(
                f"{agent.name} runs on {choice.model!r}, which another server has; its weights are not here.",
                "Serve the model here (agl up --model DIRECTORY), or improve the prompt: auto, apo, gepa.",
            ) from error
        if served.spec.adapter is not None:
            raise _refused(
                f"{choice.model!r} is served with an adapter, which is not trained on.",
                "Merge the adapter into the model, and serve that.",
            )
        version = (await asyncio.to_thread(self._models.service.source_of, choice.model)).version
        return Base(model=choice.model, version=version, style=choice.style, name=name_of(agent))

    async def trainable(self, agent: Agent, definition: AgentDefinition) -> Base | None:
        """As `base_of`, with `None` where that raises."""
        try:
            return await self.base_of(agent, definition)
        except AgentLightningError:
            return None

    async def judge(self) -> str | None:
        """The model that judges answers, as it does in evaluations; it is not the one that is being trained."""
        return await self._chooser.default()

    async def reader_of(self, definition: AgentDefinition, config: ExperimentConfig) -> str:
        """The model that reads an agent's prompt while that is improved.

        Raises:
            ModelNotConfiguredError: There is none, or none of the name of the proposer.
        """
        asked = definition.model_copy(update={"model": config.model or definition.model, "fallback": None})
        if config.proposer_model is not None:
            await self._chooser.choose(asked.model_copy(update={"model": config.proposer_model}))
        try:
            return (await self._chooser.choose(asked)).model
        except ModelNotConfiguredError as error:
            if definition.fallback is None or asked.model is not None:
                raise
            raise ModelNotConfiguredError(
                f"{definition.name} runs on the embedded model, which does not read its prompt (grpo and sft train "
                "that model), and no other is configured."
            ) from error

    async def _choice(self, definition: AgentDefinition, model: str | None) -> Choice:
        fallback = definition.fallback
        if model is not None and fallback is not None and model == fallback.model:
            definition = definition.model_copy(update={"model": model})
            return Choice((await self._chooser.choose(definition)).model, fallback.style)
        if model is not None:
            definition = definition.model_copy(update={"model": model, "fallback": None})
        return await self._chooser.choose(definition)

    async def locate(self, base: Base) -> Located:
        """Where its files are.

        Raises:
            NotFoundError: It is not served any more, or the version is gone.
        """
        spec = self._models.service.get(base.model).spec

        def path() -> str:
            found = self._models.service.find_source(base.version if "@" in base.version else spec.origin).path
            return str(Path(found).absolute()) if Path(found).is_dir() else found

        return Located(path=await asyncio.to_thread(path), device=spec.device)

    # -- into use and back -------------------------------

    async def promote(self, base: Base, ref: str, reason: str) -> None:
        """Put a version into production; calls go on meanwhile. Harmless when it is there.

        Raises:
            ConflictError: What it was compared with is not in production any more.
            NotFoundError: The version was deleted.
        """
        registry = self._models.service.registry

        def change() -> None:
            current = production(registry, base.name)
            if base.is_own and current not in (base.version, ref):
                raise ConflictError(
                    f"{current or 'No version'} is in production, not {base.version}, with which {ref} was compared.",
                    hint="Begin a new experiment.",
                )
            registry.promote(ref, reason=reason)

        await asyncio.to_thread(change)
        await self._follow()

    async def take_back(self, base: Base, ref: str, reason: str) -> None:
        """Put into production what was there before that version. Harmless when it is not there.

        Raises:
            NotFoundError: The version before was deleted.
        """
        registry = self._models.service.registry

        def change() -> None:
            if production(registry, base.name) != ref:
                return
            try:
                registry.rollback(base.name, reason=reason)
            except ConflictError:  # it was the first one
                registry.archive(ref, reason=reason, force=True)
            if base.is_own:
                registry.promote(base.version, reason=reason)

        await asyncio.to_thread(change)
        await self._follow()

    async def prune(self, name: str, keep: int) -> None:
        """Delete the oldest results that nobody applied; where the disk refuses, the next time does it.

        Args:
            name: The registered model of an agent.
            keep: So many of the newest stay.
        """
        registry = self._models.service.registry
        try:
            deleted = await asyncio.to_thread(registry.prune, name, keep=keep, reason="newer candidates")
        except (AgentLightningError, OSError) as error:
            log.warning("old candidates of %s cannot be deleted: %s", name, error)
            return
        if deleted:
            log.info("deleted candidates that were not applied: %s", ", ".join(version.ref for version in deleted))

    async def _follow(self) -> None:
        """Serve it here at once; other workers look by themselves."""
        self._models.service.add_registered()
        await self._models.service.look()


def name_of(agent: Agent) -> str:
    """The registered model of an agent."""
    return f"{TRAINED}{agent.id}-{agent.name}"[:_NAME_CHARS]


def production(registry: Any, name: str) -> str | None:
    """The version in production, if there is one."""
    return next((version.ref for version in registry.versions(name) if version.stage == "production"), None)


def on_weights(definition: AgentDefinition, base: Base) -> dict[str, Any]:
    """What changes in a definition so that it runs on the results of `base`."""
    if base.style is None or definition.fallback is None:
        return {"model": base.name}
    return {"fallback": Fallback(model=base.name, style=definition.fallback.style)}


def base_in(experiment: Experiment) -> Base | None:
    """What an experiment that trains weights began with."""
    found = _newest(experiment, BASE)
    return None if found is None else Base.model_validate(found)


def result_in(experiment: Experiment) -> str | None:
    """The version that came out of it, `name@v3`."""
    found = _newest(experiment, MODEL)
    return None if found is None else str(found[MODEL])


def check_judge(definition: AgentDefinition, judge: str | None) -> None:
    """See that somebody can tell right from wrong.

    Raises:
        BadInputError: The agent's evaluator is a judge, and there is no model for it.
    """
    if definition.evaluator.kind == "judge" and judge is None:
        raise BadInputError(
            f"A model judges the answers of {definition.name}, and there is none besides the one to be trained.",
            hint="Configure one (AGL_DEFAULT_MODEL), or give the agent an evaluator that needs none.",
        )


def _newest(experiment: Experiment, kind: str) -> dict[str, Any] | None:
    return next((each for each in reversed(experiment.checkpoints) if each.get("kind") == kind), None)


def _refused(message: str, hint: str) -> AlgorithmNotAvailableError:
    return AlgorithmNotAvailableError(message, hint=hint, details={"algorithms": list(ALGORITHMS)})
