"""Schemathesis over the whole description: whatever it sends, each answer is one that the description promises.

It runs as its users run it, from the command line against a platform that listens, as an admin, with valid and invalid
data, with and without the token. Models are a scripted server's; nothing else leaves this machine.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentlightning.platform.auth.permissions import TABLE
from tests.unit.platform.site import Site, bearer, settings_for
from tests.unit.platform.tasks.things import models

HOOKS = Path(__file__).parent / "schemathesis_hooks.py"
ADMIN = 7_654_321_012
"""Number of the user who calls, one that nobody guesses."""

LEFT_OUT = {
    ("POST", "/auth/logout"): "ends the login of the run; test_logins and test_openapi call it",
    ("GET", "/api/v2/events"): "an event stream has no end; tests/unit/platform/tasks read it",
    (
        "PUT",
        "/api/v2/system/config",
    ): "sets the very limits that the run would meet; test_openapi calls it",
}
NOT_DESCRIBED = {
    ("WEBSOCKET", "/ws/agents"): "OpenAPI has no websockets",
    ("GET", "/docs"): "a page",
    ("GET", "/docs/style.css"): "a page's looks",
    ("GET", "/openapi.json"): "the description itself",
}

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ignored_auth",
)
"""Not `positive_data_acceptance`: rules that a schema cannot say (a good password, one of two fields) answer 422, as
described. Not `object_level_authorization`, which needs two users: test_access has them."""
QUICK = ("--phases", "fuzzing", "--max-examples", "2", "--no-shrink")
FULL = (
    "--phases",
    "examples,coverage,fuzzing,stateful",
    "--max-examples",
    "50",
    "--continue-on-failure",
    "--no-shrink",
)
CONFIG = """
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "408", "409", "412", "413", "415", "422", "428", "429"]

# Tools that are not configured here say so, as described.
[[operations]]
include-name = "POST /api/v2/tools/{name}/run"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]

# A file may hold any bytes, or none; and a list in a query any texts.
[[operations]]
include-name = "POST /api/v2/knowledge/import/file"
checks.negative_data_rejection.enabled = false
"""


@pytest.fixture(scope="module")
def site(request, server, tmp_path_factory):
    given = {"uploads_per_minute": 100_000}
    if request.param == "postgres":
        given["DATABASE_URL"] = request.getfixturevalue("platform_schema")()
    made = Site(settings_for(tmp_path_factory.mktemp("home"), **given), None, models(server)).start()
    yield made
    made.stop()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("site", "how"),
    [
        ("sqlite", QUICK),
        pytest.param("sqlite", FULL, marks=pytest.mark.campaign),
        pytest.param("postgres", FULL, marks=pytest.mark.campaign),
    ],
    indirect=["site"],
)
def test_whatever_is_sent_is_answered_as_described(site, how, tmp_path):
    token = site.login(site.add_user("admin", id=ADMIN))["access_token"]
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(config),
        "run",
        f"{site.url}/openapi.json",
    ]
    command += [*how, "--checks", ",".join(CHECKS), "--header", f"Authorization: Bearer {token}", "--seed", "1"]
    command += ["--suppress-health-check", "all", "--generation-database", "none", "--no-color", "--warnings", "off"]
    command += ["--request-timeout", "120"]
    command += [option for method, path in LEFT_OUT for option in ("--exclude-name", f"{method} {path}")]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "SELF": str(ADMIN)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1400, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    described = sum(len(operations) for operations in site.app.openapi()["paths"].values())
    assert f"Tested: {described - len(LEFT_OUT)}" in done.stdout
    assert site.client.get("/auth/profile", headers=bearer(token)).is_success  # to the end it was an admin who asked


@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
def test_every_route_is_described_or_left_out_with_a_reason(site):
    described = {
        (method.upper(), path) for path, operations in site.app.openapi()["paths"].items() for method in operations
    }
    assert described | set(NOT_DESCRIBED) == set(TABLE)
    assert set(LEFT_OUT) <= described
