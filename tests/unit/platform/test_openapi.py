"""The description of the API is true: what is answered is what it says, also when something goes wrong."""

import re
import secrets
import subprocess
import sys

import jsonschema
import pytest

from agentlightning.platform.auth.permissions import TABLE
from agentlightning.platform.columns import now
from agentlightning.platform.learning.models import Experiment
from tests.unit.platform.agents.calls import agent_calls
from tests.unit.platform.site import PASSWORD, bearer
from tests.unit.platform.tasks.things import add_agents, models

STREAMS = "/api/v2/events"
DESCRIBED = sorted(key for key in TABLE if key[1].startswith(("/auth", "/api", "/agents")) and key[1] != STREAMS)


@pytest.fixture(scope="module")
def site(make_site, server):
    made = make_site(models=models(server), default_model="m")
    add_agents(made)
    return made


@pytest.fixture(scope="module")
def described(site):
    return site.client.get("/openapi.json").json()


def check(described, method, route, answer):
    """Whether the body is what the description promises for its status."""
    responses = described["paths"][route][method.lower()]["responses"]
    found = responses.get(str(answer.status_code)) or responses["5XX" if answer.status_code >= 500 else "4XX"]
    schema = {**found["content"]["application/json"]["schema"], "components": described["components"]}
    jsonschema.validate(answer.json(), schema)
    jsonschema.validate(answer.json(), {"required": ["success", "timestamp", "request_id"]})
    assert answer.json()["success"] is (answer.status_code < 400)


def calls(site):
    """Every call that answers JSON, once so that it works."""
    made = site.login(site.add_user("admin"))
    headers = bearer(made["access_token"])
    name = site.add_user()
    post, users, keys = site.client.post, "/api/v2/users", "/api/v2/api-keys"
    yield "POST", "/auth/login", post("/auth/login", json={"username": name, "password": PASSWORD})
    yield "POST", "/auth/refresh", post("/auth/refresh", json={"refresh_token": made["refresh_token"]})
    yield "GET", "/auth/profile", site.client.get("/auth/profile", headers=headers)
    yield "GET", "/api/v2/health", site.client.get("/api/v2/health")
    yield "GET", users, site.client.get(users, headers=headers)
    user = post(users, headers=headers, json={"username": f"{name}-b"})
    yield "POST", users, user
    one = f"{users}/{user.json()['data']['user_id']}"
    yield "GET", users + "/{user_id}", site.client.get(one, headers=headers)
    yield "PATCH", users + "/{user_id}", site.client.patch(one, headers=headers, json={"disabled": True})
    yield "DELETE", users + "/{user_id}", site.client.delete(one, headers=headers)
    key = post(keys, headers=headers, json={"name": "k", "permissions": ["system:read"]})
    yield "POST", keys, key
    yield "GET", keys, site.client.get(keys, headers=headers)
    yield "DELETE", keys + "/{key_id}", site.client.delete(f"{keys}/{key.json()['data']['id']}", headers=headers)
    yield "GET", "/api/v2/audit", site.client.get("/api/v2/audit", headers=headers)
    system = "/api/v2/system"
    yield "GET", f"{system}/status", site.client.get(f"{system}/status", headers=headers)
    yield "GET", f"{system}/stats", site.client.get(f"{system}/stats", headers=headers)
    config = site.client.get(f"{system}/config", headers=headers)
    yield "GET", f"{system}/config", config
    same = {"version": config.json()["data"]["version"], "config": {}}
    yield "PUT", f"{system}/config", site.client.put(f"{system}/config", headers=headers, json=same)
    one, sealed = f"{system}/secrets/SOME_API_KEY", f"{system}/secrets/{{name}}"
    yield "PUT", sealed, site.client.put(one, headers=headers, json={"value": "of nobody"})
    yield "GET", f"{system}/secrets", site.client.get(f"{system}/secrets", headers=headers)
    yield "DELETE", sealed, site.client.delete(one, headers=headers)
    yield from agent_calls(site, headers)
    yield from task_calls(site, headers)
    yield from knowledge_calls(site, headers)
    yield from rl_calls(site, headers)
    yield from memory_calls(site, headers)
    yield "GET", "/api/v2/tools", site.client.get("/api/v2/tools", headers=headers)
    listing = {"arguments": {"action": "list"}}
    yield "POST", "/api/v2/tools/{name}/run", post("/api/v2/tools/files/run", headers=headers, json=listing)
    own = bearer(site.login(name)["access_token"])
    change = {"current_password": PASSWORD, "new_password": "five other unrelated words"}
    yield "PUT", "/auth/password", site.client.put("/auth/password", headers=own, json=change)
    yield "POST", "/auth/logout", post("/auth/logout", headers=headers)


