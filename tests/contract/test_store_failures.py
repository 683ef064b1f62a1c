"""Disks that fill up, files that are damaged, newer, foreign, locked or read-only.

Clear errors, and nothing half-written.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agentlightning.kit.db import sqlite
from agentlightning.kit.errors import ConfigError, NotFoundError, StorageError
from agentlightning.store import InMemoryLightningStore, SqlLightningStore
from agentlightning.store.tables import SCHEMA_VERSION
from tests.contract.conftest import make_span


async def test_full_database_refuses_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    store = SqlLightningStore(path)
    started = await store.start_rollout("x")
    key = (started.rollout_id, started.attempt.attempt_id)
    await store.close()
    connect = sqlite.connect

    def small(*args: object, **kwargs: object) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)  # type: ignore[arg-type]
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 20}").close()
        return connection

    monkeypatch.setattr("agentlightning.kit.db.database.connect", small)
    store = SqlLightningStore(path)
    big = [make_span(*key, attributes={"x": os.urandom(20_000)}) for _ in range(20)]
    results = await asyncio.gather(
        store.add_many_spans(big),
        store.enqueue_rollout("small"),
        store.update_rollout("ro-none", status="failed"),
        return_exceptions=True,
    )
    assert isinstance(results[0], StorageError)
    assert "full" in results[0].message
    assert "Free" in results[0].hint
    assert not isinstance(results[1], BaseException)  # its neighbour is not punished
    assert isinstance(results[2], NotFoundError)
    assert len(await store.query_spans(key[0])) == 0
    assert len(await store.add_many_spans([make_span(*key)])) == 1
    await store.close()
    monkeypatch.undo()
    store = SqlLightningStore(path)
    assert len(await store.add_many_spans(big)) == 20
    assert [r.input for r in await store.query_rollouts()] == ["x", "small"]
    await store.close()


async def test_file_size_limit(tmp_path: Path) -> None:
    """The operating system refuses to let the file grow, as a full disk or a quota does."""
    store = SqlLightningStore(tmp_path / "store.db")
    started = await store.start_rollout("x")
    key = (started.rollout_id, started.attempt.attempt_id)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        with pytest.raises(StorageError) as caught:
            await store.add_many_spans([make_span(*key, attributes={"x": os.urandom(2_000_000)})])
        assert caught.value.hint
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(await store.query_spans(key[0])) == 0
    await store.add_span(make_span(*key))
    assert len(await store.query_spans(key[0])) == 1
    await store.close()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_taken_away_takes_no_writes(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "store.db"
    other = SqlLightningStore(tmp_path / "other.db")
    await other.enqueue_rollout("of the other")
    await other.close()
    store = SqlLightningStore(path)
    await store.enqueue_rollout("x")
    (tmp_path / "other.db").replace(path) if replaced else path.unlink()
    for _ in range(2):
        with pytest.raises(StorageError, match="removed or replaced") as error:
            await store.enqueue_rollout("where nobody finds it")
        assert "open it again" in error.value.hint
    with pytest.raises(StorageError, match="removed or replaced"):
        await store.query_rollouts()
    assert path.exists() == replaced  # asking made no new one
    await store.close()


async def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqlLightningStore(path)
    for i in range(50):
        await store.enqueue_rollout({"x": "y" * 2000, "i": i})
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        roots = connection.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name = 'rollouts'").fetchall()
    data = bytearray(path.read_bytes())
    for (page,) in roots:
        data[4096 * (page - 1) : 4096 * page] = os.urandom(4096)
    path.write_bytes(data)
    store = SqlLightningStore(path)  # the pages that list the tables are intact
    with pytest.raises(StorageError, match="damaged") as caught:
        await store.query_rollouts()
    with pytest.raises(StorageError, match="damaged"):
        await store.enqueue_rollout("x")
    await store.close()
    assert caught.value.hint


def test_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is a text, and a long one too, so that SQLite reads a header" * 50)
    with pytest.raises(StorageError, match="not an SQLite database"):
        SqlLightningStore(path)
    assert path.read_bytes().startswith(b"this is a text")


def test_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    SqlLightningStore(path)._database.close_now()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StorageError, match=f"version {SCHEMA_VERSION + 1}") as caught:
        SqlLightningStore(path)
    assert "Upgrade" in caught.value.hint


def test_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StorageError, match="another program"):
        SqlLightningStore(path)


def test_folder_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="folder"):
        SqlLightningStore(tmp_path / "file" / "sub" / "store.db")
    with pytest.raises(StorageError, match="cannot be opened"):
        SqlLightningStore(tmp_path)


async def test_lock_held_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.2)
    path = tmp_path / "store.db"
    store = SqlLightningStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    results = await asyncio.gather(store.enqueue_rollout(1), store.enqueue_rollout(2), return_exceptions=True)
    assert [type(r) for r in results] == [StorageError, StorageError]
    assert "write lock" in str(results[0])
    assert len(await store.query_rollouts()) == 0  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    await store.enqueue_rollout(3)
    await store.close()


async def test_read_only_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    await SqlLightningStore(path).close()
    connect = sqlite.connect

    def read_only(path: Path, **_: object) -> sqlite3.Connection:  # root may write any file, so ask SQLite itself
        return connect(path, read_only=True)

    monkeypatch.setattr("agentlightning.kit.db.database.connect", read_only)
    store = SqlLightningStore(path)
    with pytest.raises(StorageError, match="read-only"):
        await store.enqueue_rollout("x")
    await store.close()


async def test_closed_store(location: str) -> None:
    store = SqlLightningStore(location)
    waiting = asyncio.create_task(store.dequeue_many_rollouts(timeout=30))
    await asyncio.sleep(0.05)
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        await waiting
    with pytest.raises(StorageError, match="closed"):
        await store.enqueue_rollout("x")
    with pytest.raises(StorageError, match="closed"):
        await store.get_latest_resources()
    await store.close()


async def test_pickled_store_opens_the_same_database(location: str) -> None:
    store = SqlLightningStore(location if "://" in location else f"sqlite:///{location}", "full")
    await store.enqueue_rollout("x")
    copy = pickle.loads(pickle.dumps(store))
    assert [r.input for r in await copy.query_rollouts()] == ["x"]
    await store.close()
    await copy.close()


async def test_in_memory_store_cannot_be_pickled() -> None:
    store = InMemoryLightningStore()
    with pytest.raises(TypeError, match="LightningStoreServer"):
        pickle.dumps(store)
    await store.close()


def test_other_databases_are_named() -> None:
    with pytest.raises(ConfigError, match="mysql") as caught:
        SqlLightningStore("mysql://localhost/db")
    assert "postgresql://" in caught.value.hint


async def test_store_is_used_from_several_event_loops(location: str) -> None:
    store = SqlLightningStore(location)

    async def elsewhere() -> str:
        return (await store.enqueue_rollout("x")).rollout_id

    waiting = asyncio.create_task(store.dequeue_many_rollouts(timeout=10))
    await asyncio.sleep(0.05)
    rollout_id = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert [r.rollout_id for r in await waiting] == [rollout_id]
    await store.close()
