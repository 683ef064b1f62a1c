"""Every command takes a file or a PostgreSQL URL, and no password ever shows."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from agentlightning.cli import demo, evaluate, records, serve, train
from agentlightning.cli import store as store_commands
from agentlightning.kit.db.postgres import Address
from agentlightning.kit.errors import ConfigError, NotFoundError, StorageError
from agentlightning.schemas import PromptTemplate
from agentlightning.store import SqlLightningStore
from agentlightning.store.databases import parse_location, require_store, show_location


def agl(*arguments: str) -> Result:
    app = typer.Typer()
    for module in (records, store_commands, serve, train, demo, evaluate):
        module.register(app)
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


async def fill(location: str) -> str:
    store = SqlLightningStore(location)
    await store.add_resources({"p": PromptTemplate(template="Say {x}")})
    rollout = await store.enqueue_rollout("a task", rollout_id="ro-one")
    await store.close()
    return rollout.rollout_id


@pytest.mark.parametrize("how", ["option", "environment"])
def test_records_are_read_from_either_database(
    how: str, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_HOME", str(tmp_path / "elsewhere"))
    asyncio.run(fill(location))
    given = ["--store", location] if how == "option" else []
    if how == "environment":
        monkeypatch.setenv("AGL_STORE", location)
    assert "ro-one" in agl("rollouts", *given).stdout
    assert json.loads(agl("show", "ro-one", "--json", *given).stdout)["rollout"]["input"] == "a task"
    assert len(json.loads(agl("resources", "--json", *given).stdout)["resources"]) == 1
    assert json.loads(agl("store", "info", "--json", *given[1:]).stdout)["rows"]["rollouts"] == 1


def test_looking_at_a_store_that_is_not_there_creates_none(
    fresh_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_HOME", str(tmp_path / "elsewhere"))
    for location in (fresh_postgres_url, str(tmp_path / "no.db")):
        for command in (["rollouts"], ["show", "x"], ["resources"]):
            failed = agl(*command, "--store", location)
            assert isinstance(failed.exception, NotFoundError), (command, location)
        with pytest.raises(NotFoundError):
            require_store(parse_location(location))
    assert agl("resources").exit_code == 0  # without a store there may be model versions
    assert isinstance(agl("rollouts").exception, NotFoundError)
    assert "AGL_STORE" in agl("rollouts").exception.hint  # type: ignore[union-attr]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "eval", "demo", "serve", "rollouts", "show", "resources"])
def test_every_command_with_a_store_takes_a_url(command: str) -> None:
    shown = agl(command, "--help").stdout
    assert "--store" in shown
    assert "postgresql://" in shown


MALFORMED = [
    "postgresql://me:s3cret@[host/db",
    "postgresql://me:s3cret@x@host/db",
    "postgresql://me:x/s3cret@host/db",
    "postgresql://me:s3cret#x@host/db",
    "postgresql://host/db?password=s3cret&bogus=1",
    "postgresql:/me:s3cret@host/db",
    "postgres:me:s3cret@host/db",
]


@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_url_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        SqlLightningStore(url)
    assert "s3cret" not in str(caught.value) + repr(caught.value.details)
    assert "postgresql://user" in caught.value.hint


def test_a_file_called_postgres_is_a_file(tmp_path: Path) -> None:
    assert parse_location(tmp_path / "postgres.db") == tmp_path / "postgres.db"
    assert parse_location("postgresql_copy.db") == Path("postgresql_copy.db").absolute()


@pytest.mark.slow
def test_the_password_of_a_server_that_does_not_answer_is_not_shown(tmp_path: Path) -> None:
    """As a user types it: a process of its own, all of its output."""
    url = "postgresql://me:s3cret@127.0.0.1:1/db?password=s3cret"
    assert show_location(parse_location(url)) == "postgresql://127.0.0.1:1/db?schema=agentlightning"
    for arguments in (
        ["rollouts", "--store", url],
        ["store", "info", url],
        ["store", "copy", url, str(tmp_path / "x.db")],
        ["store", "backup", str(tmp_path / "y.db"), url],
        ["demo", "--store", url],
        ["serve", "--base-url", "http://127.0.0.1:9/v1", "--port", "0"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "agentlightning.cli.main", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, "AGL_STORE": url, "AGL_HOME": str(tmp_path / "home")},
        )
        shown = done.stdout + done.stderr
        assert done.returncode == 1, shown
        assert "127.0.0.1:1" in shown, shown
        assert "s3cret" not in shown, shown
    assert not any("s3cret" in p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())


def test_a_refused_password_is_not_shown() -> None:
    with pytest.raises(StorageError) as caught:
        SqlLightningStore("postgresql://me:s3cret@127.0.0.1:1/db")
    assert "s3cret" not in str(caught.value) + repr(caught.value.details)
    assert str(Address.parse("postgresql://me:s3cret@h:5/db")) == "postgresql://h:5/db?schema=agentlightning"
