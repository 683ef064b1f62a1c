"""Store, gateway and models behind the door: official clients work, and nobody gets in who may not."""

import os
import re
import stat
import subprocess
import sys

import anthropic
import httpx
import openai
import pytest

from agentlightning.modelservice.fronts import Fronts
from agentlightning.platform.auth.permissions import PUBLIC, ROLES, may, mount_of, rule_of
from agentlightning.platform.mounts import ModelSetup
from tests.unit.platform.models import scripted_server
from tests.unit.platform.site import bearer, error_code

pytestmark = pytest.mark.parametrize("make_site", ["sqlite"], indirect=True, scope="module")  # no tables of its own

ASK = [{"role": "user", "content": "hello"}]
LIMITS = {"max_model_body_bytes": 200_000, "max_record_body_bytes": 300_000}


@pytest.fixture(scope="module")
def site(make_site, server):
    return make_site(models=ModelSetup(fronts=Fronts(base_url=server.base_url)), **LIMITS)


def key_of(site, role="developer", permissions=None):
    headers = site.headers(role)
    body = {"name": "k", **({"permissions": permissions} if permissions else {})}
    return site.client.post("/api/v2/api-keys", headers=headers, json=body).json()["data"]["key"]


@pytest.fixture(scope="module")
def key(site):
    return key_of(site)


def mounted(site):
    """Every mounted route once, with something for its parameters."""
    found = {
        (method, route.path)
        for route in site.app.router.routes
        for method in getattr(route, "methods", set()) - {"HEAD"}
    }
    for method, route in sorted(found):
        if mount_of(method, route) is not None:
            yield method, route, re.sub(r"\{[^}]+\}", "none", route)


def test_a1_a2_every_mounted_route_and_every_role(site):
    tokens = {role: site.login(site.add_user(role)) for role in ROLES}
    ended = site.login(site.add_user("admin"))
    site.client.post("/auth/logout", headers=bearer(ended["access_token"]))
    bad = {"ended": ended["access_token"], "refresh": tokens["admin"]["refresh_token"], "key": "agl_" + "x" * 43}
    count = 0
    for method, route, path in mounted(site):
        count += 1
        rule = rule_of(method, route)
        assert rule not in (None, PUBLIC)
        assert site.client.request(method, path).status_code == 401
        for name, token in bad.items():
            assert (name, site.client.request(method, path, headers=bearer(token)).status_code) == (name, 401)
        for role, made in tokens.items():
            if may(role, None, rule):
                continue  # what then happens is the business of the rooms' own tests
            answer = site.client.request(method, path, headers=bearer(made["access_token"]))
            assert (path, role, answer.status_code, error_code(answer)) == (path, role, 403, "FORBIDDEN")
    assert count > 100


def test_users_call_no_models_and_write_no_records(site):
    assert not may("user", None, rule_of("POST", "/v1/chat/completions"))
    assert not may("user", None, rule_of("GET", "/v1/agl/rollouts"))
    assert not may("developer", None, rule_of("POST", "/models"))


def test_openai_client_with_a_key(site, key):
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0) as client:
        assert client.models.list().data
        made = client.chat.completions.create(model="m", messages=ASK)
        assert made.choices[0].message.content == "hello there"
        stream = client.chat.completions.create(model="m", messages=ASK, stream=True)
        pieces = [piece.choices[0].delta.content or "" for piece in stream if piece.choices]
        assert len(pieces) > 1
        assert "".join(pieces) == "hello there"


def test_anthropic_client_with_a_key(site, key):
    with anthropic.Anthropic(base_url=site.url, api_key=key, max_retries=0) as client:
        made = client.messages.create(model="m", max_tokens=10, messages=[{"role": "user", "content": "hello"}])
        assert made.content[0].text == "hello there"


