"""What an experiment can be: its algorithms and their settings, and why others are refused. Knows no database."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from agentlightning.config import GRPOConfig, SFTConfig
from agentlightning.kit.errors import AgentLightningError, ConfigError

PROMPTS = ("auto", "apo", "gepa", "fewshot", "edit")
"""Those that improve an agent's prompt."""
WEIGHTS = ("grpo", "sft")
"""Those that train the model of an agent, where its weights are here."""
ALGORITHMS = (*PROMPTS, *WEIGHTS)
_OWN_WAY = "Train weights with grpo or sft, prompts with auto; an algorithm of your own runs over the store: @agl.algo."
_NO_POLICIES = "policies of decisions (which action to take) are not trained on the platform"
_ELSEWHERE = {
    "ppo": (_NO_POLICIES, _OWN_WAY),
    "dqn": (_NO_POLICIES, _OWN_WAY),
    "sac": (_NO_POLICIES, _OWN_WAY),
    "dpo": ("it learns from preferences", "Run: agl train --algorithm dpo"),
}
SYSTEM_PROMPT = "system_prompt"
_BUDGETS = ("budget_calls", "budget_tokens", "proposer_model")
_MAX_ROLLOUTS = 4_096
"""Of a step."""


class AlgorithmNotAvailableError(ConfigError):
    """The platform does not run this algorithm, or not for this agent."""

    code = "ALGORITHM_NOT_AVAILABLE"
    status = 422


class ExperimentConfig(BaseModel):
    """How an experiment is run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    budget_calls: int = Field(default=300, ge=1, le=1_000_000)
    """Model calls at most, those of the comparison at the end included. For prompts."""
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    """For prompts."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """The agent's model during the experiment; by default its own, or the platform's."""
    proposer_model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """Writes new prompts; by default the agent's model."""
    seed: int = Field(default=0, ge=0, le=2**31)
    settings: dict[str, int | float | bool | str] = Field(
        default_factory=dict[str, int | float | bool | str], max_length=30
    )
    """Settings of the algorithm, e.g. `{"beam_width": 2}`, or `{"steps": 20}` for `grpo`."""

    def without_budgets(self) -> ExperimentConfig:
        """The same without what has an effect on prompts only."""
        return ExperimentConfig.model_validate(self.model_dump(exclude_unset=True, exclude=set(_BUDGETS)))

    def as_kept(self, algorithm: str) -> dict[str, Any]:
        """What is kept of it."""
        return self.model_dump(exclude_none=True, exclude=set(_BUDGETS) if algorithm in WEIGHTS else None)


def check_algorithm(name: str, config: ExperimentConfig) -> None:
    """Whether an experiment with it could begin, for some agent.

    Raises:
        AlgorithmNotAvailableError: There is no such algorithm here.
        ConfigError: It does not have such a setting.
    """
    if name not in ALGORITHMS:
        why, way = _ELSEWHERE.get(name, ("", ""))
        raise AlgorithmNotAvailableError(
            f"The platform does not run {name!r}{why and f': {why}'}.",
            hint=way or f"It runs: {', '.join(ALGORITHMS)}.",
            details={"algorithms": list(ALGORITHMS)},
        )
    try:
        if name in WEIGHTS:
            _check_weights(name, config)
        else:
            _check_prompts(name, config)
    except AgentLightningError as error:
        raise ConfigError(error.message, hint=error.hint) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"A setting of {name} cannot be used: {error}.") from error


def _check_prompts(name: str, config: ExperimentConfig) -> None:
    from agentlightning.algorithm.prompt import Budget, make_optimizer

    make_optimizer(name, budget=Budget(calls=config.budget_calls), **config.settings)


def _check_weights(name: str, config: ExperimentConfig) -> None:
    unused = [field for field in _BUDGETS if field in config.model_fields_set]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)} has no effect on {name}, which trains weights.",
            hint="settings say how much is done: steps, prompts_per_step, group_size of grpo; epochs of sft.",
        )
    given: dict[str, Any] = dict(config.settings)
    if name == "sft":
        SFTConfig(**given)
        return
    made = GRPOConfig(**given)
    if made.prompts_per_step * made.group_size > _MAX_ROLLOUTS:
        raise ConfigError(f"A step has {_MAX_ROLLOUTS} rollouts at most (prompts_per_step x group_size).")
