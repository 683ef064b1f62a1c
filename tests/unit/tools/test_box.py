"""All tools together: settings, permissions, the Python tool in a workspace, knowledge."""

import asyncio
import sys

import pytest

from agentlightning.kit.errors import ConfigError
from agentlightning.tools import ToolContext, ToolSettings, load_tool_settings, start_tools, toolbox
from agentlightning.tools.settings import FilesSettings, PythonSettings

NAMES = ["python", "web_search", "web_browse", "files", "database", "http", "knowledge"]
CONTEXT = ToolContext(permissions=frozenset({"*"}))


def test_the_seven_are_there_with_valid_definitions(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    tools = toolbox(ToolSettings(workspace=tmp_path))
    assert list(tools) == NAMES
    for name, tool in tools.items():
        function = tool.definition()["function"]
        assert function["name"] == name
        assert len(function["description"]) > 40
        jsonschema.Draft202012Validator.check_schema(function["parameters"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("granted", [(), ("agent:read",), ("system:read", "workflow:*")])
async def test_a39_no_tool_runs_without_its_permission(tmp_path, name, granted):
    tool = toolbox(ToolSettings(workspace=tmp_path))[name]
    tool.unavailable = ""
    result = await tool.run({}, ToolContext(permissions=frozenset(granted)))
    assert result.data["code"] == "TOOL_DENIED"


def test_settings_come_from_a_file(tmp_path):
    file = tmp_path / "tools.toml"
    file.write_text(
        """
workspace = "space"
[python]
sandbox = "off"
[search]
backend = "searxng"
url = "http://127.0.0.1:8888"
[databases.sales]
url = "sqlite:///sales.db"
tables = ["orders"]
[http.hosts]
"api.example.com" = ["GET", "POST"]
[[http.secrets]]
host = "api.example.com"
header = "Authorization"
value_env = "SALES_KEY"
[mcp.time]
command = ["uvx", "mcp-server-time"]
"""
    )
    settings = load_tool_settings(environment={"AGL_HOME": str(tmp_path)})
    assert settings.databases["sales"].tables == ("orders",)
    assert settings.mcp["time"].command == ("uvx", "mcp-server-time")
    assert load_tool_settings(file, {}) == settings
    assert load_tool_settings(environment={"AGL_TOOLS": str(file)}) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pythn]\nx = 1", "line 1"),
        ("[python]\ntimeout = 3", "did you mean 'timeout_s'"),
        ("[python]\nsandbox = 'docker'", "sandbox"),
        ("[search]\nbackend = 'searxng'", "needs its url"),
        ("[databases.a]\n", "either url or url_env"),
        ("[databases.'a b']\nurl = 'sqlite:///x'", "pattern"),
        ("[http.hosts]\n'http://x' = ['GET']", "pattern"),
        ("[http.hosts]\n'x' = ['BREW']", "GET"),
        ("[mcp.a]\nurl = 'x'\ncommand = ['y']", "either command or url"),
        ("[", "no valid TOML"),
    ],
)
def test_a_fault_is_named(tmp_path, text, said):
    file = tmp_path / "tools.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"tools\.toml") as told:
        load_tool_settings(file, {})
    assert said in str(told.value)


def test_a_file_that_is_named_has_to_be_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tool_settings(environment={"AGL_TOOLS": str(tmp_path / "none.toml")})


@pytest.mark.parametrize(
    ("environment", "backend"),
    [
        ({"SEARXNG_URL": "http://x", "BRAVE_API_KEY": "k"}, "searxng"),
        ({"BRAVE_API_KEY": "k"}, "brave"),
        ({"TAVILY_API_KEY": "k"}, "tavily"),
        ({}, None),
    ],
)
def test_the_environment_chooses_the_search_engine(tmp_path, environment, backend):
    settings = load_tool_settings(environment={"AGL_HOME": str(tmp_path), **environment})
    assert (settings.search.backend if settings.search else None) == backend
    assert settings.workspace == tmp_path / "workspaces"


def test_the_environment_chooses_the_sandbox(tmp_path):
    here = {"AGL_HOME": str(tmp_path)}
    assert load_tool_settings(environment={**here, "AGL_SANDBOX": "off"}).python.sandbox == "off"
    with pytest.raises(ConfigError, match="AGL_SANDBOX"):
        load_tool_settings(environment={**here, "AGL_SANDBOX": "docker"})
    (tmp_path / "tools.toml").write_text("[python]\nsandbox = 'landlock'")
    assert load_tool_settings(environment={**here, "AGL_SANDBOX": "off"}).python.sandbox == "landlock"


