"""Where a run's rollouts happen: in processes of this machine, one process each, or on a Ray cluster.

Knows the pools and their settings, nothing of what runs in them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from agentlightning.config.strict import StrictModel
from agentlightning.kit.errors import AgentLightningError, ConfigError

PlacementKind = Literal["process", "subprocess", "ray"]


class Pool(Protocol):
    """What the trainer knows of a pool of runners."""

    failure: AgentLightningError | None

    async def start(self) -> None:
        """Start; returns when all runners are ready."""
        ...

    async def stop(self) -> None:
        """End them and what they have started."""
        ...


class Placement(StrictModel):
    """Which pool, and how. `Trainer(runner="ray")` is `Trainer(runner={"type": "ray"})`.

    | type | rollouts happen |
    |---|---|
    | `process` | in `n_runners` processes, up to `max_concurrency` at once in each |
    | `subprocess` | in `n_runners` processes, one at a time in each: for agents that block, leak or crash |
    | `ray` | in `n_runners` actors of an existing Ray cluster, up to `max_concurrency` at once in each |
    """

    type: PlacementKind = "process"
    address: str | None = None
    """Of the Ray cluster, `host:port`; by default `RAY_ADDRESS`, else the one of this machine (`auto`)."""
    num_cpus: float | None = None
    """Processors that Ray sets aside for each runner; 1 by default."""
    working_dir: Path | None = None
    """Folder that Ray copies to its nodes, for agents that import their own modules or read files."""

    @classmethod
    def parse(cls, runner: str | Mapping[str, Any] | None) -> Placement:
        """From the trainer's argument.

        Raises:
            ConfigError: An unknown type or setting, or one that has no effect on this type.
        """
        if runner is not None and not isinstance(runner, str | Mapping):
            raise ConfigError(
                f"runner= says where rollouts run; {runner!r} does not.",
                hint=f"There are {', '.join(get_args(PlacementKind))}. A runner object works on a store by itself.",
            )
        settings: dict[str, Any] = {"type": runner} if isinstance(runner, str) else dict(runner or {})
        kind = settings.get("type", "process")
        if kind not in get_args(PlacementKind):
            raise ConfigError(f"Unknown runner {kind!r}.", hint=f"There are {', '.join(get_args(PlacementKind))}.")
        placement = cls(**settings)
        unused = sorted(set(settings) - {"type"})
        if kind != "ray" and unused:
            raise ConfigError(f"These settings have an effect with runner='ray' only: {', '.join(unused)}.")
        return placement

    @property
    def default_runners(self) -> int:
        """How many runners there are when nobody says."""
        return os.cpu_count() or 1 if self.type == "subprocess" else 1

    def open(self, agent: Any, *, spool: Path, log_path: Path, max_concurrency: int, **options: Any) -> Pool:
        """A pool, not started yet.

        Args:
            agent: What to run.
            spool: Where runners of this machine keep reports that the store does not take.
            log_path: Where runners of this machine write.
            max_concurrency: Rollouts at once in each runner, where there can be several.
            **options: What all pools understand; see `RunnerPool`.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        if self.type == "ray":
            from agentlightning.runner.ray_pool import RayPool

            return RayPool(
                agent,
                max_concurrency=max_concurrency,
                address=self.address,
                num_cpus=1.0 if self.num_cpus is None else self.num_cpus,
                working_dir=self.working_dir,
                **options,
            )
        from agentlightning.runner.process import RunnerPool

        isolated = self.type == "subprocess"
        concurrency = None if isolated else max_concurrency
        return RunnerPool(
            agent, max_concurrency=concurrency, isolated=isolated, spool=spool, log_path=log_path, **options
        )
