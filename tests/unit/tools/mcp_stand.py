"""A small MCP server, for tests: adds, fails, shows an environment variable, and can end itself."""

import os

from mcp.server.mcpserver import MCPServer

server = MCPServer("stand")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("on purpose")


@server.tool()
def environment(name: str) -> str:
    """A variable."""
    return os.environ.get(name, "(not set)")


@server.tool()
def end() -> str:
    """Ends the server."""
    os._exit(3)


if __name__ == "__main__":
    server.run("stdio")
