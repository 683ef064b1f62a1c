"""`training_config.ini` and the `TONGYI_*` variables as typed settings. Knows no agent.

Precedence: what the caller says (a flag, an argument), then `TONGYI_*` variables, then the file, then the defaults.
"""

from __future__ import annotations

import configparser
import difflib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentlightning.kit.errors import ConfigError

logger = logging.getLogger(__name__)

CONFIG_FILE = "training_config.ini"
PREFIX = "TONGYI_"
Mode = Literal["prompt", "rl", "sft"]
MODES: tuple[Mode, ...] = get_args(Mode)
Target = Literal["research_efficiency", "response_quality", "tool_usage", "response_speed"]
AgentType = Literal["tongyi", "claude"]
AGENT_TYPES: tuple[AgentType, ...] = get_args(AgentType)
_SHORT = {
    "TONGYI_TRAINING_PATH": ("training", "training_data_path"),
    "TONGYI_MODEL": ("agent", "model"),
    "TONGYI_BASE_URL": ("agent", "base_url"),
}
"""Variables beside `TONGYI_<SECTION>_<KEY>`, which every key has."""
_OTHERS = frozenset({"TONGYI_CONFIG"})
_QUOTED = re.compile(r"""^(["'])(.*?)\1\s*(?:[#;].*)?$""")
_COMMENT = re.compile(r"(?:^|\s)[#;].*$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AgentSection(_Strict):
    """Which agent, and how long it may work."""

    agent_type: AgentType = "tongyi"
    model: str | None = None
    """Name of the model; without it `OPENAI_MODEL`, else the only one that the server has."""
    base_url: str | None = None
    """OpenAI-compatible server with `/v1`; without it `OPENAI_BASE_URL`."""
    workspace: Path = Path()
    """Folder that Read, Grep and Glob see."""
    max_steps: int = Field(default=12, ge=1, le=200)
    """Model calls of the research loop, the plan and the verification not counted."""
    timeout_s: float = Field(default=300.0, gt=0)
    """The longest that one query may take."""


class TrainingSection(_Strict):
    """Whether interactions are kept, where, and what they are for."""

    enabled: bool = False
    mode: Mode = "prompt"
    training_data_path: Path = Path(".tongyi_training")
    auto_save_interval: int = Field(default=10, ge=1)
    """Interactions after which the journal is folded into the training data."""
    chunk_size: int = Field(default=500, ge=1)
    """Interactions in one file."""
    local_model: str | None = None
    """Folder or hub id of an open model whose weights may be trained (modes `rl` and `sft`)."""


class PromptOptimizationSection(_Strict):
    """How prompts are improved."""

    iterations: int = Field(default=100, ge=1)
    """Runs of the agent that an optimisation may pay for, in model calls of a typical one."""
    optimization_target: Target = "research_efficiency"
    use_history: bool = True
    """Optimise on the queries of the training data."""
    history_size: int = Field(default=50, ge=1)
    """The most recent interactions that are used."""
    optimizer: str = "apo"
    """`apo`, `gepa`, `auto`, `fewshot` or `edit`. The last three write demonstrations into the prompts; they take them
    from a rollout's last model call, which in this agent is the verification, with markers of sources long gone."""


class PerformanceSection(_Strict):
    """Goals: `--training-stats` marks what misses them."""

    max_response_time: float = Field(default=30.0, gt=0)
    """Seconds."""
    min_success_rate: float = Field(default=0.8, ge=0, le=1)
    min_tool_efficiency: float = Field(default=0.6, ge=0, le=1)


class ExperimentsSection(_Strict):
    """Comparing the standard prompts with the optimised ones at work."""

    enable_ab_testing: bool = False
    control_ratio: float = Field(default=0.5, gt=0, lt=1)
    experiment_duration: int = Field(default=100, ge=2)


class ScheduleSection(_Strict):
    """When an optimisation starts by itself."""

    schedule: Literal["manual", "periodic", "cron"] = "manual"
    periodic_interval: int = Field(default=100, ge=1)
    cron: str | None = None
    trigger_on_performance_drop: bool = False
    performance_threshold: float = Field(default=0.7, ge=0, le=1)
    window: int = Field(default=20, ge=1)
    """Rewards that the mean is taken over which is compared with the threshold."""

    @model_validator(mode="after")
    def _check_cron(self) -> ScheduleSection:
        if (self.cron is not None) != (self.schedule == "cron"):
            raise ValueError('schedule = "cron" and cron = "0 3 * * *" belong together')
        return self


class TongyiConfig(_Strict):
    """Everything. Sections are those of the file."""

    agent: AgentSection = Field(default_factory=AgentSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    prompt_optimization: PromptOptimizationSection = Field(default_factory=PromptOptimizationSection)
    performance_metrics: PerformanceSection = Field(default_factory=PerformanceSection)
    experiments: ExperimentsSection = Field(default_factory=ExperimentsSection)
    optimization_schedule: ScheduleSection = Field(default_factory=ScheduleSection)

    def changed(self, **sections: Mapping[str, Any]) -> TongyiConfig:
        """With other values: `changed(training={"mode": "rl"})`. `None` changes nothing.

        Raises:
            ConfigError: A key is unknown or a value wrong.
        """
        given = {name: {k: v for k, v in values.items() if v is not None} for name, values in sections.items()}
        return _built(_merged(self, given), base=self, source="the arguments")


_SECTIONS: dict[str, type[BaseModel]] = {
    "agent": AgentSection,
    "training": TrainingSection,
    "prompt_optimization": PromptOptimizationSection,
    "performance_metrics": PerformanceSection,
    "experiments": ExperimentsSection,
    "optimization_schedule": ScheduleSection,
}


def load_config(path: Path | str | None = None, environment: Mapping[str, str] | None = None) -> TongyiConfig:
    """Settings from the file and the environment.

    Args:
        path: The file; without it `TONGYI_CONFIG`, else `training_config.ini` of the working folder, if there is one.
        environment: `os.environ` by default.

    Raises:
        ConfigError: The file that was named is missing, or something in it, or in a variable, is wrong.
    """
    variables = os.environ if environment is None else environment
    named = path or variables.get("TONGYI_CONFIG")
    file = Path(named or CONFIG_FILE)
    if named and not file.is_file():
        raise ConfigError(f"There is no configuration {file}.", hint="Check --config, or leave it out.")
    values = read_file(file) if file.is_file() else {}
    config = _built(values, base=TongyiConfig(), source=str(file))
    return _built(_merged(config, read_environment(variables)), base=config, source="the TONGYI_* variables")


def read_file(path: Path) -> dict[str, dict[str, str]]:
    """Sections of an ini file; values may be quoted, and may be followed by a comment.

    Raises:
        ConfigError: It is no ini file, or it has sections or keys that are not known; the nearest ones are named.
    """
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no configuration: {str(error).replace(chr(10), ' ')}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    for section in parser.sections():
        if section not in _SECTIONS:
            raise _unknown(f"{path}: section [{section}]", section, list(_SECTIONS))
        known = list(_SECTIONS[section].model_fields)
        for key in parser[section]:
            if key not in known:
                raise _unknown(f"{path}: {key} in [{section}]", key, known)
    return {name: {key: unquoted(value) for key, value in parser[name].items()} for name in parser.sections()}


def read_environment(variables: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Sections from `TONGYI_*` variables; empty ones count as not set. One that nothing reads is warned of."""
    known = {f"{PREFIX}{s}_{k}".upper(): (s, k) for s, model in _SECTIONS.items() for k in model.model_fields}
    known |= _SHORT
    found: dict[str, dict[str, str]] = {}
    for name, value in variables.items():
        if name in known and value:
            section, key = known[name]
            found.setdefault(section, {})[key] = value
        elif name.startswith(PREFIX) and name not in known and name not in _OTHERS:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if close:
                logger.warning("The variable %s is not read; is it meant to be %s?", name, close[0])
    return found


def unquoted(value: str) -> str:
    """A value without its quotes and without the comment behind it."""
    quoted = _QUOTED.match(value.strip())
    return quoted[2] if quoted else _COMMENT.sub("", value).strip()


def _merged(config: TongyiConfig, values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {**(getattr(config, name).model_dump() if name in _SECTIONS else {}), **section}
        for name, section in values.items()
    }


def _built(values: Mapping[str, Mapping[str, Any]], *, base: TongyiConfig, source: str) -> TongyiConfig:
    sections: dict[str, Any] = {}
    for name, section in values.items():
        if name not in _SECTIONS:
            raise _unknown(f"{source}: section {name}", name, list(_SECTIONS))
        model = _SECTIONS[name]
        for key in section:
            if key not in model.model_fields:
                raise _unknown(f"{source}: {key} in [{name}]", key, list(model.model_fields))
        try:
            sections[name] = model.model_validate(dict(section))
        except ValidationError as error:
            faults = "; ".join(_fault(name, fault) for fault in error.errors())
            raise ConfigError(f"{source}: {faults}.") from error
    return base.model_copy(update=sections)


def _fault(section: str, fault: Any) -> str:
    key = ".".join(map(str, fault["loc"]))
    given = f" (got {fault['input']!r})" if key else ""
    return f"[{section}] {key}{': ' if key else ''}{fault['msg']}{given}"


def _unknown(what: str, name: str, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return ConfigError(f"{what} is not known; the nearest is {close[0]!r}.", hint=f"Known: {', '.join(known)}.")
