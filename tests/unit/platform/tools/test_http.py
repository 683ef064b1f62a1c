"""Tools over HTTP: who may, what a tool says, and that nothing can be added from outside (A22, A39)."""

import sys
import time
from pathlib import Path

import pytest

import tests.unit.tools.mcp_stand as stand
from tests.unit.platform.site import bearer, error_code


@pytest.fixture(scope="module")
def site(make_site):
    return make_site()


@pytest.fixture(scope="module")
def user(site):
    return site.headers("user")


def run(site, headers, name, arguments, **more):
    return site.client.post(f"/api/v2/tools/{name}/run", headers=headers, json={"arguments": arguments, **more})


def test_the_list_says_what_works_and_what_one_may(site, user):
    tools = {tool["name"]: tool for tool in site.client.get("/api/v2/tools", headers=user).json()["data"]["tools"]}
    assert {"python", "web_search", "web_browse", "files", "database", "http", "knowledge"} <= set(tools)
    assert not tools["http"]["available"]
    assert "[http.hosts]" in tools["http"]["reason"]
    assert all(tool["allowed"] for tool in tools.values())
    assert tools["files"]["parameters"]["required"] == ["action"]


def test_each_user_and_session_has_files_of_its_own(site, user):
    assert run(site, user, "files", {"action": "write", "path": "a.txt", "content": "mine"}).status_code == 200
    read = {"action": "read", "path": "a.txt"}
    assert run(site, user, "files", read).json()["data"]["text"] == "mine"
    other = run(site, site.headers("user"), "files", read).json()["data"]
    assert (other["is_error"], other["data"]["code"]) == (True, "NOT_FOUND")
    assert run(site, user, "files", read, session_id="../own").json()["data"]["is_error"]


def test_python_runs_in_the_sandbox_or_says_why_not(site, user):
    state = site.client.get("/api/v2/health").json()["data"]["components"]["sandbox"]
    answer = run(site, user, "python", {"code": "import os; (6 * 7, os.getuid() == 0)"}, timeout_s=60)
    if state["state"] == "off":
        assert state["reason"]
        assert error_code(answer) == "TOOL_UNAVAILABLE"
    else:
        assert state["kind"] in ("bubblewrap", "landlock")
        assert answer.json()["data"]["text"] == "(42, False)"


def test_what_does_not_fit_is_refused(site, user):
    assert error_code(run(site, user, "none", {})) == "NOT_FOUND"
    assert error_code(run(site, user, "files", {"action": "burn"})) == "TOOL_FAILED"
    assert error_code(run(site, user, "http", {"url": "http://x.example"})) == "TOOL_UNAVAILABLE"
    assert run(site, user, "files", {"action": "list"}, workspace="/etc").status_code == 422
    assert run(site, user, "files", {"action": "list"}, permissions=["*"]).status_code == 422


def test_a39_a_key_that_may_not_use_a_tool_does_not(site, user):
    made = site.client.post(
        "/api/v2/api-keys", headers=user, json={"name": "narrow", "permissions": ["agent:read", "agent:assign"]}
    ).json()["data"]
    key = {"X-API-Key": next(value for name, value in made.items() if name in ("key", "api_key"))}
    listed = {tool["name"]: tool for tool in site.client.get("/api/v2/tools", headers=key).json()["data"]["tools"]}
    assert listed["files"]["allowed"]
    assert not listed["knowledge"]["allowed"]
    assert error_code(run(site, key, "knowledge", {"query": "x"})) == "TOOL_DENIED"
    assert run(site, key, "files", {"action": "list"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a22_no_tool_and_no_server_can_be_added(site, method):
    admin = site.headers("admin")
    body = {"name": "evil", "command": ["sh", "-c", "id"]}
    for path in ("/api/v2/tools", "/api/v2/tools/evil", "/api/v2/mcp"):
        assert site.client.request(method, path, headers=admin, json=body).status_code in (403, 404, 405)


def test_who_ran_a_tool_is_noted_and_not_with_what(site):
    name = site.add_user()
    mine = bearer(site.login(name)["access_token"])
    run(site, mine, "files", {"action": "write", "path": "a.txt", "content": "canary-7"})
    run(site, mine, "files", {"action": "burn"})
    asked = {"action": "tool.run", "actor": name}
    found = site.client.get("/api/v2/audit", headers=site.headers("admin"), params=asked)
    assert [entry["target"] for entry in found.json()["data"]["entries"]] == ["files"]
    assert "canary-7" not in found.text


SERVERS = """
[mcp.stand]
command = ['{python}', '{stand}']
tools = ["add"]
[mcp.absent]
command = ["no-such-program-anywhere"]
[mcp.keyless]
command = ['{python}', '{stand}']
env = ["NOT_SET_ANYWHERE"]
permission = "system:write"
[mcp.babbler]
command = ['{python}', '-c', "print('hello', flush=True); input()"]
"""


def test_a_server_that_cannot_be_used_is_shown_with_its_reason(make_site, tmp_path, monkeypatch):
    """In the health and in the list; calling it says the same, and the platform is as healthy as without it."""
    settings = tmp_path / "tools.toml"
    settings.write_text(SERVERS.format(python=sys.executable, stand=Path(stand.__file__).resolve()))
    monkeypatch.setenv("AGL_TOOLS", str(settings))
    site = make_site()
    headers = site.headers("user")

    def health():
        return site.client.get("/api/v2/health").json()["data"]

    deadline = time.monotonic() + 60
    while "It is being started." in health()["tools"].values():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = health()
    servers = {name: state for name, state in found["tools"].items() if name.startswith("mcp:")}
    assert set(servers) == {"mcp:stand:add", "mcp:absent", "mcp:keyless", "mcp:babbler"}
    assert servers["mcp:stand:add"] == "on"
    assert "no-such-program-anywhere" in servers["mcp:absent"]
    assert "Set NOT_SET_ANYWHERE." in servers["mcp:keyless"]
    assert servers["mcp:babbler"].startswith("The MCP server babbler")
    assert found["status"] == "ok"

    listed = {tool["name"]: tool for tool in site.client.get("/api/v2/tools", headers=headers).json()["data"]["tools"]}
    assert {name: listed[name]["reason"] for name in servers} == {**servers, "mcp:stand:add": ""}
    assert [name for name in servers if listed[name]["available"]] == ["mcp:stand:add"]
    assert listed["mcp:absent"]["allowed"]
    assert not listed["mcp:keyless"]["allowed"]
    assert run(site, headers, "mcp:stand:add", {"a": 2, "b": 3}).json()["data"]["text"] == "5"
    for name, reason in servers.items():
        if name != "mcp:stand:add":
            answer = run(site, headers, name, {})
            assert (answer.status_code, error_code(answer)) == (503, "TOOL_UNAVAILABLE")
            assert reason in answer.json()["error"]["message"]
