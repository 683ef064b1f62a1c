"""Running Python that nobody has read: in namespaces (bubblewrap), or behind Landlock and seccomp; else not at all.

    result = await run_python("print(6 * 7)", timeout_s=5)

The program has no network, no environment, no files but its own folder and the interpreter, no other processes, and
ends when one of its limits does. There is no way back to a plain process: where neither mechanism works, the tool is
off and `SandboxUnavailableError` says why. Knows no tools, agents or models.
"""

from agentlightning.tools.sandbox.result import (
    Limits,
    Mechanism,
    SandboxError,
    SandboxResult,
    SandboxState,
    SandboxUnavailableError,
)
from agentlightning.tools.sandbox.sandbox import Sandbox, run_python, shared_sandbox

__all__ = [
    "Limits",
    "Mechanism",
    "Sandbox",
    "SandboxError",
    "SandboxResult",
    "SandboxState",
    "SandboxUnavailableError",
    "run_python",
    "shared_sandbox",
]
