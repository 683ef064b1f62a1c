"""The Model Context Protocol, both ways: our tools for other programs, and other servers' tools as ours."""

from agentlightning.tools.mcp.client import McpServers
from agentlightning.tools.mcp.server import http_app, mcp_server, serve_stdio

__all__ = ["McpServers", "http_app", "mcp_server", "serve_stdio"]
