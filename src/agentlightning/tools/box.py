"""All tools, made from the settings; those that are off stay in, with the reason. Starts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from agentlightning.tools.base import Tool
from agentlightning.tools.browse import WebBrowseTool
from agentlightning.tools.code import PythonTool
from agentlightning.tools.database import DatabaseTool
from agentlightning.tools.files import FilesTool
from agentlightning.tools.http import HttpTool
from agentlightning.tools.knowledge import KnowledgeTool
from agentlightning.tools.search import WebSearchTool, searched_hosts
from agentlightning.tools.settings import ToolSettings, load_tool_settings
from agentlightning.tools.web import GuardedClient


def toolbox(settings: ToolSettings | None = None) -> dict[str, Tool]:
    """The seven tools by their names.

    Args:
        settings: By default those of the environment.

    Raises:
        ConfigError: The settings cannot be used.
    """
    settings = load_tool_settings() if settings is None else settings
    web = settings.web
    client = GuardedClient(
        trusted=frozenset(web.private_hosts),
        timeout_s=web.timeout_s,
        max_bytes=web.max_bytes,
        max_redirects=web.max_redirects,
    )
    engine = GuardedClient(
        trusted=searched_hosts(settings), timeout_s=web.timeout_s, max_bytes=web.max_bytes, max_redirects=0
    )
    tools: list[Tool] = [
        PythonTool(settings),
        WebSearchTool(settings, engine),
        WebBrowseTool(settings, client),
        FilesTool(settings),
        DatabaseTool(settings),
        HttpTool(settings, client),
        KnowledgeTool(),
    ]
    return {tool.name: tool for tool in tools}


async def start_tools(tools: Iterable[Tool]) -> None:
    """Let each find out whether it works here."""
    await asyncio.gather(*(tool.start() for tool in tools))