async def started(pool):
    pool.start()


def task_calls(site, headers):
    post, one = site.client.post, "/api/v2/tasks/{task_id}"
    body = {"task": "x", "agent": "data_agent"}
    made = post("/api/v2/agents/assign", headers=headers, json=body)
    yield "POST", "/api/v2/agents/assign", made
    for path in ("/api/v2/agents/execute", "/agents/execute"):
        yield "POST", path, post(path, headers=headers, json=body)
    yield "GET", "/api/v2/tasks", site.client.get("/api/v2/tasks", headers=headers)
    number = made.json()["task_id"]
    path = f"/api/v2/tasks/{number}"
    yield "GET", f"{one}/result", site.client.get(f"{path}/result", headers=headers, params={"wait_s": 20})
    yield "GET", one, site.client.get(path, headers=headers)
    yield "GET", "/api/v1/tasks/{task_id}", site.client.get(f"/api/v1/tasks/{number}", headers=headers)
    yield "GET", f"{one}/trace", site.client.get(f"{path}/trace", headers=headers)
    yield "POST", f"{one}/feedback", post(f"{path}/feedback", headers=headers, json={"thumb": "up"})
    site.run(site.platform.tasks.pool.stop())
    other = post("/api/v2/agents/assign", headers=headers, json=body).json()["task_id"]
    yield "POST", f"{one}/cancel", post(f"/api/v2/tasks/{other}/cancel", headers=headers)
    site.run(started(site.platform.tasks.pool))
    yield "GET", "/api/v2/pool", site.client.get("/api/v2/pool", headers=headers)
    yield "POST", "/api/v2/ws-ticket", post("/api/v2/ws-ticket", headers=headers)


def rl_calls(site, headers):
    post, get, base = site.client.post, site.client.get, "/api/v2/rl"
    yield "GET", f"{base}/auto-status", get(f"{base}/auto-status", headers=headers)
    yield "POST", f"{base}/auto-trigger", post(f"{base}/auto-trigger", headers=headers, json={"agent_id": "data_agent"})
    path, one = f"{base}/experiments", base + "/experiments/{experiment_id}"
    made = post(path, headers=headers, json={"name": secrets.token_hex(4), "agent": "sql_agent", "algorithm": "edit"})
    yield "POST", path, made
    number = made.json()["data"]["id"]
    yield "POST", f"{one}/stop", post(f"{path}/{number}/stop", headers=headers)
    yield "GET", path, get(path, headers=headers)
    yield "GET", one, get(f"{path}/{number}", headers=headers)
    done = site.run(finished(site.platform))
    yield "POST", f"{one}/apply", post(f"{path}/{done}/apply", headers=headers)
    yield "POST", f"{one}/rollback", post(f"{path}/{done}/rollback", headers=headers)


async def finished(platform):
    """An experiment that has found a better prompt."""
    agent = await platform.agents.find("content_agent")
    made = Experiment(
        name=secrets.token_hex(4),
        algorithm="apo",
        config={},
        status="completed",
        agent_id=agent.id,
        agent_version=agent.version,
        created_at=now(),
        metrics={"is_improved": True},
        checkpoints=[{"kind": "best", "prompts": {"system_prompt": f"Write well. {secrets.token_hex(4)}"}}],
        reason="",
    )
    async with platform.database.write() as session:
        session.add(made)
    return made.id


