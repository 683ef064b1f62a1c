"""A28: what models and pages name is fetched by the guarded client only; nobody else makes a client in these rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3] / "src/agentlightning"
WATCHED = ("tools", "platform")

# Where a client is made on purpose, and why its addresses are nobody's to choose.
ESCAPES = {
    "tools/web/client.py": "the guarded client itself",
    "platform/model_calls.py": "the gateway of this process, in process",
    "tools/mcp/client.py": "the MCP servers that an operator has configured on disk",
    "platform/tasks/execution.py": "the gateway of this platform, in the same process",
    "platform/tasks/react.py": "a client that sends nothing, for a library that insists on having one",
    "platform/embedding/remote.py": "the embedding server that an operator has configured",
    "platform/learning/training.py": "the gateway of this platform, which the supervisor names, for a judge's verdict",
    "platform/learning/trainable.py": "the gateway of the training run, whose address the trainer gives",
}

CLIENTS = {
    "httpx": {"AsyncClient", "Client", "AsyncHTTPTransport", "HTTPTransport", "get", "post", "put", "patch", "delete"}
    | {"request", "stream", "head", "options"},
    "httpx2": {"AsyncClient", "Client", "get", "post", "request", "stream"},
    "httpcore": None,
    "aiohttp": {"ClientSession", "request", "TCPConnector", "UnixConnector"},
    "requests": None,
    "urllib3": None,
    "urllib.request": None,
    "http.client": None,
    "ftplib": None,
    "telnetlib": None,
    "smtplib": None,
    "xmlrpc.client": None,
    "websockets": None,
    "pycurl": None,
}
"""Names that make connections; `None` for every one of the module."""
CALLS = {"create_connection", "open_connection", "urlopen"}


def uses(source: str) -> list[str]:
    """What in a source makes connections."""
    modules: dict[str, str] = {}
    found: list[tuple[int, str]] = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {name.asname or name.name: name.name for name in node.names}
        found += [(getattr(node, "lineno", 0), f"import {name}") for name in imported(node)]
    types = annotations(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in types and makes(node, modules):
            found.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            named = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            found += [(node.lineno, ast.unparse(node))] if str(named).split(".")[0] in CLIENTS else []
    return [f"{line}: {what}" for line, what in sorted(set(found))]


def annotations(tree: ast.AST) -> set[ast.AST]:
    """What is only named as a type."""
    found: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.returns)
    return {inner for node in found if node is not None for inner in ast.walk(node)}


def imported(node: ast.AST) -> list[str]:
    """The clients that a statement imports."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names if CLIENTS.get(name.name, ()) is None]
    if not isinstance(node, ast.ImportFrom) or not node.module:
        return []
    taken = CLIENTS.get(node.module, ())
    names = [name.name for name in node.names]
    return [n for n in names if taken is None or n in taken or CLIENTS.get(f"{node.module}.{n}", ()) is None]


def makes(node: ast.Attribute, modules: dict[str, str]) -> bool:
    """Whether `module.name` is a client, or opens a connection."""
    names = CLIENTS.get(modules.get(ast.unparse(node.value), ""), ())
    opens = isinstance(node.value, ast.Name) and node.value.id in ("socket", "asyncio", "request")
    return names is None or node.attr in names or (opens and node.attr in CALLS)


FILES = sorted(path for room in WATCHED for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a28_no_other_client_is_made(path):
    name = str(path.relative_to(ROOT))
    found = uses(path.read_text(encoding="utf-8"))
    if name in ESCAPES:
        assert found, f"{name} makes no client any more: take it off the list"
    else:
        assert found == [], f"{name}: use agentlightning.tools.web.GuardedClient"


@pytest.mark.parametrize(
    "source",
    [
        "import httpx\nasync def f():\n    async with httpx.AsyncClient() as c: pass",
        "import httpx as h\nh.get('http://x')",
        "from httpx import AsyncClient as Nice",
        "import requests",
        "import urllib.request\nurllib.request.urlopen('http://x')",
        "from urllib import request",
        "from urllib.request import urlopen",
        "def f():\n    import aiohttp\n    return aiohttp.ClientSession()",
        "import socket\nsocket.create_connection(('x', 1))",
        "import asyncio\nasyncio.open_connection('x', 1)",
        "import http.client",
        "__import__('requests')",
        "import importlib\nimportlib.import_module('httpx')",
    ],
)
def test_the_lint_sees_it(source):
    assert uses(source)


@pytest.mark.parametrize(
    "source",
    [
        "import httpx\nhttpx.URL('x')",
        "import httpx\ndef f(c: httpx.Client) -> httpx.Client: ...",
        "from urllib.parse import urlsplit",
        "import asyncio",
    ],
)
def test_the_lint_lets_the_harmless_pass(source):
    assert uses(source) == []
