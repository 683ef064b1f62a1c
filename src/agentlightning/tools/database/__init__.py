"""The tool `database`: queries against configured databases, read-only unless an operator says otherwise."""

from agentlightning.tools.database.tool import DatabaseTool

__all__ = ["DatabaseTool"]
