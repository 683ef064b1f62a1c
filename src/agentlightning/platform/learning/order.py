"""What a process that runs an experiment is told. Pure data, quick to import."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from agentlightning.platform.learning.algorithms import ExperimentConfig
from agentlightning.schemas.agent import AgentDefinition

STOPPED_CODE = 130
"""Its exit code when it was stopped."""


class Trained(BaseModel):
    """The weights to train, where an experiment trains some."""

    model_config = ConfigDict(extra="forbid")

    path: str
    """Directory or hub id of what it begins with."""
    device: str
    style: str | None
    """The conversation that the model knows, if it is not the agent's own."""
    name: str
    """The registered model that the result becomes a version of."""


class Job(BaseModel):
    """What to do."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    home: Path
    store: str
    definition: AgentDefinition
    algorithm: str
    config: ExperimentConfig
    model: str
    """Answers the agent; where weights are trained, it judges answers, and may be empty."""
    base_url: str
    api_key: str
    permissions: list[str]
    weights: Trained | None = None
