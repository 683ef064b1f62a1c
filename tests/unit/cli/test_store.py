"""`agl store`: what the commands do to files and to PostgreSQL, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner, Result

from agentlightning.cli import store as commands
from agentlightning.kit.errors import BadInputError, ConfigError, ConflictError, NotFoundError, StorageError
from agentlightning.schemas import AttemptedRollout, PromptTemplate
from agentlightning.store import LightningStore, SqlLightningStore
from tests.contract.conftest import make_span
from tests.unit.store.test_migrations import write_version_1


def agl(*arguments: str) -> Result:
    app = typer.Typer()
    commands.register(app)
    result = CliRunner().invoke(app, ["store", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


async def fill(location: str) -> None:
    store = SqlLightningStore(location)
    await store.add_resources({"p": PromptTemplate(template="Say {x}")})
    for number in range(30):
        rollout = await store.start_rollout({"n": number, "nan": float("inf")}, worker_id="w", mode="train")
        key = (rollout.rollout_id, rollout.attempt.attempt_id)
        await store.add_many_spans([make_span(*key, name="ä", attributes={"b": b"\x00\xff"}) for _ in range(2)])
        await store.update_attempt(*key, status="failed" if number % 3 else "succeeded")
    await store.enqueue_rollout("queued", metadata={"large": "x" * 3000})
    await store.close()


async def content(store: LightningStore) -> dict[str, object]:
    rollouts = await store.query_rollouts()
    spans = await store.query_many_spans([r.rollout_id for r in rollouts], attempt_id=None)
    return {
        "rollouts": [r.model_dump() for r in rollouts],
        "spans": [s.model_dump() for r in rollouts for s in spans.get(r.rollout_id, [])],
        "resources": [r.model_dump() for r in await store.query_resources()],
        "workers": [w.model_dump() for w in await store.query_workers()],
    }


async def content_of(location: str) -> dict[str, object]:
    store = SqlLightningStore(location)
    found = await content(store)
    await store.close()
    return found


async def goes_on(location: str) -> None:
    """The copy numbers what is new after what was copied, and its queue is in order."""
    store = SqlLightningStore(location)
    await store.enqueue_rollout("new")
    claimed = await store.dequeue_many_rollouts(limit=5)
    assert [r.input for r in claimed] == ["queued", "new"]
    assert all(isinstance(r, AttemptedRollout) for r in claimed)
    await store.close()


def test_a_file_is_copied_to_postgres_and_back_without_loss(tmp_path: Path, fresh_postgres_url: str) -> None:
    first, last = str(tmp_path / "first.db"), str(tmp_path / "last.db")
    asyncio.run(fill(first))
    there = agl("copy", first, fresh_postgres_url, "--json")
    rows = json.loads(there.stdout)["rows"]
    assert {name: rows[name] for name in ("rollouts", "attempts", "spans", "resources", "workers", "payloads")} == {
        "rollouts": 31,
        "attempts": 30,
        "spans": 60,
        "resources": 1,
        "workers": 1,
        "payloads": 1,
    }
    assert "30 attempts" in agl("copy", fresh_postgres_url, last).stdout
    expected = asyncio.run(content_of(first))
    assert asyncio.run(content_of(fresh_postgres_url)) == expected
    assert asyncio.run(content_of(last)) == expected
    asyncio.run(goes_on(fresh_postgres_url))
    asyncio.run(goes_on(last))


def test_backup_and_restore(tmp_path: Path, fresh_postgres_url: str) -> None:
    live, saved, again = str(tmp_path / "live.db"), str(tmp_path / "saved.db"), str(tmp_path / "again.db")
    asyncio.run(fill(live))
    expected = asyncio.run(content_of(live))

    async def while_in_use() -> None:
        store = SqlLightningStore(live)
        assert "31 rollouts" in (await asyncio.to_thread(agl, "backup", saved, live)).stdout
        await store.enqueue_rollout("later")
        await store.close()

    asyncio.run(while_in_use())
    assert sorted(p.name for p in tmp_path.glob("saved*")) == ["saved.db"]  # one file, complete
    assert "31 rollouts" in agl("restore", saved, again).stdout
    assert asyncio.run(content_of(again)) == expected
    assert "31 rollouts" in agl("restore", saved, fresh_postgres_url).stdout
    assert "31 rollouts" in agl("backup", str(tmp_path / "pg.db"), fresh_postgres_url).stdout
    assert asyncio.run(content_of(str(tmp_path / "pg.db"))) == expected


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one.db"), str(tmp_path / "other.db")
    asyncio.run(fill(one))
    asyncio.run(fill(other))
    before = asyncio.run(content_of(other))
    for arguments in (("copy", one, other), ("restore", one, other)):
        with pytest.raises(ConflictError, match="not empty") as caught:
            agl(*arguments)
        assert "another target" in caught.value.hint
    with pytest.raises(ConflictError, match="exists already"):
        agl("backup", other, one)
    with pytest.raises(BadInputError, match="the same"):
        agl("copy", one, one)
    assert asyncio.run(content_of(other)) == before


def test_what_does_not_fit_leaves_nothing(tmp_path: Path, fresh_postgres_url: str) -> None:
    source = str(tmp_path / "s.db")
    asyncio.run(fill(source))
    connection = sqlite3.connect(source)
    connection.execute("UPDATE workers SET worker_id = 'a' || char(0) || 'b'")
    connection.commit()
    connection.close()
    with pytest.raises(BadInputError, match="NUL"):
        agl("copy", source, fresh_postgres_url)
    assert json.loads(agl("info", fresh_postgres_url, "--json").stdout)["rows"]["rollouts"] == 0


def test_missing_stores_are_named(tmp_path: Path, fresh_postgres_url: str) -> None:
    nowhere = str(tmp_path / "nowhere.db")
    for arguments in (
        ("info", nowhere),
        ("vacuum", nowhere),
        ("migrate", nowhere),
        ("backup", str(tmp_path / "b.db"), nowhere),
        ("copy", nowhere, str(tmp_path / "c.db")),
        ("info", fresh_postgres_url),
    ):
        with pytest.raises(NotFoundError, match="no store"):
            agl(*arguments)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInputError, match="memory"):
        agl("info", ":memory:")


def test_info_vacuum_and_migrate(tmp_path: Path, fresh_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_HOME", str(tmp_path))
    asyncio.run(fill(str(tmp_path / "store.db")))
    agl("copy", str(tmp_path / "store.db"), fresh_postgres_url)
    for where in ([], [fresh_postgres_url]):
        found = json.loads(agl("info", *where, "--json").stdout)
        assert found["rollouts_by_status"] == {"failed": 20, "queuing": 1, "succeeded": 10}
        assert found["bytes"] > 10_000
        assert found["database"] == ("postgresql" if where else "sqlite")
        assert "rollouts failed" in agl("info", *where).stdout
        assert "after" in agl("vacuum", *where).stdout
        assert json.loads(agl("vacuum", *where, "--json").stdout)["bytes_after"] > 0
        assert "up to date" in agl("migrate", *where).stdout
        assert json.loads(agl("migrate", *where, "--json").stdout)["after"] == found["schema_version"]


def test_a_backup_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    live = str(tmp_path / "live.db")
    asyncio.run(fill(live))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"Cannot write .*saved\.db"):
        agl("backup", str(tmp_path / "file" / "saved.db"), live)
    saved = tmp_path / "saved.db"
    for suffix in (".part", ".part-journal"):  # of one that was killed
        saved.with_name(saved.name + suffix).write_bytes(b"left over")
    agl("backup", str(saved), live)
    assert [p.name for p in tmp_path.glob("saved*")] == ["saved.db"]


def test_a_newer_store_is_not_backed_up(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    asyncio.run(fill(str(newer)))
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match=r"newer\.db has schema version 99"):
        agl("backup", str(tmp_path / "saved.db"), str(newer))
    assert not list(tmp_path.glob("saved*"))


def test_an_open_door_is_refused_before_a_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGL_STORE_TOKEN", raising=False)
    monkeypatch.delenv("AGL_STORE_OPEN", raising=False)
    with pytest.raises(ConfigError, match="open to everybody"):
        agl("serve", "--host", "0.0.0.0", "--port", "0", "--store", str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()


def test_an_older_backup_says_which_command_to_run(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    write_version_1(old)
    with pytest.raises(StorageError, match="version 1") as caught:
        agl("restore", str(old), str(tmp_path / "new.db"))
    assert f"agl store migrate {old}" in caught.value.hint
    assert "migrated from schema version 0001" in agl("migrate", str(old)).stdout
    assert "1 rollouts" in agl("restore", str(old), str(tmp_path / "new2.db")).stdout


@pytest.mark.parametrize("command", ["migrate", "info", "vacuum", "backup", "restore", "copy"])
def test_help_has_an_example(command: str) -> None:
    assert f"agl store {command}" in agl(command, "--help").stdout


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--port", "0", "--cors-origin", "http://a.example"),
        ("--port", "0", "--log-level", "INFO", "--cors-origin", "*"),
    ],
)
def test_store_alone_is_served(tmp_path: Path, words: tuple[str, ...]) -> None:
    environment = {**os.environ, "AGL_HOME": str(tmp_path), "AGL_STORE_TOKEN": ""}
    command = [sys.executable, "-m", "agentlightning.cli.main", "store", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        url = line.split()[1].removesuffix("/v1/agl")
        health = httpx.get(f"{url}/v1/agl/health", headers={"origin": "http://a.example"}, timeout=30)
        assert health.json() == {"status": "ok"}
        assert health.headers["access-control-allow-origin"] in ("*", "http://a.example")
        assert httpx.post(f"{url}/v1/agl/rollouts", json={"input": 1}, timeout=30).status_code == 201
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    assert (tmp_path / "store.db").exists()
