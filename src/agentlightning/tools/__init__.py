"""What agents can do besides talking: run Python, search, browse, files, databases, HTTP calls, knowledge, and MCP.

Knows `kit` and `config` only: no platform, no store, no model. Each tool checks its arguments, the caller's permission
and its own limits before it acts; nothing that a model writes runs outside the sandbox.
"""

from agentlightning.tools.base import Tool, ToolArguments, ToolContext, ToolError, ToolResult

__all__ = ["Tool", "ToolArguments", "ToolContext", "ToolError", "ToolResult"]
