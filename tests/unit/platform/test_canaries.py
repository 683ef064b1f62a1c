"""A36: keys on every way that fails, told by everybody who was sent one; nothing that is written afterwards has one.

Each key holds the canary. The model server and the interface that tools call repeat all that they were sent in their
errors, as bad servers do; so do a tool server's errors and what it prints.
"""

import base64
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from agentlightning.cli.main import TOO_TALKATIVE, main
from agentlightning.gateway import CallError, OpenAIUpstream, RoutingTable
from agentlightning.modelservice.fronts import Fronts
from agentlightning.platform.mounts import ModelSetup
from agentlightning.store.transfer import export_store
from tests.unit.gateway.scripted import reply
from tests.unit.platform.agents.calls import AGENTS, ended
from tests.unit.platform.agents.things import plain
from tests.unit.platform.models import served
from tests.unit.platform.site import Site, settings_for, until
from tests.unit.platform.tasks.things import Caller, asked, definition

CANARY = "kanarienvogel4711"
KEYS = {
    name: f"sk/{place}+{CANARY}-{'x' * 20}"
    for place, name in enumerate(
        ("OPENAI_API_KEY", "A36_HTTP_KEY", "A36_SEARCH_KEY", "A36_MCP_KEY", "A36_STORED_KEY", "A36_URL_PASSWORD")
    )
}
VARIABLES = {
    **KEYS,
    "A36_DATABASE": f"postgresql://me:{quote(KEYS['A36_URL_PASSWORD'], safe='')}@127.0.0.1:1/none",
    "A36_NO_DATABASE": f"mysql://me:{CANARY}@127.0.0.1:1/none",
    "A36_ODD_DATABASE": f"postgresql://me:{CANARY}/with@slash:5432/none?schema={CANARY}",
}
TOOLS = """
[web]
private_hosts = ["{host}"]
[search]
backend = "brave"
url = "http://{host}/search"
key_env = "A36_SEARCH_KEY"
[http]
hosts = {{ "{host}" = ["GET", "POST"] }}
secrets = [{{ host = "{host}", header = "x-key", value_env = "A36_HTTP_KEY", prefix = "Bearer " }}]
[databases.away]
url_env = "A36_DATABASE"
[databases.other]
url_env = "A36_NO_DATABASE"
[databases.odd]
url_env = "A36_ODD_DATABASE"
[mcp.teller]
command = ["{python}", "{teller}"]
env = ["A36_MCP_KEY"]
[mcp.dead]
command = ["{python}", "-c", "import os, sys; sys.exit('I have ' + os.environ['A36_MCP_KEY'])"]
env = ["A36_MCP_KEY"]
"""
TELLER = """
import os, sys
from mcp.server.mcpserver import MCPServer
key = os.environ["A36_MCP_KEY"]
print("I begin with", key, file=sys.stderr, flush=True)
server = MCPServer("teller")
@server.tool()
def fail() -> str:
    raise ValueError("refused: " + key)
@server.tool()
def tell() -> str:
    print("asked, with", key, file=sys.stderr, flush=True)
    return "401 for " + key
server.run("stdio")
"""


def forms(canary: str) -> list[bytes]:
    """The canary as it is and as programs write keys: in base64 at each of three places, and in hexadecimal."""
    coded = [base64.b64encode(b"-" * shift + canary.encode())[4:-4] for shift in range(3)]
    return [canary.encode(), canary.encode().hex().encode(), *coded]


def assert_silent(said: bytes | str, where: str) -> None:
    raw = said.encode() if isinstance(said, str) else said
    for form in forms(CANARY):
        place = raw.find(form)
        assert place < 0, f"{where} tells a key: ...{raw[max(0, place - 300) : place + 100]!r}"


def telling(status: int, kind: str = "json") -> Any:
    """A script entry of the model server: an error that repeats the headers it was sent."""

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        told = json.dumps(dict(request.headers))
        if kind == "text":
            return PlainTextResponse(f"<html>{told}", status)
        if kind == "redirect":
            return RedirectResponse(f"/elsewhere?{quote(told)}", 302)
        if kind == "stream":
            return Response(f"data: {told}\n\ndata: [DONE]\n\n", media_type="text/event-stream")
        error = {"message": f"I was sent {told}", "code": request.headers.get("authorization"), "type": told}
        return reply({"error": error, "detail": told}, status, {"x-told": quote(told)})

    return answer


