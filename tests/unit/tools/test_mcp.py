"""MCP both ways, with the official library at the other end: our tools for its client, its server's tools for us."""

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

from agentlightning.kit.errors import ConfigError
from agentlightning.tools import ToolContext, ToolSettings, toolbox
from agentlightning.tools.settings import McpSettings

pytest.importorskip("mcp")

from mcp import Client

from agentlightning.tools.mcp import McpServers, http_app, mcp_server

STAND = McpSettings(command=(sys.executable, str(Path(__file__).with_name("mcp_stand.py"))))
GRANTED = ToolContext(permissions=frozenset({"*"}))
TOKEN = "a-token-for-tests-only"


@pytest.fixture
def context(tmp_path):
    (tmp_path / "note.txt").write_text("hello from the workspace")
    return ToolContext(workspace=tmp_path, permissions=frozenset({"agent:assign"}))


async def test_our_tools_for_the_official_client(context):
    tools = toolbox(ToolSettings())
    async with Client(mcp_server(tools, context)) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(listed) == {name for name, tool in tools.items() if not tool.unavailable}
        assert listed["files"].input_schema["required"] == ["action"]
        read = await client.call_tool("files", {"action": "read", "path": "note.txt"})
        assert read.content[0].text == "hello from the workspace"
        assert read.structured_content["lines"] == 1
        out = await client.call_tool("files", {"action": "read", "path": "../x"})
        assert out.is_error
        wrong = await client.call_tool("files", {"action": "burn"})
        assert wrong.is_error
        denied = await client.call_tool("knowledge", {"query": "x"})
        assert "knowledge:read" in denied.content[0].text
        assert (await client.call_tool("none", {})).is_error


@contextlib.asynccontextmanager
async def served(app):
    """The app on a real port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on", ws="none"))
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.02)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def test_over_http_with_a_token(context, monkeypatch):
    import httpx

    app = http_app(mcp_server(toolbox(ToolSettings()), context), TOKEN)
    async with served(app) as port:
        url = f"http://127.0.0.1:{port}/mcp"
        monkeypatch.setenv("MCP_AUTHORIZATION", f"Bearer {TOKEN}")
        settings = McpSettings(url=url, headers_env={"Authorization": "MCP_AUTHORIZATION"})
        async with McpServers({"ours": settings}) as found:
            tool = found["mcp:ours:files"]
            result = await tool.run({"action": "read", "path": "note.txt"}, GRANTED)
            assert result.text == "hello from the workspace"
            assert tool.definition()["function"]["name"] == "mcp_ours_files"
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        accept = {"Accept": "application/json, text/event-stream"}
        async with httpx.AsyncClient() as http:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
                assert (await http.post(url, json=body, headers={**accept, **headers})).status_code == 401
            good = {**accept, "Authorization": f"Bearer {TOKEN}"}
            rebound = await http.post(url, json=body, headers={**good, "Host": "evil.example"})
            foreign = await http.post(url, json=body, headers={**good, "Origin": "http://evil.example"})
            assert rebound.status_code in (403, 421)
            assert foreign.status_code == 403


async def test_a_servers_tools_become_ours(monkeypatch):
    monkeypatch.setenv("CANARY", "canary")
    monkeypatch.setenv("GIVEN", "given")
    settings = STAND.model_copy(update={"env": ("GIVEN",)})
    async with McpServers({"stand": settings}) as tools:
        assert set(tools) == {f"mcp:stand:{name}" for name in ("add", "fail", "environment", "end")}
        added = await tools["mcp:stand:add"].run('{"a": 2, "b": 3}', GRANTED)
        assert (added.text, added.is_error) == ("5", False)
        assert tools["mcp:stand:add"].description == "Add two numbers."
        failed = await tools["mcp:stand:fail"].run({}, GRANTED)
        assert failed.is_error
        assert (await tools["mcp:stand:add"].run({"a": "x", "b": 1}, GRANTED)).is_error
        environment = tools["mcp:stand:environment"]
        assert (await environment.run({"name": "CANARY"}, GRANTED)).text == "(not set)"
        assert (await environment.run({"name": "GIVEN"}, GRANTED)).text == "given"
        denied = await environment.run({"name": "GIVEN"}, ToolContext())
        assert denied.data["code"] == "TOOL_DENIED"


async def test_a_server_that_ended_is_started_again():
    async with McpServers({"stand": STAND}) as tools:
        ended = await tools["mcp:stand:end"].run({}, GRANTED)
        assert ended.is_error
        again = await tools["mcp:stand:add"].run({"a": 1, "b": 1}, GRANTED)
        assert again.text == "2"


async def test_only_the_tools_that_are_wanted():
    async with McpServers({"stand": STAND.model_copy(update={"tools": ("add",)})}) as tools:
        assert list(tools) == ["mcp:stand:add"]


@pytest.mark.parametrize(
    "settings",
    [
        McpSettings(command=("no-such-program-anywhere",)),
        McpSettings(command=(sys.executable, "-c", "raise SystemExit(1)")),
        McpSettings(url="http://127.0.0.1:1/mcp"),
        McpSettings(command=(sys.executable,), env=("NOT_SET_ANYWHERE",)),
    ],
)
async def test_a_server_that_does_not_start_is_left_out(settings):
    servers = McpServers({"broken": settings, "stand": STAND})
    async with servers as tools:
        assert "broken" in servers.reasons
        assert "mcp:stand:add" in tools


def test_a_token_that_can_be_guessed_is_refused(context):
    with pytest.raises(ConfigError, match="at least 16"):
        http_app(mcp_server({}, context), "short")
