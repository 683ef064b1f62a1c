"""What an agent is, as data: role, prompt, tools, how it is checked and how it learns. Runs nothing.

Nothing in a definition is ever executed or filled in as a template: a prompt with `{braces}` is a prompt with braces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from agentlightning.schemas.evaluator import EvaluationCase, Evaluator, JudgeEvaluator, problem_with
from agentlightning.schemas.plain import Many, plain_json, stripped

TOOL_NAMES = ("python", "web_search", "web_browse", "files", "database", "http", "knowledge")
"""The tools that come with the platform; `mcp:SERVER` is all of a configured MCP server's, `mcp:SERVER:TOOL` one."""
_MCP = "mcp:"
_SLUG = r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$"

AgentName = Annotated[str, StringConstraints(pattern=_SLUG, max_length=64)]
Slug = Annotated[str, StringConstraints(pattern=_SLUG, max_length=64)]
Words = Annotated[str, StringConstraints(min_length=1, max_length=2_000), AfterValidator(stripped)]

TaskType = Literal["code_generation", "data_analysis", "content_creation", "research", "customer_service"]
Complexity = Literal["low", "medium", "high"]
LearningAlgorithm = Literal["ppo", "dqn", "sac", "grpo", "prompt", "monitor"]

DECISION_MATRIX: Mapping[TaskType, tuple[Complexity, str, float, LearningAlgorithm]] = MappingProxyType(
    {
        "code_generation": ("high", "accuracy", 0.80, "ppo"),
        "data_analysis": ("medium", "accuracy", 0.85, "dqn"),
        "content_creation": ("medium", "quality", 0.75, "sac"),
        "research": ("high", "relevance", 0.70, "ppo"),
        "customer_service": ("low", "satisfaction", 0.90, "monitor"),
    }
)
"""Task type to complexity, metric, the value below which learning starts, and the algorithm that is used then."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Learning(_Data):
    """When and how an agent learns; what is not given is the decision matrix's answer for its kind of task."""

    model_config = ConfigDict(json_schema_extra={"required": ["task_type"]})

    task_type: TaskType
    complexity: Complexity
    metric: Slug
    threshold: float = Field(gt=0, le=1)
    """Below this value of the metric learning is worth it."""
    algorithm: LearningAlgorithm
    """`monitor` only watches."""
    min_cases: int = Field(default=5, ge=1)
    """So many scored results have to be there before anything is decided."""

    @model_validator(mode="before")
    @classmethod
    def _by_matrix(cls, given: Any) -> Any:
        kind = given.get("task_type") if isinstance(given, dict) else None
        line = DECISION_MATRIX.get(kind) if isinstance(kind, str) else None  # pyright: ignore[reportArgumentType, reportCallIssue]
        if line is None:
            return given
        defaults = dict(
            zip(
                ("complexity", "metric", "threshold", "algorithm"),
                line,
                strict=True,
            )
        )
        return {**defaults, **given}


class Fallback(_Data):
    """What the agent runs on while no model is configured."""

    model: Annotated[str, StringConstraints(pattern=r"^(nano|agent-[0-9]+-[a-z0-9_]+)$", max_length=64)]
    """The embedded model, `nano`, or one that an experiment trained from it."""
    style: Literal["text_to_sql"]
    """The conversation that this model knows, instead of the agent's own prompt."""


class Example(_Data):
    """An example shown to the model before the task."""

    input: Words
    output: Words


class AgentDefinition(_Data):
    """An agent. Valid definitions can be kept, exported and run; what is unknown is refused."""

    name: AgentName
    """E.g. `code_agent`."""
    type: Slug
    """The family that the agent belongs to, e.g. `code`."""
    description: Words
    """What to use it for, in a sentence or two."""
    role: Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(stripped)]
    """Who it is, in a few words."""
    system_prompt: Annotated[str, StringConstraints(max_length=32_000)]
    tools: Many[str] = ()
    capabilities: Annotated[Many[Slug], Field(min_length=1, max_length=50)]
    """What it can be asked for; tasks without a named agent are assigned by these."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """`None` is the configured default."""
    fallback: Fallback | None = None
    temperature: float = Field(default=0.2, ge=0, le=2)
    max_steps: int = Field(default=8, ge=1, le=100)
    """Model calls at most."""
    timeout_s: float = Field(default=120.0, gt=0, le=3600)
    evaluator: Evaluator = Field(default_factory=lambda: JudgeEvaluator(rubric="Is the task done, and is it right?"))
    evaluation: Annotated[Many[EvaluationCase], Field(max_length=1_000)] = ()
    learning: Learning = Field(default_factory=lambda: Learning.model_validate({"task_type": "content_creation"}))
    few_shot: Annotated[Many[Example], Field(max_length=20)] = ()

    @field_validator("system_prompt")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the system prompt is empty")
        return value

    @field_validator("tools")
    @classmethod
    def _known_tools(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in TOOL_NAMES and not _is_server(name)]
        if unknown:
            raise ValueError(
                f"unknown tool{'s' if len(unknown) > 1 else ''}: {', '.join(map(repr, unknown))}; "
                f"there are {', '.join(TOOL_NAMES)}, and {_MCP}SERVER for a configured MCP server"
            )
        return _once("tool", value)

    @field_validator("capabilities")
    @classmethod
    def _distinct_capabilities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _once("capability", value)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        plain_json(self.model_dump(mode="json"))
        for number, case in enumerate(self.evaluation):
            problem = problem_with(self.evaluator, case)
            if problem is not None:
                raise ValueError(f"evaluation case {number}: the evaluator is {self.evaluator.kind!r}: {problem}")
        return self

    def cases(self, split: Literal["train", "held_out"] | None = None) -> tuple[EvaluationCase, ...]:
        """The evaluation cases of a split, or all."""
        return tuple(case for case in self.evaluation if split in (None, case.split))


def _is_server(name: str) -> bool:
    parts = name.removeprefix(_MCP).split(":")
    plain = all(part.replace("-", "").replace("_", "").isalnum() and part.isascii() for part in parts)
    return name.startswith(_MCP) and plain and len(parts) <= 2 and len(name) <= 128


def _once(what: str, value: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name, count in Counter(value).items() if count > 1]
    if twice:
        raise ValueError(f"the {what} {twice[0]!r} is given twice")
    return value
