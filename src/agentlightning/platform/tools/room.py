"""The tools that run here. What is configured stands on disk; there is no way to add a tool or a server over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from agentlightning.kit.errors import NotFoundError
from agentlightning.platform.auth.permissions import may
from agentlightning.platform.context import Identity
from agentlightning.platform.tasks.execution import Surroundings
from agentlightning.tools import Tool, ToolContext, load_tool_settings, start_tools, toolbox
from agentlightning.tools.code import PythonTool

log = logging.getLogger(__name__)


class Tools:
    """All tools by name, also those of agents (`around.tools`).

    Args:
        home: Folder with `tools.toml`, unless `AGL_TOOLS` names another file.
        around: Gets the tools.

    Raises:
        ConfigError: The settings cannot be used.
    """

    def __init__(self, home: Path, around: Surroundings) -> None:
        self._home = home
        self._around = around
        self._settings = load_tool_settings(environment={**os.environ, "AGL_HOME": str(home)})
        self.all: dict[str, Tool] = dict(toolbox(self._settings))
        around.tools = self.all

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """While it lasts, the configured MCP servers' tools are there, too. What takes time happens beside."""
        over = asyncio.Event()
        task = asyncio.create_task(self._run(over))
        try:
            yield
        finally:
            over.set()
            await task
            for tool in self.all.values():
                await tool.close()

    def find(self, name: str) -> Tool:
        """One tool.

        Raises:
            NotFoundError: There is none of that name.
        """
        if name not in self.all:
            raise NotFoundError(f"There is no tool {name[:100]!r}.", hint="GET /api/v2/tools")
        return self.all[name]

    def context(self, who: Identity, tool: Tool, session: str | None, deadline_s: float) -> ToolContext:
        """What a tool may do for somebody: what they may, as far as the tool asks for it."""
        wanted = () if tool.permission is None else (tool.permission,)
        of = "own" if session is None else hashlib.sha256(session.encode()).hexdigest()[:32]
        workspace = self._home / "workspaces" / f"user_{who.user_id}" / of
        return ToolContext(
            workspace=workspace,
            user=str(who.user_id),
            session=session or "",
            permissions=frozenset(name for name in wanted if may(who.role, who.scopes, name)),
            deadline_s=deadline_s,
            services=self._around.services(who),  # pyright: ignore[reportArgumentType]
        )

    async def sandbox(self) -> tuple[str, str]:
        """The mechanism that Python runs in, or `off`; and why none works."""
        tool = self.all["python"]
        assert isinstance(tool, PythonTool)
        state = await tool.sandbox.state()
        return state.mechanism or "off", state.reason

    async def _run(self, over: asyncio.Event) -> None:
        own = list(self.all.values())
        if not self._settings.mcp:
            await start_tools(own)
            return
        from agentlightning.tools.mcp import McpServers

        servers = McpServers(self._settings.mcp)
        waiting = servers.missing("It is being started.")
        self.all.update(waiting)
        try:
            await start_tools(own)
            found = await servers.open()
            for name in waiting:
                del self.all[name]
            self.all.update(found | servers.missing())
            for name, reason in servers.reasons.items():
                log.warning("The MCP server %s is left out: %s", name, reason)
            await over.wait()
        finally:
            await servers.close()
