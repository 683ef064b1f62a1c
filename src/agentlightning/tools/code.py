"""The tool `python`: runs a program in the sandbox, in a copy of the caller's workspace. Knows no web."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast
from weakref import WeakKeyDictionary

from pydantic import BaseModel, Field

from agentlightning.tools.base import Tool, ToolArguments, ToolContext, ToolResult, cut
from agentlightning.tools.sandbox import Limits, Sandbox, SandboxResult, SandboxUnavailableError
from agentlightning.tools.settings import ToolSettings
from agentlightning.tools.workspace import Workspace, workspace_of

_SHOWN_CHARS = 12_000
_WHY = {
    "time": "It was stopped: it ran longer than {timeout_s:g} s.",
    "output": "It was stopped: it printed more than {output_bytes} bytes.",
    "memory": "It was stopped: it used more than {memory_mb} MB of memory.",
    "disk": "It was stopped: it wrote more than {files_mb} MB, or {files_count} files.",
}


class PythonArguments(ToolArguments):
    code: str = Field(
        description="The program. Print what you want to see; a last line that is an expression is shown."
    )
    files: list[str] | None = Field(
        default=None, description="Files of the workspace that it needs; without this, all of them if they are few."
    )
    timeout_s: float | None = Field(default=None, gt=0, description="Stop it after so many seconds.")


class PythonTool(Tool):
    """Runs Python."""

    name = "python"
    Arguments = PythonArguments

    def __init__(self, settings: ToolSettings) -> None:
        python = settings.python
        self._settings = settings
        self._limits = Limits(
            timeout_s=python.timeout_s,
            memory_mb=python.memory_mb,
            processes=python.processes,
            output_bytes=python.output_bytes,
            files_mb=python.files_mb,
        )
        self.sandbox = Sandbox(python.sandbox, limits=self._limits, packages=python.packages)
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self.unavailable = "switched off in the settings." if python.sandbox == "off" else ""
        self.description = (
            "Run a Python program in a sandbox without network. It starts in a copy of the workspace; files that it "
            f"makes or changes are kept. Limits: {python.timeout_s:g} s, {python.memory_mb} MB."
        )

    async def start(self) -> None:
        """Try the sandbox; off if none works."""
        self.unavailable = (await self.sandbox.state()).reason

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        wanted = cast("PythonArguments", arguments)
        seconds = min(wanted.timeout_s or self._limits.timeout_s, self._limits.timeout_s, context.deadline_s)
        workspace = self._workspace(context)
        files = await asyncio.to_thread(self._files, workspace, wanted.files)
        limits = replace(self._limits, timeout_s=seconds)
        gate = self._gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._settings.python.at_once))
        try:
            async with gate:
                result = await self.sandbox.run(wanted.code, files=files, limits=limits, show_last=True)
        except SandboxUnavailableError as error:
            self.unavailable = str(error)
            raise
        written = await asyncio.to_thread(self._keep, workspace, result) if workspace else []
        return _told(result, written, limits)

    def _workspace(self, context: ToolContext) -> Workspace | None:
        if context.workspace is None and self._settings.workspace is None:
            return None
        files = self._settings.files
        return workspace_of(context, self._settings.workspace, files.max_total_mb, files.max_files)

    def _files(self, workspace: Workspace | None, named: list[str] | None) -> dict[str, bytes]:
        if workspace is None:
            return {}
        room, most = self._limits.files_mb * 2**19, self._limits.files_count // 2
        if named is not None:
            return {name: workspace.read(name, room)[0] for name in named}
        entries = [entry for entry in workspace.entries() if not entry.is_folder]
        if len(entries) > most or sum(entry.size for entry in entries) > room:
            return {}  # the program says what it misses; `files` names it
        return {entry.path: workspace.read(entry.path, room)[0] for entry in entries}

    def _keep(self, workspace: Workspace, result: SandboxResult) -> list[str]:
        for name, content in result.files.items():
            workspace.write(name, content)
        return sorted(result.files)


def _told(result: SandboxResult, written: list[str], limits: Limits) -> ToolResult:
    parts = [cut(result.stdout, _SHOWN_CHARS).rstrip("\n")] if result.stdout else []
    if result.stderr:
        parts.append("Errors:\n" + cut(result.stderr, _SHOWN_CHARS // 2).rstrip("\n"))
    if result.killed_because:
        parts.append(_WHY[result.killed_because].format(**vars(limits)))
    elif result.exit_code:
        parts.append(f"It ended with exit code {result.exit_code}.")
    if written:
        parts.append("Files written: " + ", ".join(written[:50]) + (" ..." if len(written) > 50 else ""))
    data = {
        "stdout": result.stdout,
        "stderr": result.stderr,
        "exit_code": result.exit_code,
        "timed_out": result.timed_out,
        "killed_because": result.killed_because,
        "files": written,
        "seconds": round(result.seconds, 3),
        "mechanism": result.mechanism,
    }
    return ToolResult("\n".join(parts) or "It ran and printed nothing.", data, is_error=not result.ok)
