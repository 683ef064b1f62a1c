"""What Training Camp exports, as data: a session, its lineages, agents, payloads and events. Knows no files, no store.

Keys are camelCase in files. `json_schema()` is the published description; every message of a refusal names the place.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from agentlightning.schemas.feedback import SCORE_MAX, SCORE_MIN, Thumb

FORMAT = "training-camp"
VERSION = 1
SCHEMA_ID = "https://agent-lightning.dev/schemas/training-camp-1.json"

Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f/]+$")]
Content = Any
"""A value, or `{"$payload": "sha256:…"}` for one that stands under `payloads`."""


class Part(BaseModel):
    """Base: unknown keys are kept, so that what a newer export says is not lost on the way back."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow", frozen=True)


class CampSession(Part):
    """What the person wanted, and when."""

    id: Id
    name: str | None = None
    need: str | None = None
    """What the lineages are developed for, in the person's words."""
    created_at: AwareDatetime | None = None


class CampLineage(Part):
    """One of the agents developed side by side."""

    id: Id
    label: str | None = None
    """`A`, `B`, …"""
    agent_id: Id
    locked: bool = False


class CampAgent(Part):
    """One version of an agent's definition."""

    id: Id
    version: int = Field(default=1, ge=0)
    name: str
    description: str = ""
    system_prompt: str = Field(min_length=1)
    prompts: dict[str, str] = Field(default_factory=dict[str, str])
    """Further prompts by name."""
    tools: tuple[Any, ...] = ()
    model: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])
    """`temperature`, `maxSteps`, …"""
    parent_version: int | None = None


class CampSpan(Part):
    """A step of an attempt."""

    id: Id
    parent_id: Id | None = None
    name: str
    kind: Literal["llm", "tool", "agent", "step"] = "step"
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    input: Content = None
    """Of `llm`: the messages; of `tool`: the arguments."""
    output: Content = None
    """Of `llm`: the answer's message or its text; of `tool`: the result."""
    error: str | None = None
    model: str | None = None
    input_tokens: int | None = Field(default=None, ge=0)
    output_tokens: int | None = Field(default=None, ge=0)
    attributes: dict[str, Any] = Field(default_factory=dict[str, Any])


class CampArtifact(Part):
    """What an attempt made, to be scored."""

    id: Id
    kind: str = "text"
    content: Content = None


class AttemptCompleted(Part):
    """Payload of `attempt.completed`."""

    attempt_id: Id
    lineage_id: Id | None = None
    agent_id: Id
    agent_version: int = Field(default=1, ge=0)
    cycle: int = Field(default=0, ge=0)
    input: Content
    output: Content = None
    status: Literal["succeeded", "failed"] = "succeeded"
    error: str | None = None
    started_at: AwareDatetime
    ended_at: AwareDatetime
    spans: tuple[CampSpan, ...] = ()
    artifacts: tuple[CampArtifact, ...] = ()


class ArtifactScored(Part):
    """Payload of `artifact.scored`."""

    artifact_id: Id
    score: float = Field(ge=SCORE_MIN, le=SCORE_MAX, allow_inf_nan=False)
    """From 0, worst, to 10."""
    comment: str | None = None
    author: str | None = None


class FeedbackGiven(Part):
    """Payload of `feedback.given`."""

    attempt_id: Id
    thumb: Thumb | None = None
    comment: str | None = None
    author: str | None = None


class LineageLocked(Part):
    """Payload of `lineage.locked` and `lineage.unlocked`."""

    lineage_id: Id
    author: str | None = None


class AgentEvolved(Part):
    """Payload of `agent.evolved`: an agent got a new definition."""

    agent_id: Id
    from_version: int = Field(ge=0)
    to_version: int = Field(ge=0)
    evidence: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Scores before and after, and how they were measured."""


class CampEvent(Part):
    """Something that happened. Events of a type that is not known here are kept and counted, not read."""

    id: Id
    event_type: str = Field(min_length=1)
    created_at: AwareDatetime
    payload: dict[str, Any]


PAYLOADS: dict[str, type[Part]] = {
    "attempt.completed": AttemptCompleted,
    "artifact.scored": ArtifactScored,
    "feedback.given": FeedbackGiven,
    "lineage.locked": LineageLocked,
    "lineage.unlocked": LineageLocked,
    "agent.evolved": AgentEvolved,
}
"""What the events that are read carry."""


class CampExport(Part):
    """One session, whole."""

    format: Literal["training-camp"] = FORMAT
    version: Literal[1] = VERSION
    exported_at: AwareDatetime | None = None
    session: CampSession
    lineages: tuple[CampLineage, ...] = ()
    agents: tuple[CampAgent, ...] = Field(min_length=1)
    payloads: dict[str, str] = Field(default_factory=dict[str, str])
    """Large texts by `sha256:` and the hash of their UTF-8 bytes; each stands here once."""
    events: tuple[CampEvent, ...] = ()


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of an export, the payload of each event type included."""
    found = CampExport.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    definitions = found["$defs"]
    for model in {id(model): model for model in PAYLOADS.values()}.values():
        own = model.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        definitions[model.__name__] = own
    definitions["CampEvent"]["allOf"] = [
        {
            "if": {"properties": {"eventType": {"const": kind}}},
            "then": {"properties": {"payload": {"$ref": f"#/$defs/{model.__name__}"}}},
        }
        for kind, model in PAYLOADS.items()
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **found}


def seconds(moment: datetime) -> float:
    """Unix seconds, UTC."""
    return moment.timestamp()
