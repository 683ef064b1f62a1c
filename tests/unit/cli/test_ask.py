"""`agl ask`: an agent with its tools before a scripted model server."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.result import prompts_of
from agentlightning.cli import ask
from agentlightning.kit.errors import AgentLightningError, BadInputError, NotFoundError, UpstreamError
from agentlightning.schemas import PromptTemplate
from tests.unit.platform.models import scripted_server
from tests.unit.platform.tasks.things import asked, said


@pytest.fixture
def server() -> Iterator[Any]:
    with scripted_server() as running:
        yield running


def agl(*arguments: str) -> Result:
    app = typer.Typer()
    ask.register(app)
    found = CliRunner().invoke(app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def test_an_agent_works_with_its_tools_on_the_files_given(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    (tmp_path / "app.log").write_text("disk full\n")
    server.script.extend([asked("files", action="read", path="app.log"), said("The disk was full.")])
    arguments = ("Why did it stop?", "--agent", "log_agent", "--files", str(tmp_path), "--base-url", server.base_url)
    found = json.loads(agl(*arguments, "--model", "m", "--json").stdout)
    assert (found["answer"], found["model"], found["steps"]) == ("The disk was full.", "m", 2)
    assert [(use["tool"], use["is_error"]) for use in found["tools"]] == [("files", False)]
    assert "disk full" in json.dumps(server.bodies[-1]["messages"])


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UpstreamError, match=url):
        agl("x", "--agent", "summary_agent", "--base-url", url, "--model", "m")


def test_an_empty_question_is_not_asked(server: Any):
    with pytest.raises(BadInputError, match="question is empty"):
        agl(" ", "--base-url", server.base_url, "--model", "m")
    assert server.bodies == []


def test_another_prompt_takes_its_place(server: Any, tmp_path: Path):
    best = Candidate({"system_prompt": PromptTemplate(template="Only {verbs}.", engine="jinja")})
    (tmp_path / "best.json").write_text(json.dumps({"best": {"id": best.id, "prompts": prompts_of(best)}}))
    (tmp_path / "p.txt").write_text("Only nouns.")
    for name, expected in (("best.json", "Only {verbs}."), ("p.txt", "Only nouns.")):
        server.script.append(said("ok"))
        shown = agl(
            "x",
            "--agent",
            "summary_agent",
            "--base-url",
            server.base_url,
            "--model",
            "m",
            "--prompt",
            str(tmp_path / name),
        )
        assert shown.stdout == "ok\n"
        assert server.bodies[-1]["messages"][0]["content"] == expected


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AgentLightningError, match="--base-url"):
        agl("x")
    with pytest.raises(NotFoundError):
        agl("x", "--agent", "nobody")
    with pytest.raises(NotFoundError, match="no folder"):
        agl("x", "--files", str(tmp_path / "none"))
    with pytest.raises(BadInputError, match="no prompt"):
        agl("x", "--prompt", str(tmp_path / "none.json"))
