"""Training Camp: its exported sessions in, better agent definitions out."""

from agentlightning.integrations.training_camp.exporting import (
    Improvement,
    improved,
    prompts_of,
    write_export,
)
from agentlightning.integrations.training_camp.importing import (
    ImportCounts,
    import_camp,
    rollout_id_of,
    session_id_of,
)
from agentlightning.integrations.training_camp.reading import Camp, CampAttempt, load_export, read_export
from agentlightning.integrations.training_camp.schema import json_schema

__all__ = [
    "Camp",
    "CampAttempt",
    "ImportCounts",
    "Improvement",
    "import_camp",
    "improved",
    "json_schema",
    "load_export",
    "prompts_of",
    "read_export",
    "rollout_id_of",
    "session_id_of",
    "write_export",
]
