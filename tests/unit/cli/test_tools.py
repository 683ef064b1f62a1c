"""`agl tools` and `agl mcp`, as processes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

AGL = [sys.executable, "-m", "agentlightning.cli.main"]
STAND = Path(__file__).resolve().parents[1] / "tools/mcp_stand.py"


def surroundings(home: Path, **more: str) -> dict[str, str]:
    left_out = ("SEARXNG_URL", "BRAVE_API_KEY", "TAVILY_API_KEY")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AGL_") and key not in left_out}
    return {**kept, "AGL_HOME": str(home), "AGL_SANDBOX": "auto", **more}


def agl(home: Path, *arguments: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGL, *arguments], capture_output=True, text=True, timeout=100, env=surroundings(home), check=False, **more
    )


def test_the_list_says_what_is_off_and_why(tmp_path):
    done = agl(tmp_path, "tools", "list")
    assert done.returncode == 0, done.stderr
    for name in ("python", "web_search", "web_browse", "files", "database", "http", "knowledge"):
        assert name in done.stdout
    assert "SEARXNG_URL" in done.stdout
    assert "[http.hosts]" in done.stdout
    definitions = json.loads(agl(tmp_path, "tools", "list", "--json").stdout)
    assert len(definitions) == 7


def test_running_one(tmp_path):
    space = str(tmp_path / "space")
    written = agl(tmp_path, "tools", "run", "files", "action=write", "path=a", "content=12", "--workspace", space)
    assert written.returncode == 0, written.stdout + written.stderr
    read = agl(
        tmp_path, "tools", "run", "files", "--json", "-", "--workspace", space, input='{"action":"read","path":"a"}'
    )
    assert read.stdout == "12\n"
    bad = agl(tmp_path, "tools", "run", "files", "action=read", "path=../x", "--workspace", space)
    assert bad.returncode == 1
    assert "TOOL_DENIED" in bad.stdout
    assert "no argument" in agl(tmp_path, "tools", "run", "files", "action").stderr
    assert "There are: python" in agl(tmp_path, "tools", "run", "none").stderr


def test_python_from_the_command_line(tmp_path):
    done = agl(tmp_path, "tools", "run", "python", "code=sum(range(10))")
    if "TOOL_UNAVAILABLE" in done.stdout:
        pytest.skip(done.stdout)
    assert done.stdout == "45\n"


@pytest.mark.slow
def test_configured_servers_are_tools(tmp_path):
    pytest.importorskip("mcp")
    (tmp_path / "tools.toml").write_text(f"[mcp.stand]\ncommand = [{sys.executable!r}, {str(STAND)!r}]\n")
    assert "mcp:stand:add" in agl(tmp_path, "tools", "list").stdout
    assert agl(tmp_path, "tools", "run", "mcp:stand:add", "a=2", "b=3").stdout == "5\n"


async def test_mcp_by_standard_input_for_the_official_client(tmp_path):
    mcp = pytest.importorskip("mcp")
    (tmp_path / "note").write_text("hi")
    command = mcp.StdioServerParameters(
        command=AGL[0],
        args=[*AGL[1:], "mcp", "--workspace", str(tmp_path), "--only", "files"],
        env=surroundings(tmp_path),
    )
    async with mcp.Client(command) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["files"]
        read = await client.call_tool("files", {"action": "read", "path": "note"})
        assert read.content[0].text == "hi"


def test_mcp_over_http(tmp_path):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("mcp")
    process = subprocess.Popen(
        [*AGL, "mcp", "--http", "--port", "0", "--only", "files"],
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings(tmp_path),
    )
    try:
        assert process.stderr is not None
        found = re.search(r"tools at (\S+) with the token (\S+)", process.stderr.readline())
        assert found
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert httpx.post(found[1], json=body, timeout=20).status_code == 401
        headers = {"Authorization": f"Bearer {found[2]}", "Accept": "application/json, text/event-stream"}
        assert httpx.post(found[1], json=body, headers=headers, timeout=20).status_code != 401
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.slow
def test_mcp_refuses_what_does_not_exist_or_protects_nothing(tmp_path):
    assert "no tool burn" in agl(tmp_path, "mcp", "--only", "burn").stderr
    weak = subprocess.run(
        [*AGL, "mcp", "--http", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        env=surroundings(tmp_path, AGL_MCP_TOKEN="short"),
        check=False,
    )
    assert "at least 16" in weak.stderr
