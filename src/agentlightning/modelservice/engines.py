"""Engines that answer for a served model, each a process of its own; which kind, and what all kinds can do."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from agentlightning.config import ModelSpec
from agentlightning.gateway import Upstream
from agentlightning.kit.errors import ConfigError
from agentlightning.modelservice.source import Source
from agentlightning.schemas.generation import EngineStats

Progress = Callable[[str, float], None]


class RunningEngine(Protocol):
    """A process that has a model loaded."""

    @property
    def upstream(self) -> Upstream:
        """Answers calls."""
        ...

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether its captures name the version and say themselves whether they can be trained on."""
        ...

    @property
    def is_dead(self) -> bool:
        """Whether the process is gone."""
        ...

    def facts(self) -> dict[str, Any]:
        """What is known of the model: parameters, context, device."""
        ...

    async def stats(self) -> EngineStats | None:
        """What it has done; `None` where it does not tell."""
        ...

    async def wait_dead(self) -> str:
        """Return when the process is gone, with the reason."""
        ...

    async def swap(self, source: Source) -> None:
        """Take other weights of the same architecture in place, between requests.

        Raises:
            AgentLightningError: It could not; `is_dead` tells whether it still serves the old ones.
        """
        ...

    async def close(self) -> None:
        """End the process; safe to call twice."""
        ...


Start = Callable[[ModelSpec, Source, Path, Progress], Any]
"""Starts an engine: what to serve, from where, its log file, and who is told of the progress."""


def choose_engine(spec: ModelSpec, vllm_command: list[str] | None = None) -> str:
    """`builtin` or `vllm`.

    Args:
        spec: The model.
        vllm_command: How vLLM is started where it is not on the path.

    Raises:
        ConfigError: vLLM is asked for and is not here, or there is no CUDA device, or a setting has no effect with it.
    """
    if spec.engine == "builtin" or (spec.engine == "auto" and spec.device == "cpu"):
        return "builtin"
    missing = _missing_for_vllm(vllm_command)
    if spec.engine == "auto":
        return "builtin" if missing or spec.max_memory_mb or spec.threads else "vllm"
    if missing:
        raise ConfigError(
            f"The engine vllm cannot run here: {missing}.",
            hint="Install vLLM on a machine with an NVIDIA GPU, or use --engine builtin (or auto).",
        )
    unused = [name for name in ("max_memory_mb", "threads") if getattr(spec, name) is not None]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)} has no effect with vLLM.", hint="Use vllm_args, e.g. --gpu-memory-utilization 0.5."
        )
    return "vllm"


def vllm_program() -> list[str] | None:
    """How vLLM is started, if it is installed."""
    if shutil.which("vllm"):
        return ["vllm"]
    if importlib.util.find_spec("vllm") is not None:
        import sys

        return [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    return None


def has_cuda() -> bool:
    """Whether there is an NVIDIA device, without loading torch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _missing_for_vllm(command: list[str] | None) -> str:
    if command is not None:
        return ""
    if vllm_program() is None:
        return "it is not installed"
    return "" if has_cuda() else "there is no CUDA device"