def test_clients_understand_refusals(site):
    limited = key_of(site, permissions=["agent:read"])
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=limited, max_retries=0) as client:
        with pytest.raises(openai.PermissionDeniedError, match="You may not do this"):
            client.chat.completions.create(model="m", messages=ASK)
        assert client.models.list()
    with (
        openai.OpenAI(base_url=f"{site.url}/v1", api_key="agl_wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="API key is not valid"),
    ):
        client.models.list()


def test_a_call_below_a_rollout_is_recorded_with_its_caller(site, key):
    headers = bearer(key)
    made = site.client.post("/v1/agl/rollouts", headers=headers, json={"input": {"q": 1}}).json()
    where = f"/rollout/{made['rollout_id']}/attempt/{made['attempt']['attempt_id']}/v1/chat/completions"
    assert site.client.post(where, headers=headers, json={"model": "m", "messages": ASK}).status_code == 200
    spans = site.client.get("/v1/agl/spans", headers=headers, params={"rollout_id": made["rollout_id"]}).json()
    assert any("developer" in str(value) for value in spans["items"][0]["attributes"].values())


def test_a29_a_callers_api_base_gets_no_key(site, server, key):
    with scripted_server() as other:
        body = {"model": "m", "messages": ASK, "api_base": other.base_url, "base_url": other.base_url}
        site.client.post("/v1/chat/completions", headers=bearer(key), json=body)
        assert other.bodies == []
    assert key not in str(server.headers)


def test_a38_bodies_have_limits_of_their_own(site, key):
    for path, limit in (
        ("/v1/chat/completions", 200_000),
        ("/v1/agl/rollouts", 300_000),
        ("/registry/x/promote", 2**20),
    ):
        answer = site.client.post(path, headers=bearer(key), content=b" " * (limit + 1))
        assert (path, answer.status_code) == (path, 413)
        assert site.client.post(path, headers=bearer(key), content=b" " * 150_000).status_code != 413


def test_limits_of_calls_are_counted_apart(make_site, server):
    site = make_site(
        models=ModelSetup(fronts=Fronts(base_url=server.base_url)),
        requests_per_minute=3,
        model_calls_per_minute=2,
        records_per_minute=4,
    )
    headers = bearer(key_of(site))  # a login's request is not one of the key's
    statuses = [site.client.get("/v1/models", headers=headers).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    statuses = [site.client.get("/v1/agl/statistics", headers=headers).status_code for _ in range(5)]
    assert statuses == [200] * 4 + [429]
    assert site.client.get("/auth/profile", headers=headers).status_code == 200


def test_a33_a34_no_page_from_elsewhere_writes_through_a_mount(site, key):
    """Whatever the method, even with a good key; and no page under a name that is rebound."""
    methods = set()
    for method, _, path in mounted(site):
        rebound = site.client.request(method, path, headers={**bearer(key), "Host": "evil.example"})
        assert (path, error_code(rebound)) == (path, "HOST_UNKNOWN")
        if method != "GET":
            methods.add(method)
            foreign = site.client.request(method, path, headers={**bearer(key), "Origin": "https://evil.example"})
            assert (path, foreign.status_code, error_code(foreign)) == (path, 403, "ORIGIN_REFUSED")
            assert "access-control-allow-origin" not in foreign.headers
    assert methods == {"POST", "DELETE"}


@pytest.mark.slow
def test_a_runner_works_through_the_platform(site, key, tmp_path):
    """`agl runner` with a developer's key: claims, calls the model, reports."""
    (tmp_path / "agent.py").write_text(
        "import agentlightning as agl, openai\n"
        "@agl.rollout\n"
        "def solve(task):\n"
        "    with openai.OpenAI() as client:\n"
        "        asked = [{'role': 'user', 'content': task['q']}]\n"
        "        made = client.chat.completions.create(model='m', messages=asked)\n"
        "    return 1.0 if made.choices[0].message.content == 'hello there' else 0.0\n"
    )
    headers = bearer(key)
    queued = site.client.post(
        "/v1/agl/queues/rollouts/enqueue", headers=headers, json={"rollouts": [{"input": {"q": "x"}}]}
    )
    rollout_id = queued.json()[0]["rollout_id"]
    command = [sys.executable, "-m", "agentlightning.cli.main", "runner", "--store", site.url]
    done = subprocess.run(
        [*command, "--agent", f"{tmp_path / 'agent.py'}:solve", "--max-rollouts", "1"],
        env={**os.environ, "AGL_STORE_TOKEN": key, "AGL_GATEWAY_KEY": key, "AGL_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = site.client.get(f"/v1/agl/rollouts/{rollout_id}", headers=headers).json()
    assert found["status"] == "succeeded"
    spans = site.client.get("/v1/agl/spans", headers=headers, params={"rollout_id": rollout_id}).json()["items"]
    assert {"openai.chat.completion"} <= {span["name"] for span in spans}


def test_unknown_paths_below_a_mount_are_nobodys(site, key):
    for path in ("/v1/audio/speech", "/rollout/r/attempt/a/v1/files", "/v1/agl/../../metrics"):
        assert site.client.post(path, headers=bearer(key)).status_code in (404, 405)
    assert httpx.get(f"{site.url}/v1/agl/health").status_code == 401


def test_the_embedded_model_is_listed_and_not_loaded(site, key):
    found = {model["id"]: model for model in site.client.get("/models", headers=bearer(key)).json()["data"]}
    assert found["nano"]["state"] == "unloaded"


def test_changes_of_models_are_in_the_audit_log(site, key):
    name = site.add_user("admin")
    admin = bearer(site.login(name)["access_token"])
    for path in ("/proxy/pause", "/proxy/resume", "/models/none/unload"):
        site.client.post(path, headers=admin)
    assert site.client.post("/proxy/pause", headers=bearer(key)).status_code == 403
    site.client.get("/models", headers=admin)
    asked = {"action": "models.change"}
    entries = site.client.get("/api/v2/audit", headers=admin, params=asked).json()["data"]["entries"]
    mine = [entry["target"] for entry in reversed(entries) if entry["actor"] == name]
    assert mine == ["POST /proxy/pause", "POST /proxy/resume", "POST /models/none/unload"]


def test_the_stores_file_is_its_owners_alone(site):
    files = list(site.settings.home.glob("store.db*"))
    assert {stat.S_IMODE(file.stat().st_mode) for file in files if file.is_file()} == {0o600}
