"""What a process that runs an experiment is told. Pure data, quick to import."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from agentlightning.platform.learning.service import ExperimentConfig
from agentlightning.schemas.agent import AgentDefinition

STOPPED_CODE = 130
"""Its exit code when it was stopped."""


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
    base_url: str
    api_key: str
    permissions: list[str]
