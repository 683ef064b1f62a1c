"""What goes into a sandbox and what comes out; pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agentlightning.kit.errors import AgentLightningError

Mechanism = Literal["bubblewrap", "landlock"]
KilledBecause = Literal["time", "output", "memory", "disk"]


class SandboxUnavailableError(AgentLightningError):
    """No sandbox works on this machine; the message says why each way does not."""

    code = "SANDBOX_UNAVAILABLE"
    status = 503


class SandboxError(AgentLightningError):
    """The sandbox itself failed; the program did not run."""

    code = "SANDBOX_FAILED"
    status = 500


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    timeout_s: float = 10.0
    """Of wall clock; then every process of the run is killed."""
    memory_mb: int = 512
    """Of address space for each process, and resident for all of them together."""
    processes: int = 16
    """Processes and threads at a time. Without namespaces: threads of one process."""
    output_bytes: int = 64 * 1024
    """Of standard output, and of standard error; more ends the run."""
    files_mb: int = 32
    """All that it writes."""
    files_count: int = 500
    open_files: int = 128


@dataclass(frozen=True)
class SandboxResult:
    """How a run ended."""

    stdout: str
    stderr: str
    exit_code: int | None
    """As a shell has it, 128 + signal when a signal ended it; `None` if the run was killed."""
    timed_out: bool = False
    killed_because: KilledBecause | None = None
    """Which limit ended it."""
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """New and changed files by their relative names; links and special files are left out."""
    seconds: float = 0.0
    mechanism: Mechanism = "bubblewrap"

    @property
    def ok(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.exit_code == 0 and self.killed_because is None


@dataclass(frozen=True)
class SandboxState:
    """Which way works here. For `/health`."""

    mechanism: Mechanism | None
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why a way does not work, by its name."""
    detail: str = ""

    @property
    def reason(self) -> str:
        """Why there is none; empty when there is one."""
        if self.mechanism is not None:
            return ""
        return "; ".join(f"{name}: {why}" for name, why in self.reasons.items()) or "switched off"
