"""`get_training_manager()`: agents that learn, their data, their optimisation, sessions. Knows no command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlightning.integrations.tongyi.config import AGENT_TYPES, MODES, TongyiConfig, load_config
from agentlightning.integrations.tongyi.optimized_agent import OptimizedAgent, ResearchError
from agentlightning.integrations.tongyi.records import TrainingData
from agentlightning.integrations.tongyi.stats import Statistics, statistics_of
from agentlightning.integrations.tongyi.tools import Toolset
from agentlightning.kit.bridge import run_sync
from agentlightning.kit.errors import AgentLightningError, BadInputError, ConfigError, NotFoundError
from agentlightning.schemas import LLM

if TYPE_CHECKING:
    from agentlightning.integrations.tongyi.optimization import Outcome, Report

logger = logging.getLogger(__name__)
NO_DATA = "No training data found. Run with --train to generate training data first."


class TrainingManager:
    """Everything around the agents of one configuration.

    Args:
        config: The settings.
    """

    def __init__(self, config: TongyiConfig) -> None:
        self.config = config

    def create_optimized_agent(
        self,
        agent_type: str | None = None,
        optimization_mode: str | None = None,
        enable_training: bool | None = None,
        *,
        agent_class: type[OptimizedAgent] | None = None,
        toolset: Toolset | None = None,
        llm: LLM | None = None,
    ) -> OptimizedAgent:
        """An agent; what is not said is as configured.

        Args:
            agent_type: `tongyi` or `claude`.
            optimization_mode: `prompt`, `rl` or `sft`.
            enable_training: Keep its interactions.
            agent_class: A subclass with its own reward or metrics.
            toolset: What it may use.
            llm: The model.

        Raises:
            BadInputError: There is no such type or mode.
            MissingExtraError: The Claude Agent SDK is not installed.
        """
        kind = agent_type or self.config.agent.agent_type
        if kind not in AGENT_TYPES:
            raise BadInputError(f"There is no agent type {kind!r}.", hint=f"They are: {', '.join(AGENT_TYPES)}.")
        if optimization_mode is not None and optimization_mode not in MODES:
            raise BadInputError(f"There is no mode {optimization_mode!r}.", hint=f"They are: {', '.join(MODES)}.")
        config = self.config.changed(
            agent={"agent_type": kind}, training={"mode": optimization_mode, "enabled": enable_training}
        )
        return (agent_class or _form(kind))(config, toolset=toolset, llm=llm)

    def run_optimization(
        self,
        agent: OptimizedAgent,
        iterations: int | None = None,
        *,
        queries: Sequence[str] | None = None,
        report: Report | None = None,
    ) -> Outcome:
        """Optimise an agent; also from inside a running loop, which waits.

        Args:
            agent: With its history.
            iterations: Runs of the agent that may be paid for; as configured by default.
            queries: What to optimise on; by default those of the history.
            report: Told of progress.

        Returns:
            What was done, or `success=False` and the reason.

        Raises:
            RunStopped: Ctrl-C.
        """
        from agentlightning.integrations.tongyi.optimization import optimize

        count = iterations if iterations is not None else agent.config.prompt_optimization.iterations
        if count < 1:
            raise BadInputError(f"{count} iterations are too few.", hint="Give 1 or more.")
        return run_sync(optimize(agent, iterations=count, queries=queries, report=report))

    def optimize_if_due(self, agent: OptimizedAgent, *, report: Report | None = None) -> Outcome | None:
        """Optimise when `[optimization_schedule]` says that it is time."""
        trigger = agent.trials.due()
        if trigger is None:
            return None
        logger.warning("It is time for an optimisation: %s.", trigger.reason)
        return self.run_optimization(agent, report=report)

    def export_training_data(self, agent: OptimizedAgent | None, path: str | Path) -> int:
        """Write all training data as one JSON file; returns the number of interactions.

        Raises:
            NotFoundError: There are none.
            StorageError: The file cannot be written.
        """
        data = agent.data if agent is not None else self._data()
        interactions = data.read()
        if not interactions:
            raise NotFoundError(NO_DATA)
        return data.export(path, statistics_of(interactions, self.config).as_dict())

    def statistics(self) -> Statistics:
        """What the training data say."""
        return statistics_of(self._data().read(), self.config)

    def run_training_session(
        self,
        agent_type: str | None = None,
        queries: Sequence[str] = (),
        optimization_iterations: int | None = None,
        *,
        agent: OptimizedAgent | None = None,
        optimization_mode: str | None = None,
    ) -> Mapping[str, Any]:
        """Answer queries with training on, then optimise on them and the history.

        Returns:
            `success` (the optimisation was made), `queries_processed` (answered), `queries_failed`, `failures`
            (query to reason), `optimization` (see `Outcome`), `statistics`.

        Raises:
            BadInputError: There are no queries.
            ConfigError: There is no model.
            RunStopped: Ctrl-C.
        """
        wanted = list(queries)
        if not wanted:
            raise BadInputError("A training session needs queries.", hint="Give queries=[...].")
        worker = agent or self.create_optimized_agent(agent_type, optimization_mode, enable_training=True)
        failures = run_sync(_answered(worker, wanted))
        outcome = self.run_optimization(worker, optimization_iterations)
        return {
            "success": outcome.success,
            "queries_processed": len(wanted) - len(failures),
            "queries_failed": len(failures),
            "failures": failures,
            "optimization": outcome.as_dict(),
            "statistics": statistics_of(worker.data.read(), worker.config).as_dict(),
        }

    def _data(self) -> TrainingData:
        return TrainingData(self.config.training.training_data_path)


def get_training_manager(config: Path | str | TongyiConfig | None = None) -> TrainingManager:
    """The manager of a configuration: a file, by default `training_config.ini`, with the `TONGYI_*` variables.

    Raises:
        ConfigError: Something in it is wrong.
    """
    return TrainingManager(config if isinstance(config, TongyiConfig) else load_config(config))


async def _answered(agent: OptimizedAgent, queries: Sequence[str]) -> dict[str, str]:
    failures: dict[str, str] = {}
    try:
        for query in queries:
            try:
                await agent.process_query(query)
            except ConfigError:
                raise
            except (ResearchError, AgentLightningError) as error:
                failures[query] = str(error)
    finally:
        agent.save()
    return failures


def _form(kind: str) -> type[OptimizedAgent]:
    if kind == "claude":
        from agentlightning.integrations.tongyi.optimized_claude_agent import OptimizedClaudeAgent

        return OptimizedClaudeAgent
    from agentlightning.integrations.tongyi.optimized_tongyi_agent import OptimizedTongyiAgent

    return OptimizedTongyiAgent
