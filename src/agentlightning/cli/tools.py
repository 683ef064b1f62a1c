"""`agl tools`: list and try the tools of agents; `agl mcp`: serve them to other programs. Knows no agents."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from agentlightning.tools import Tool, ToolContext, ToolSettings

SettingsOption = Annotated[
    Path | None, typer.Option("--settings", help="TOML file; else AGL_TOOLS, or tools.toml in AGL_HOME.")
]
WorkspaceOption = Annotated[
    Path | None, typer.Option(help="Folder of files and of what Python writes; else one in AGL_HOME.")
]

RUN_EPILOG = """Examples:

  agl tools run python --json '{"code": "sum(range(10))"}'

  agl tools run files action=list --workspace .

  agl tools run web_browse url=https://example.com

  agl tools run database action=schema --settings tools.toml"""

MCP_HELP = """Serve the tools over the Model Context Protocol.

By standard input and output, for programs that start servers themselves; with --http at http://HOST:PORT/mcp, where
every request needs the token in AGL_MCP_TOKEN, or the one that is printed."""

MCP_EPILOG = """Examples:

  agl mcp --workspace .

  AGL_MCP_TOKEN=$(openssl rand -hex 32) agl mcp --http --port 8090

  agl mcp --only python --only files"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    tools = typer.Typer(help="The tools of agents: what is there, and trying them.", no_args_is_help=True)
    tools.command("list", help="All tools, which of them work here, and why the others do not.")(list_tools)
    tools.command("run", help="Call a tool as an agent would.", epilog=RUN_EPILOG)(run_tool)
    app.add_typer(tools, name="tools")
    app.command("mcp", help=MCP_HELP, epilog=MCP_EPILOG)(serve)


def list_tools(
    settings: SettingsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the definitions that models get.")] = False,
) -> None:
    from rich.markup import escape

    from agentlightning.cli.output import print_json, print_table

    found, reasons = asyncio.run(_found(_load(settings)))
    if as_json:
        print_json([{**tool.definition(), "unavailable": tool.unavailable} for tool in found])
        return
    rows = [(tool.name, "off: " + tool.unavailable if tool.unavailable else _first(tool.description)) for tool in found]
    rows += [(f"mcp:{name}", f"off: {reason}") for name, reason in reasons.items()]
    print_table("", ("tool", "what it does"), [(name, escape(what)) for name, what in rows])


def run_tool(
    name: Annotated[str, typer.Argument(help="Which, as agl tools list has it.")],
    given: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE...", help="Its arguments.")] = None,
    raw: Annotated[str | None, typer.Option("--json", help="All arguments, as a JSON object; - reads them.")] = None,
    settings: SettingsOption = None,
    workspace: WorkspaceOption = None,
    timeout: Annotated[float, typer.Option(help="Seconds it may take.", min=0.1)] = 60.0,
) -> None:
    arguments: str | list[str] = sys.stdin.read() if raw == "-" else raw if raw is not None else given or []
    result = asyncio.run(_run(_load(settings), name, arguments, _context(workspace, timeout)))
    sys.stdout.write(result.text.rstrip("\n") + "\n")
    if result.is_error:
        raise typer.Exit(1)


def serve(
    settings: SettingsOption = None,
    workspace: WorkspaceOption = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this tool; may be repeated.")] = None,
    http: Annotated[bool, typer.Option("--http", help="Over HTTP instead of standard input and output.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8090,
) -> None:
    asyncio.run(_serve(_load(settings), only, _context(workspace, 300.0), (host, port) if http else None))


def _load(path: Path | None) -> ToolSettings:
    from agentlightning.tools import load_tool_settings

    return load_tool_settings(path)


def _context(workspace: Path | None, deadline_s: float) -> ToolContext:
    from agentlightning.tools import ToolContext

    # Whoever may type the command may use the tools.
    return ToolContext(workspace=workspace, user="cli", permissions=frozenset({"*"}), deadline_s=deadline_s)


def _pairs(given: list[str], schema: dict[str, Any]) -> dict[str, Any]:
    """`name=value`; what the schema does not want as text is read as JSON."""
    import json

    from agentlightning.kit.errors import BadInputError

    found: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadInputError(f"{pair!r} is no argument.", hint="Write them like url=https://example.com.")
        found[name] = value
        wanted = json.dumps(schema.get("properties", {}).get(name, {}))
        if '"string"' not in wanted or '"array"' in wanted:
            with contextlib.suppress(ValueError):
                found[name] = json.loads(value)
    return found


async def _found(settings: ToolSettings) -> tuple[list[Tool], dict[str, str]]:
    from agentlightning.tools import start_tools, toolbox

    tools = list(toolbox(settings).values())
    await start_tools(tools)
    if not settings.mcp:
        return tools, {}
    from agentlightning.tools.mcp import McpServers

    servers = McpServers(settings.mcp)
    async with servers as more:
        return [*tools, *more.values()], servers.reasons


async def _run(settings: ToolSettings, name: str, given: str | list[str], context: ToolContext) -> Any:
    from agentlightning.kit.errors import NotFoundError
    from agentlightning.tools import toolbox

    tools = toolbox(settings)
    if name.startswith("mcp:") and settings.mcp:
        from agentlightning.tools.mcp import McpServers

        server = name.split(":")[1]
        async with McpServers({key: one for key, one in settings.mcp.items() if key == server}) as more:
            if name in more:
                return await _call(more[name], given, context)
    if name not in tools:
        raise NotFoundError(f"There is no tool {name!r}.", hint=f"There are: {', '.join(tools)}. See agl tools list.")
    await tools[name].start()
    return await _call(tools[name], given, context)


async def _call(tool: Tool, given: str | list[str], context: ToolContext) -> Any:
    return await tool.run(given if isinstance(given, str) else _pairs(given, tool.parameters()), context)


async def _serve(
    settings: ToolSettings, only: list[str] | None, context: ToolContext, place: tuple[str, int] | None
) -> None:
    from agentlightning.kit.errors import NotFoundError
    from agentlightning.tools import start_tools, toolbox
    from agentlightning.tools.mcp import mcp_server, serve_stdio

    tools = toolbox(settings)
    unknown = set(only or ()) - set(tools)
    if unknown:
        raise NotFoundError(f"There is no tool {', '.join(sorted(unknown))}.", hint=f"There are: {', '.join(tools)}.")
    tools = {name: tool for name, tool in tools.items() if not only or name in only}
    await start_tools(tools.values())
    server = mcp_server(tools, context)
    if place is None:
        await serve_stdio(server)
    else:
        await _serve_http(server, *place)


async def _serve_http(server: Any, host: str, port: int) -> None:
    import secrets
    import socket

    import uvicorn

    from agentlightning.kit.errors import ConfigError
    from agentlightning.tools.mcp import http_app

    token = os.environ.get("AGL_MCP_TOKEN", "")
    if token and len(token) < 16:
        raise ConfigError("AGL_MCP_TOKEN has to have at least 16 characters.", hint="Make one: openssl rand -hex 32")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        number = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        made = "" if token else f" with the token {(token := secrets.token_urlsafe(32))}"
        sys.stderr.write(f"tools at http://{shown}:{number}/mcp{made}\n")
        sys.stderr.flush()
        app = http_app(server, token, host=host)
        config = uvicorn.Config(app, log_level="warning", lifespan="on", ws="none")
        await uvicorn.Server(config).serve(sockets=[listening])


def _first(description: str) -> str:
    return description.split(". ")[0].rstrip(".") + "."
