"""What agents can do besides talking: run Python, search, browse, files, databases, HTTP calls, knowledge, and MCP.

Knows `kit` and `config` only: no platform, no store, no model. Each tool checks its arguments, the caller's permission
and its own limits before it acts; nothing that a model writes runs outside the sandbox.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentlightning.tools.base import Tool, ToolArguments, ToolContext, ToolError, ToolResult

if TYPE_CHECKING:
    from agentlightning.tools.box import start_tools, toolbox
    from agentlightning.tools.settings import ToolSettings, load_tool_settings

__all__ = [
    "Tool",
    "ToolArguments",
    "ToolContext",
    "ToolError",
    "ToolResult",
    "ToolSettings",
    "load_tool_settings",
    "start_tools",
    "toolbox",
]

_LATER = {
    "ToolSettings": "agentlightning.tools.settings",
    "load_tool_settings": "agentlightning.tools.settings",
    "start_tools": "agentlightning.tools.box",
    "toolbox": "agentlightning.tools.box",
}
"""Loaded when used: who only wants the sandbox needs no HTTP client."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
