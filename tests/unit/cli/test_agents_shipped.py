"""`agl agents`: lists, shows and measures the shipped agents, against a scripted model server."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from agentlightning.cli import main as cli
from agentlightning.kit.errors import BadInputError, NotFoundError, UpstreamError
from agentlightning.platform.agents.shipped import shipped, shipped_names
from agentlightning.platform.models_config import ModelNotConfiguredError
from tests.unit.gateway.scripted import always, completion, reply
from tests.unit.platform.models import scripted_server


@pytest.fixture(scope="module")
def server():
    with scripted_server() as running:
        yield running


def agl(*arguments):
    if not cli.app.registered_commands:
        cli._register()
    done = CliRunner().invoke(cli.app, ["agents", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_listing_and_showing():
    found = json.loads(agl("list", "--json"))
    assert [each["name"] for each in found] == list(shipped_names())
    assert "sql_agent" in agl("list", "--type", "data_agent")
    assert "no agent" in agl("list", "--type", "nothing")
    assert agl("list", "--markdown").count("\n| `") == 31
    assert "Answer: NUMBER" in agl("show", "statistics_agent")
    assert json.loads(agl("show", "sql_agent", "--json"))["fallback"]["model"] == "nano"
    with pytest.raises(NotFoundError):
        agl("show", "../../pyproject")


def test_it_works_without_the_platforms_packages():
    blocked = "('fastapi', 'bcrypt', 'jwt', 'aiosqlite', 'greenlet', 'langchain', 'openai')"
    code = f"import sys\nfor m in {blocked}: sys.modules[m] = None\n"
    code += "sys.argv = ['agl', 'agents', 'show', 'code_agent']\nfrom agentlightning.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Python developer" in done.stdout, done.stderr


def test_evaluating_asks_the_server_and_scores(server):
    right = {case.input: case.reference for case in shipped("triage_agent").evaluation}

    async def answer(request, body):
        found = completion(body)
        assert body["messages"][0]["content"] == shipped("triage_agent").system_prompt
        given = body["messages"][-1]["content"]
        found["choices"][0]["message"]["content"] = "no" if "dark theme" in given else right[given]
        return reply(found)

    server.script[:] = [answer] * len(right)
    arguments = ("evaluate", "triage_agent", "--base-url", server.base_url, "--model", "m")
    found = json.loads(agl(*arguments, "--json"))
    assert (found["cases"], found["told"], found["passed"]) == (len(right), len(right), len(right) - 1)
    assert found["interval"][0] < found["share"] < found["interval"][1]
    server.script[:] = [answer] * 2
    assert "passed 1 of 2" in agl(*arguments, "--limit", "2")


def test_what_goes_wrong_is_said(server, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelNotConfiguredError):
        agl("evaluate", "triage_agent")
    with pytest.raises(BadInputError):
        agl("evaluate", "triage_agent", "--split", "none")
    arguments = ("evaluate", "triage_agent", "--limit", "1", "--base-url")
    server.script[:] = [always({"error": "no key"}, 401)]
    with pytest.raises(UpstreamError, match="401"):
        agl(*arguments, server.base_url, "--model", "m")
    server.script[:] = [always({"choices": []})]
    with pytest.raises(UpstreamError, match="no completion"):
        agl(*arguments, server.base_url, "--model", "m")
    monkeypatch.setattr("agentlightning.cli.agents_shipped._TRIES", 1)
    with pytest.raises(UpstreamError, match="does not answer"):
        agl(*arguments, "http://127.0.0.1:1/v1", "--model", "m")