def memory_calls(site, headers):
    base, call = "/api/v2/memory", site.client.request
    memories, sessions = base + "/memories", base + "/sessions"
    made = call("POST", memories, headers=headers, json={"text": "I like short answers.", "metadata": {"a": 1}})
    yield "POST", memories, made
    one, number = memories + "/{memory_id}", made.json()["data"]["id"]
    yield "GET", memories, call("GET", memories, headers=headers)
    yield "POST", memories + "/search", call("POST", memories + "/search", headers=headers, json={"text": "short?"})
    yield "GET", one, call("GET", f"{memories}/{number}", headers=headers)
    yield "PUT", one, call("PUT", f"{memories}/{number}", headers=headers, json={"text": "Short ones."})
    yield "DELETE", one, call("DELETE", f"{memories}/{number}", headers=headers)
    me = int(site.client.get("/auth/profile", headers=headers).json()["data"]["user_id"].removeprefix("user_"))
    site.run(site.platform.memory.append(me, "s1", [{"role": "user", "content": "hello"}]))
    yield "GET", sessions, call("GET", sessions, headers=headers)
    yield "GET", sessions + "/{session_id}", call("GET", sessions + "/s1", headers=headers)
    yield "DELETE", sessions + "/{session_id}", call("DELETE", sessions + "/s1", headers=headers)


def knowledge_calls(site, headers):
    path, call = "/api/v2/knowledge", site.client.request
    body = {"title": "Cache", "content": "How to configure the cache.", "tags": ["docs"], "metadata": {"a": [1, None]}}
    made = call("POST", path, headers=headers, json=body)
    yield "POST", path, made
    one = f"{path}/{made.json()['data']['id']}"
    yield "GET", path, call("GET", path, headers=headers)
    found = {"q": "cache configuration"}
    yield "GET", path + "/search", call("GET", path + "/search", headers=headers, params=found)
    yield "GET", path + "/{item_id}", call("GET", one, headers=headers)
    yield "PUT", path + "/{item_id}", call("PUT", one, headers=headers, json={"title": "Caches", "version": 1})
    yield "GET", path + "/{item_id}/versions", call("GET", one + "/versions", headers=headers)
    yield "DELETE", path + "/{item_id}", call("DELETE", one, headers=headers)
    documents = {"documents": [{"name": "a.md", "content": "# A page\n\nwith some text in it"}]}
    yield "POST", path + "/import", call("POST", path + "/import", headers=headers, json=documents)
    file = {"params": {"name": "a.txt"}, "content": b"some other text of a file that is plain"}
    yield "POST", path + "/import/file", call("POST", path + "/import/file", headers=headers, **file)
    started = call("POST", path + "/import", headers=headers, json={"packages": ["typer"]})
    check_id = started.json()["data"]["id"]
    yield "POST", path + "/import", started
    yield "GET", path + "/imports/{import_id}", call("GET", f"{path}/imports/{check_id}", headers=headers)


def test_answers_are_what_is_described(site, described):
    seen = set()
    for method, route, answer in calls(site):
        assert answer.is_success, (method, route, answer.text)
        check(described, method, route, answer)
        seen.add((method, route))
    assert set(DESCRIBED) == seen


@pytest.mark.parametrize(("method", "route"), DESCRIBED)
def test_refusals_are_what_is_described(site, described, method, route):
    path = re.sub(r"\{[a-z_]+\}", "0", route)
    for headers in ({}, {"Authorization": "Bearer x"}, {"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = site.client.request(method, path, headers=headers, content=b"{")
        if not answer.is_success:
            check(described, method, route, answer)


def test_every_call_says_what_it_does(described):
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"].endswith("."), (method, path)


@pytest.mark.parametrize("module", ["bcrypt", "jwt", "fastapi", "aiosqlite", "cryptography"])
def test_a_missing_package_is_said_with_its_extra(module):
    code = f"import sys; sys.modules[{module!r}] = None; import agentlightning.platform.app"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "agentlightning[platform]" in done.stderr
