"""The tool `files`: reads, writes, edits, lists and searches text in the caller's workspace, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Literal, cast

from pydantic import BaseModel, Field

from agentlightning.kit.errors import BadInputError
from agentlightning.tools.base import Tool, ToolArguments, ToolContext, ToolDeniedError, ToolResult
from agentlightning.tools.settings import ToolSettings
from agentlightning.tools.workspace import Entry, Workspace, workspace_of

_LISTED = 500
_MATCHES = 100
_LINE_CHARS = 300

Action = Literal["read", "write", "append", "edit", "delete", "list", "glob", "search"]


class FilesArguments(ToolArguments):
    action: Action = Field(
        description="read, write (whole file), append, edit (replace old by new), delete, list (a folder), "
        "glob (files whose path matches pattern, like **/*.py), search (lines that contain pattern)"
    )
    path: str = Field(default=".", max_length=1024, description="Relative to the workspace.")
    content: str | None = Field(default=None, description="For write and append.")
    old: str | None = Field(default=None, description="For edit: text that is in the file exactly once.")
    new: str | None = Field(default=None, description="For edit: what takes its place.")
    pattern: str | None = Field(default=None, max_length=200, description="For glob and search.")
    first_line: int = Field(default=1, ge=1, description="For read.")
    lines: int = Field(default=1000, ge=1, le=10_000, description="For read: so many at most.")


class FilesTool(Tool):
    """A jailed workspace."""

    name = "files"
    description = (
        "Work with text files in your workspace: read, write, append, edit, delete, list, glob, search. "
        "Paths are relative; nothing outside the workspace can be reached."
    )
    Arguments = FilesArguments

    def __init__(self, settings: ToolSettings) -> None:
        self._root = settings.workspace
        self._settings = settings.files
        self._actions: dict[str, Callable[[Workspace, FilesArguments], ToolResult]] = {
            "read": self._read,
            "write": self._write,
            "append": self._append,
            "edit": self._edit,
            "delete": self._delete,
            "list": self._list,
            "glob": self._glob,
            "search": self._search,
        }

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        wanted = cast("FilesArguments", arguments)
        workspace = workspace_of(context, self._root, self._settings.max_total_mb, self._settings.max_files)
        return await asyncio.to_thread(self._actions[wanted.action], workspace, wanted)

    def _read(self, workspace: Workspace, wanted: FilesArguments) -> ToolResult:
        text, whole = self._text(workspace, wanted.path)
        lines = text.splitlines(keepends=True)
        part = lines[wanted.first_line - 1 : wanted.first_line - 1 + wanted.lines]
        last = wanted.first_line + len(part) - 1
        shown = "".join(part)
        if not whole or len(part) < len(lines):
            shown += f"\n[lines {wanted.first_line} to {last} of {len(lines)}{'' if whole else ' or more'}]"
        return ToolResult(shown or "(empty)", {"content": "".join(part), "lines": len(lines), "whole": whole})

    def _write(self, workspace: Workspace, wanted: FilesArguments) -> ToolResult:
        if wanted.content is None:
            raise BadInputError("write needs content.")
        return self._put(workspace, wanted.path, wanted.content)

    def _append(self, workspace: Workspace, wanted: FilesArguments) -> ToolResult:
        if wanted.content is None:
            raise BadInputError("append needs content.")
        text = self._whole(workspace, wanted.path)
        return self._put(workspace, wanted.path, text + wanted.content)

    def _edit(self, workspace: Workspace, wanted: FilesArguments) -> ToolResult:
        if not wanted.old or wanted.new is None:
            raise BadInputError("edit needs old and new.")
        text = self._whole(workspace, wanted.path)
        found = text.count(wanted.old)
        if found != 1:
            raise BadInputError(
                f"The old text is in {wanted.path!r} {found} times, and has to be there once.",
                hint="Read the file, and give more of what stands around it." if found else "Read the file first.",
            )
        return self._put(workspace, wanted.path, text.replace(wanted.old, wanted.new))

    def _delete(self, workspace: Workspace, wanted: FilesArguments) -> ToolResult:
        workspace.delete(wanted.path)
        return ToolResult(f"{wanted.path} is gone.", {"path": wanted.path})

    def _list(self, workspace: Workspace, wanted: FilesArguments) -> ToolResult:
        return _listed(list(workspace.entries(wanted.path, deep=False)))

    def _glob(self, workspace: Workspace, wanted: FilesArguments) -> ToolResult:
        if not wanted.pattern:
            raise BadInputError("glob needs a pattern.")
        found = [entry for entry in workspace.entries(wanted.path) if _matches(entry.path, wanted.pattern)]
        return _listed(found)

    def _search(self, workspace: Workspace, wanted: FilesArguments) -> ToolResult:
        if not wanted.pattern:
            raise BadInputError("search needs a pattern.")
        sought = wanted.pattern.lower()
        found: list[dict[str, object]] = []
        for entry in workspace.entries(wanted.path):
            if entry.is_folder or len(found) >= _MATCHES:
                continue
            content, _ = workspace.read(entry.path, self._settings.max_read_bytes)
            for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
                if sought in line.lower() and len(found) < _MATCHES:
                    found.append({"path": entry.path, "line": number, "text": line[:_LINE_CHARS]})
        shown = "\n".join(f"{one['path']}:{one['line']}: {one['text']}" for one in found)
        more = f"\n[the first {_MATCHES}]" if len(found) >= _MATCHES else ""
        return ToolResult(shown + more if found else "Nothing found.", found)

    def _whole(self, workspace: Workspace, path: str) -> str:
        text, whole = self._text(workspace, path)
        if not whole:
            raise ToolDeniedError(f"{path!r} is larger than {self._settings.max_read_bytes} bytes.")
        return text

    def _text(self, workspace: Workspace, path: str) -> tuple[str, bool]:
        content, size = workspace.read(path, self._settings.max_read_bytes)
        if b"\0" in content:
            raise BadInputError(f"{path!r} is no text ({size} bytes).", hint="Read it with a Python program.")
        return content.decode("utf-8", errors="replace"), len(content) == size

    def _put(self, workspace: Workspace, path: str, text: str) -> ToolResult:
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise BadInputError("The content has characters that no file can have.") from error
        if len(content) > self._settings.max_write_bytes:
            raise ToolDeniedError(f"A file may have {self._settings.max_write_bytes} bytes; this has {len(content)}.")
        new = workspace.write(path, content)
        verb = "made" if new else "changed"
        return ToolResult(f"{path} {verb}, {len(content)} bytes.", {"path": path, "bytes": len(content), "new": new})


def _matches(path: str, pattern: str) -> bool:
    """`**/` stands for any folders or none; the rest as in a shell."""
    whole = PurePosixPath("/" + path)
    return whole.match(pattern) or (pattern.startswith("**/") and whole.match(pattern[3:]))


def _listed(entries: list[Entry]) -> ToolResult:
    lines = [f"{entry.path}/" if entry.is_folder else f"{entry.path}  {entry.size}" for entry in entries[:_LISTED]]
    if len(entries) > _LISTED:
        lines.append(f"[{len(entries) - _LISTED} more]")
    data = [{"path": entry.path, "folder": entry.is_folder, "bytes": entry.size} for entry in entries[:_LISTED]]
    return ToolResult("\n".join(lines) or "(nothing)", data)
