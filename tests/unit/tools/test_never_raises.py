"""Whatever a model writes, a tool answers with text for it to read."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentlightning.tools import ToolContext, ToolResult, ToolSettings, toolbox
from agentlightning.tools.settings import DatabaseSettings, HttpSettings

TEXTS = st.text(max_size=40) | st.sampled_from(
    [
        "\0",
        "a\0b",
        "..",
        "/",
        "~",
        "\ud800",
        "%s%n",
        "{{7*7}}",
        "' OR 1=1 --",
        "select 1; select 2",
        "http://[",
        "http://a b",
    ]
)
VALUES = TEXTS | st.integers() | st.booleans() | st.none() | st.floats()
FIELDS = ["action", "path", "content", "old", "new", "pattern", "sql", "database", "url", "method", "headers", "body"]
FIELDS += ["query", "limit", "count", "start", "chars", "first_line", "lines"]
ACTIONS = ["read", "write", "append", "edit", "delete", "list", "glob", "search", "schema", "query"]
WORDS = ["select", "from", "(", ")", "*", ",", "'", '"', ";", "--", "/*", "union", "with", "as", "1", "a"]
ARGUMENTS = st.fixed_dictionaries(
    {"action": st.sampled_from(ACTIONS) | TEXTS},
    optional={name: VALUES | st.lists(VALUES, max_size=2) for name in FIELDS[1:]},
)


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return toolbox(
        ToolSettings(
            workspace=home / "space",
            databases={"main": DatabaseSettings(url=f"sqlite:///{home / 'none.db'}")},
            http=HttpSettings(hosts={"*": ("GET",)}),
        )
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["files", "database", "http", "web_browse", "knowledge"]),
    arguments=ARGUMENTS,
    whole=st.booleans(),
)
def test_whatever_is_written(tools, name, arguments, whole):
    known = set(tools[name].Arguments.model_fields)
    given_ = arguments if whole else {key: value for key, value in arguments.items() if key in known}
    result = asyncio.run(tools[name].run(given_, ToolContext(user="u", permissions=frozenset({"*"}), deadline_s=20)))
    assert isinstance(result, ToolResult)
    assert result.text


@settings(max_examples=200, deadline=None)
@given(
    path=TEXTS, content=TEXTS, action=st.sampled_from(["read", "write", "append", "delete", "list", "search", "glob"])
)
def test_any_path(tools, path, content, action):
    raw = {"action": action, "path": path, "content": content, "pattern": content}
    result = asyncio.run(tools["files"].run(raw, ToolContext(user="v", permissions=frozenset({"*"}))))
    assert result.text


@settings(max_examples=200, deadline=None)
@given(sql=st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
def test_any_sql(tools, sql):
    result = asyncio.run(tools["database"].run({"sql": sql}, ToolContext(permissions=frozenset({"*"}))))
    assert result.is_error  # there is no such file
    assert result.text
