"""Bad input: a clear message with the next step, a non-zero exit code, nothing corrupted."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path

import pytest

from tests.e2e.conftest import Run

AGENT = """
import time
from openai import OpenAI

def good(task):
    OpenAI().chat.completions.create(model="default", messages=[{"role": "user", "content": task["question"]}])
    return float(len(task["question"]) % 2)

def raises(task):
    raise KeyError("the agent is broken")

def returns_text(task):
    return "forty-two"

def returns_none(task):
    return None

def hangs(task):
    time.sleep(3600)

def needs_columns(question, database):
    return 1.0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_agent.py").write_text(AGENT)
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps({"question": "q" * n}) + "\n" for n in range(1, 5)))
    return tmp_path


def test_help_has_examples_for_every_command(agl: Run) -> None:
    for name in ("demo", "train", "eval", "chat", "runs", "rollouts", "show", "resources", "serve", "doctor"):
        shown = agl(name, "--help")
        assert shown.returncode == 0
        assert "xample" in shown.stdout, name


def test_nothing_there_yet_is_said_with_the_next_step(agl: Run) -> None:
    assert "agl demo" in agl("runs").stdout
    for arguments in (("rollouts",), ("show", "nothing")):
        failed = agl(*arguments)
        assert failed.returncode == 1
        assert "agl demo" in failed.stderr
    assert json.loads(agl("doctor", "--json").stdout)["system"]["home_writable"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--agent", "my_agent.py:good", "--model", "no/such-model"), "no/such-model"),
        (("--agent", "my_agent.py:needs_columns"), r"lacks the column(s) database"),
        (("--agent", "my_agent.py:absent"), "absent"),
        (("--agent", "my_agent.py:good", "--set", "stepz=3"), "steps"),
        (("--command", "true", "--agent", "my_agent.py:good"), "either --agent or --command"),
    ],
)
def test_train_refuses_what_cannot_work(agl: Run, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    failed = agl("train", "--data", "tasks.jsonl", *arguments)
    assert failed.returncode == 1, failed.stdout
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("raises", "the agent is broken"),
        ("returns_text", "str"),
        ("returns_none", "no reward"),
    ],
)
@pytest.mark.slow
def test_an_agent_that_cannot_be_scored_is_named(agl: Run, folder: Path, agent: str, message: str) -> None:
    failed = agl("eval", "--agent", f"my_agent.py:{agent}", "--data", "tasks.jsonl", "--model", "nano")
    assert failed.returncode == 1
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_an_agent_that_hangs_is_ended_and_named(agl: Run, folder: Path) -> None:
    failed = agl(
        "eval",
        "--agent",
        "my_agent.py:hangs",
        "--data",
        "tasks.jsonl",
        "--model",
        "nano",
        "--timeout",
        "2",
        timeout_s=60,
    )
    assert failed.returncode == 1
    assert "timeout" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_an_unreachable_server_is_named(agl: Run, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    failed = agl(
        "eval", "--agent", "my_agent.py:good", "--data", "tasks.jsonl", "--base-url", f"http://127.0.0.1:{port}/v1"
    )
    assert failed.returncode == 1
    assert str(port) in failed.stderr


@pytest.mark.slow
def test_a_taken_port_is_named(agl: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        failed = agl("serve", "--model", "nano", "--port", str(port))
    assert failed.returncode == 1
    assert str(port) in failed.stderr
    assert "next:" in failed.stderr


def test_a_store_open_to_everybody_is_refused(agl: Run) -> None:
    failed = agl("serve", "--model", "nano", "--port", "0", "--host", "0.0.0.0")
    assert failed.returncode == 1
    assert "there is no token" in failed.stderr
    assert "AGL_STORE_TOKEN" in failed.stderr


def test_a_corrupt_store_is_named_and_left_alone(agl: Run, home: Path) -> None:
    home.mkdir()
    (home / "store.db").write_bytes(b"this is no database at all, not even close" * 100)
    before = (home / "store.db").read_bytes()
    failed = agl("rollouts")
    assert failed.returncode == 1
    assert "store.db" in failed.stderr
    assert (home / "store.db").read_bytes() == before
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(home / "store.db").execute("SELECT 1 FROM sqlite_master")