def interface() -> Starlette:
    """Whatever is asked for, it answers with what it was sent."""

    async def tell(request: Request) -> Response:
        told = json.dumps(dict(request.headers))
        if request.url.path == "/moved" and not request.url.query:
            return RedirectResponse(f"/moved?{quote(told)}", 302)
        if request.url.path == "/away":
            return RedirectResponse(f"http://10.0.0.1/{quote(told)}", 302)
        return PlainTextResponse(told, 500, {"etag": quote(told), "link": told})

    return Starlette(routes=[Route("/{path:path}", tell, methods=["GET", "POST"])])


@pytest.fixture(scope="module")
def world(tmp_path_factory, server):
    """A platform whose keys are canaries, all that it answers, and what was logged."""
    home: Path = tmp_path_factory.mktemp("home") / "home"
    home.mkdir()
    teller = home.parent / "teller.py"
    teller.write_text(TELLER, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, served(interface()) as url:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        host = url.removeprefix("http://")
        filled = TOOLS.format(host=host, python=sys.executable, teller=teller)
        (home / "tools.toml").write_text(filled, encoding="utf-8")
        setup = ModelSetup(fronts=Fronts(base_url=server.base_url))
        site = Site(settings_for(home, default_model="m", task_attempts=1), models=setup).start()
        site.answers = []
        site.host = host

        def keep(answer: Any) -> None:
            answer.read()
            site.answers.append(f"{answer.headers} {answer.text}")

        site.client.event_hooks["response"].append(keep)
        yield site
        site.stop()
        assert_silent(b"\n".join(path.read_bytes() for path in home.rglob("*") if path.is_file()), "a file, at the end")


@pytest.fixture(autouse=True)
def all_is_logged(caplog, capfd, world):
    """Every line of every library, and what is printed; looked at after each test, with all that was answered."""
    caplog.set_level(logging.DEBUG)
    for name in TOO_TALKATIVE:  # as `agl` does with AGL_DEBUG=1
        caplog.set_level(logging.INFO, name)
    world.answers.clear()
    yield
    # But for what the test itself asks for: its client, in this thread.
    logged = [each for each in caplog.get_records("call") if each.thread != threading.get_ident()]
    for record in logged:
        assert_silent(logging.Formatter().format(record), f"the log of {record.name}")
    printed = capfd.readouterr()
    assert_silent(printed.out + printed.err, "the terminal")
    for answer in world.answers:
        assert_silent(answer, "an answer")


@pytest.fixture(scope="module")
def admin(world):
    return Caller(world, "admin")


@pytest.fixture(scope="module")
def user(world):
    return Caller(world)


FAILURES = [
    telling(401),
    telling(400),
    telling(404),
    telling(429),
    telling(500),
    telling(503, "text"),
    telling(200, "text"),
    telling(200),
    telling(302, "redirect"),
]


def test_a36_a_model_server_that_tells_its_key(world, server, user, admin):
    for number, failure in enumerate(FAILURES):
        server.script[:] = [failure] * 12  # with what is tried again
        done = user.until(user.assign(f"ask {number}"))
        assert done["status"] == "failed", done
        assert user.get(f"/api/v2/tasks/{done['task_id']}/trace").status_code == 200
    for failure in (*FAILURES, telling(200, "stream")):
        for stream in (False, True):
            server.script[:] = [failure] * 12
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
            assert admin.post("/v1/chat/completions", body).status_code in (200, 400, 404, 429, 502, 503)
        server.script[:] = [failure] * 12
        assert admin.post("/v1/embeddings", {"model": "m", "input": "hi"}).status_code >= 400
    server.script.clear()
    assert_nowhere(world, admin)


def test_a36_an_evaluation_that_fails(world, server, admin):
    for place, failure in enumerate(FAILURES[:2]):
        name = f"canary{place}_agent"
        assert admin.post(AGENTS, {"definition": plain(name)}).status_code == 201
        server.script[:] = [failure] * 12
        started = admin.post(f"{AGENTS}/{name}/evaluate", {})
        found = ended(world, admin.headers, f"{AGENTS}/{name}/evaluations/{started.json()['data']['id']}")
        assert found["passed"] in (None, 0)
    server.script.clear()
    assert admin.post(f"{AGENTS}/design", {"description": "An agent for tides."}).status_code >= 400
    assert_nowhere(world, admin)


CALLS = [
    ("http", {"url": "http://{host}/x", "method": "POST", "body": "x"}),
    ("http", {"url": "http://{host}/moved"}),
    ("http", {"url": "http://{host}/away"}),
    ("web_search", {"query": "tides"}),
    ("database", {"action": "query", "database": "away", "sql": "SELECT 1"}),
    ("database", {"action": "schema", "database": "other"}),
    ("database", {"action": "schema", "database": "odd"}),
    ("mcp:teller:fail", {}),
    ("mcp:teller:tell", {}),
]


def filled(world, arguments):
    return {name: value.replace("{host}", world.host) for name, value in arguments.items()}


def test_a36_tools_that_fail(world, server, user, admin):
    until(lambda: {"mcp:teller:fail", "mcp:teller:tell"} <= set(world.platform.tools.all))
    world.run(
        world.platform.agents.change(
            "data_agent", definition("data_agent", tools=sorted({name for name, _ in CALLS if ":" not in name}))
        )
    )
    for name, arguments in CALLS:
        answer = user.post(f"/api/v2/tools/{name}/run", {"arguments": filled(world, arguments)})
        assert answer.status_code == 200, answer.text
        told = answer.json()["data"]
        assert told["is_error"] or name == "mcp:teller:tell", told
    assert user.get("/api/v2/tools").status_code == 200
    for name, arguments in CALLS[:7]:
        server.script[:] = [asked(name, **filled(world, arguments)), telling(400)]
        done = user.until(user.assign(f"use {name} {arguments}"))
        assert done["status"] == "failed"
        assert name in user.get(f"/api/v2/tasks/{done['task_id']}/trace").text
    server.script.clear()
    assert_nowhere(world, admin)


def test_a36_what_is_sent_where_it_does_not_belong(world, admin):
    key = KEYS["A36_STORED_KEY"]
    url = "/api/v2/system/secrets"

    def put(name: str, body: Any) -> int:
        return world.client.put(f"{url}/{name}", headers=admin.headers, json=body).status_code

    assert put("A36_STORED_KEY", {"value": key}) == 200
    assert put(quote(key, safe=""), {"value": "x"}) in (404, 422)
    assert put(f"sk-{CANARY}", {"value": key}) == 422
    for body in (
        {"value": key + "\0"},
        {"value": key * 999},
        {"value": [key]},
        {"value": key, "also": key},
        {"valu": key},
        key,
    ):
        assert put("A36_STORED_KEY", body) == 422
    raw = b'{"value": "' + key.encode()
    assert world.client.put(f"{url}/A36_STORED_KEY", headers=admin.headers, content=raw).status_code == 422
    assert world.client.delete(f"{url}/sk-{CANARY}", headers=admin.headers).status_code == 422
    assert world.client.delete(f"{url}/A36_STORED_KEY", headers=admin.headers).status_code == 200
    for path in ("/api/v2/system/config", "/auth/password"):
        assert world.client.put(path, headers=admin.headers, json={"openai_api_key": key}).status_code == 422
    for headers in ({"X-API-Key": f"agl_{CANARY}"}, {"Authorization": f"Bearer {key}"}, {"Cookie": f"token={key}"}):
        assert world.client.get("/auth/profile", headers=headers).status_code == 401
    assert world.client.get("/auth/profile", params={"token": key}).status_code == 401
    assert_nowhere(world, admin)


def test_a36_json_files_with_keys(world, admin, tmp_path):
    key = KEYS["A36_STORED_KEY"]
    agent = {"type": "t", "description": "d", "config": {"system_prompt": "Be brief.", "api_key": key}}
    files = {
        "users.json": [{"username": "kept", "password": key}, {"username": key * 9, "password_hash": key}],
        "agents.json": {
            "keeper_agent": {**agent, "openai_api_key": key, "config": {"env": {"SECRET": key}, "llm": {"token": key}}},
            "other_agent": agent,
        },
        "tasks.json": [{"task": "x", "agent": "keeper_agent", "api_key": key, "priority": key}],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(orjson.dumps(content))
    (tmp_path / "knowledge.json").write_text('[{"title": "' + key, encoding="utf-8")
    command = [sys.executable, "-m", "agentlightning.cli.main", "migrate-json", str(tmp_path)]
    command += ["--home", str(world.settings.home), "--report", str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert_silent(done.stdout + done.stderr, "agl migrate-json")
    assert_silent((tmp_path / "report.json").read_bytes(), "its report")
    made = admin.get(f"{AGENTS}/keeper_agent")
    assert made.status_code == 200, made.text + done.stdout
    assert_nowhere(world, admin)


def content(path: Path) -> bytes:
    """Read by another process: this one would lose its locks on a database with the file that it closes."""
    return subprocess.run(["cat", str(path)], capture_output=True, check=False).stdout


def assert_nowhere(world, admin) -> None:
    """Files with the write-ahead log, spans, exports, audit log, metrics, health, events, and what lists tell."""
    home = world.settings.home
    for path in ("/metrics", "/api/v2/audit?limit=500", "/api/v2/health", "/health", "/api/v2/system/status"):
        assert_silent(admin.get(path).text, path)
    for path in ("/api/v2/tasks", "/api/v2/tools", "/api/v2/system/config", "/api/v2/agents/status", "/models"):
        assert_silent(admin.get(path).text, path)
    written = [path for path in home.rglob("*") if path.is_file()]
    assert {"platform.db", "platform.db-wal", "store.db"} <= {path.name for path in written}
    for path in written:
        assert_silent(content(path), str(path))
    target = home.parent / f"export{time.monotonic_ns()}"
    export_store(home / "store.db", target)
    for path in target.rglob("*"):
        assert_silent(path.read_bytes() if path.is_file() else b"", f"the export's {path.name}")


STARTS = [
    {"DATABASE_URL": f"postgresql://me:{CANARY}@127.0.0.1:odd/none"},
    {"DATABASE_URL": f"postgresql://me:{CANARY}/x@127.0.0.1:1/none"},
    {"DATABASE_URL": f"postgresql://me:{CANARY}@127.0.0.1:1/none?{CANARY}=1"},
    {"DATABASE_URL": f"mysql://me:{CANARY}@127.0.0.1:1/none"},
    {"DATABASE_URL": CANARY},
    {"REDIS_URL": f"redis://:{CANARY}/x@127.0.0.1:6379/0"},
    {"REDIS_URL": CANARY},
    {"AGL_JWT_SECRETS": CANARY},
    {"AGL_JWT_SECRETS": f"k1:{CANARY}"},
    {"AGL_SECRET_KEY": CANARY},
    {"AGL_STORE": f"postgresql://me:{CANARY}@127.0.0.1:1/none"},
    {"AGL_EMBEDDER": "http", "AGL_EMBEDDER_KEY": CANARY, "AGL_EMBEDDER_URL": f"http://u:{CANARY}@127.0.0.1:1/v1"},
    {"AGL_TRUSTED_PROXIES": "?", "AGL_EMBEDDER_KEY": CANARY},
    {"OPENAI_API_KEY": CANARY, "OPENAI_BASE_URL": f"nowhere-{CANARY}"},
    {"tools.toml": f'[search]\nbackend = "brave"\nkey = "{CANARY}"'},
    {"tools.toml": f'[search]\nbackend = "{CANARY}"'},
    {"tools.toml": f'[http]\nsecrets = [{{ host = "h", header = "x", value_env = "Bearer {CANARY}" }}]'},
    {"tools.toml": f'key = "{CANARY}'},
]


@pytest.mark.parametrize("wrong", STARTS, ids=lambda wrong: "-".join(wrong))
def test_a36_what_a_start_says_of_wrong_settings(wrong, tmp_path, monkeypatch, capfd):
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wrong.items():
        if name == "tools.toml":
            (tmp_path / name).write_text(value, encoding="utf-8")
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["agl", "up", "--port", "0", "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capfd.readouterr()
    assert (ended.value.code, told.out) == (1, "")
    assert told.err.startswith("error: ")
    assert_silent(told.err, "the error")


async def test_a36_a_key_in_the_address_of_a_model_server(server):
    """Some servers want it there; it is sent, and shown nowhere."""
    host = server.base_url.removeprefix("http://")
    for url in (f"http://{host}?api_key={CANARY}&version=2026", f"http://u:{CANARY}@{host}?version=2026"):
        table = RoutingTable(may_be_empty=True)
        told = str(Fronts(base_url=url).add_to(table)) + repr(table.upstreams) + repr(table.states())
        upstream = table.upstreams[0]
        assert host in told
        queries: list[str] = []

        async def refuse(request: Request, _: Any, queries: list[str] = queries) -> Response:
            queries.append(request.url.query)
            return reply({"error": f"{request.url} {dict(request.headers)}"}, 400)

        server.script[:] = [refuse]
        with pytest.raises(CallError) as caught:
            await upstream.embed({"model": "m", "input": "x"})
        assert queries[0].endswith("version=2026")
        await upstream.aclose()
        assert_silent(told + str(caught.value), "the upstream")
    odd = OpenAIUpstream(f"http://127.0.0.1:odd/v1?key={CANARY}")
    with pytest.raises(CallError) as caught:
        await odd.list_models()
    await odd.aclose()
    assert_silent(str(caught.value), "the upstream")