def test_settings_do_not_change_or_show_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAVE_API_KEY", "canary")
    settings = load_tool_settings()
    assert "canary" not in repr(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.python.memory_mb = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("the sandbox is Linux'")
    tool = toolbox(ToolSettings(workspace=tmp_path_factory.mktemp("spaces")))["python"]
    asyncio.run(start_tools([tool]))
    if tool.unavailable:
        pytest.skip(tool.unavailable)
    return tool


async def test_python_works_in_a_copy_of_the_workspace(python, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/in.csv").write_text("1\n2\n")
    context = ToolContext(workspace=tmp_path, permissions=CONTEXT.permissions)
    code = "total = sum(map(int, open('data/in.csv')))\nopen('data/out.txt', 'w').write(str(total))\ntotal"
    result = await python.run({"code": code}, context)
    assert result.text == "3\nFiles written: data/out.txt"
    assert (tmp_path / "data/out.txt").read_text() == "3"
    named = await python.run({"code": "import os; sorted(os.listdir('data'))", "files": ["data/in.csv"]}, context)
    assert named.text == "['in.csv']"
    missing = await python.run({"code": "1", "files": ["../x"]}, context)
    assert missing.data["code"] == "TOOL_DENIED"


async def test_a20_code_never_runs_in_the_server(python, tmp_path):
    """A19, A20: neither decorators nor default arguments nor imports run before the sandbox has it."""
    flag = tmp_path / "flag"
    code = f"@(lambda f: open({str(flag)!r}, 'w').close() or f)\ndef f(x=__import__('sys').modules.clear()): pass"
    result = await python.run({"code": code}, ToolContext(workspace=tmp_path, permissions=CONTEXT.permissions))
    assert result.is_error
    assert not flag.exists()
    assert "pytest" in sys.modules


async def test_how_a_program_ended_is_told(python, tmp_path):
    context = ToolContext(workspace=tmp_path, permissions=CONTEXT.permissions)
    failed = await python.run({"code": "print('a')\n1 / 0"}, context)
    assert failed.is_error
    assert failed.text.startswith("a\nErrors:\nTraceback")
    assert failed.text.endswith("It ended with exit code 1.")
    slow = await python.run({"code": "while True: pass", "timeout_s": 0.5}, context)
    assert "longer than 0.5 s" in slow.text
    assert slow.data["timed_out"]
    assert (await python.run({"code": ""}, context)).text == "It ran and printed nothing."


async def test_python_without_a_workspace_has_none():
    tool = toolbox(ToolSettings(python=PythonSettings(timeout_s=10)))["python"]
    await start_tools([tool])
    if tool.unavailable:
        pytest.skip(tool.unavailable)
    assert (await tool.run({"code": "import os; os.listdir()"}, CONTEXT)).text == "[]"


async def test_a_full_workspace_takes_nothing_more(tmp_path):
    settings = ToolSettings(workspace=tmp_path, files=FilesSettings(max_files=2))
    tool = toolbox(settings)["python"]
    await start_tools([tool])
    if tool.unavailable:
        pytest.skip(tool.unavailable)
    result = await tool.run({"code": "for n in range(3): open(str(n), 'w').write('x')"}, CONTEXT)
    assert "workspace is full" in result.text


async def test_python_that_is_off_says_why():
    tool = toolbox(ToolSettings(python=PythonSettings(sandbox="off")))["python"]
    assert (await tool.run({"code": "1"}, CONTEXT)).data["code"] == "TOOL_UNAVAILABLE"
    tool.unavailable = ""  # not started: the sandbox itself still refuses
    assert (await tool.run({"code": "1"}, CONTEXT)).data["code"] == "SANDBOX_UNAVAILABLE"
    assert tool.unavailable


class Facts:
    """A knowledge base by the protocol."""

    async def search(self, query, limit):
        return [
            {"id": f"k{n}", "title": query, "content": "x" * 5000, "score": 1.0 / (n + 1)} for n in range(limit + 3)
        ]


async def test_knowledge():
    tool = toolbox(ToolSettings())["knowledge"]
    assert (await tool.run({"query": "x"}, CONTEXT)).data["code"] == "TOOL_UNAVAILABLE"
    context = ToolContext(permissions=frozenset({"knowledge:read"}), services={"knowledge": Facts()})
    result = await tool.run({"query": "lightning", "limit": 2}, context)
    assert [item["id"] for item in result.data] == ["k0", "k1"]
    assert result.text.startswith("[k0] lightning\n")
    assert len(result.text) < 5000
