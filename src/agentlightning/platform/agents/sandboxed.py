"""Answers' code in the sandbox, for evaluators. Knows no agents."""

from __future__ import annotations


async def sandboxed(code: str, timeout_s: float) -> str:
    """Run code in the sandbox; answers what it printed.

    Raises:
        CannotTellError: There is no sandbox here, or it failed.
    """
    from agentlightning.algorithm.evaluators import CannotTellError
    from agentlightning.tools.sandbox import SandboxError, SandboxUnavailableError, run_python

    try:
        result = await run_python(code, timeout_s=timeout_s)
    except (SandboxUnavailableError, SandboxError) as error:
        raise CannotTellError(str(error)) from error
    why = f"\nkilled: {result.killed_because}" if result.killed_because else ""
    return f"{result.stderr}{why}\n{result.stdout}" if result.ok else f"{result.stdout}\n{result.stderr}{why}"
