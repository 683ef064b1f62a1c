"""Transfers that are cut off, at random moments, by Ctrl-C or a full disk: the same call ends as if nothing was."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentlightning.kit.errors import BusyError, ConflictError, StorageError
from agentlightning.store import SqlLightningStore
from agentlightning.store.transfer import copy_store, export_store, import_store
from agentlightning.store.transfer import export as export_module
from tests.contract.conftest import make_span
from tests.contract.test_store_archives import fill
from tests.random_stores import read_rows

PART_ROWS = 5


async def fill_many(location: str, count: int = 40) -> None:
    store = SqlLightningStore(location)
    for n in range(count):
        rollout = await store.start_rollout({"n": n, "text": "x" * (3000 if n % 5 == 0 else 3)}, rollout_id=f"ro-{n}")
        key = (rollout.rollout_id, rollout.attempt.attempt_id)
        await store.add_many_spans([make_span(*key) for _ in range(3)])
        await store.update_attempt(*key, status="succeeded")
    await store.close()


def run_and_kill(what: str, source: str, target: str, after_s: float) -> bool:
    """Whether it was done before."""
    arguments = [sys.executable, "-m", "tests.contract.transfer_processes", what, source, target, str(PART_ROWS)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout as lines:
        if lines.readline():  # it has begun
            time.sleep(after_s)  # the moment of the kill is what varies
        process.send_signal(signal.SIGKILL)
        lines.read()
    return process.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["jsonl", "parquet", "import", "copy"])
async def test_killed_again_and_again_it_ends_as_if_nothing_was(what: str, location: str, tmp_path: Path) -> None:
    source, target = str(tmp_path / "from.db"), str(tmp_path / "to")
    await fill_many(source)
    expected = read_rows(source)
    export_store(source, tmp_path / "archive", part_rows=PART_ROWS)
    if what in ("import", "copy"):
        target = location
        source = str(tmp_path / "archive") if what == "import" else source
    chance = random.Random(what)
    kills = sum(not run_and_kill(what, source, target, chance.uniform(0, 0.35)) for _ in range(8))
    assert kills >= 3, "it was too quick to be killed"
    if what == "copy" and read_rows_or_none(target) == expected:
        pass  # the last one came to its end
    elif what == "copy":
        copy_store(source, target, part_rows=PART_ROWS)
    elif what == "import":
        import_store(source, target)
    else:
        export_store(source, target, encoding=what, part_rows=PART_ROWS)
        import_store(target, tmp_path / "back.db")
        target = str(tmp_path / "back.db")
    assert read_rows(target) == expected
    assert not [name for name in os.listdir(tmp_path) if ".transfer" in name]


def read_rows_or_none(location: str) -> object:
    if "://" not in location and not Path(location).exists():
        return None
    rows = read_rows(location)
    return rows if any(rows.values()) else None


class CutError(Exception):
    """Instead of a kill: a process that ends in the middle."""


def cut_after(fraction: float) -> Callable[[float, str], None]:
    def report(done: float, _: str) -> None:
        if done >= fraction:
            raise CutError

    return report


async def test_finished_parts_of_an_export_are_not_written_again(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "_NOTE_EVERY_S", 0.0)
    await fill_many(location)
    folder = tmp_path / "a"
    with pytest.raises(CutError):
        export_store(location, folder, part_rows=PART_ROWS, progress=cut_after(0.7))
    first = {p: p.stat().st_ino for p in folder.rglob("part-*")}
    assert len(first) > 20
    assert not list(folder.rglob("*.partial"))
    store = SqlLightningStore(location)
    await store.update_rollout("ro-12", metadata={"changed": "meanwhile"})
    await store.close()
    export_store(location, folder, part_rows=PART_ROWS)
    again = {p: p.stat().st_ino for p in first}
    changed = {str(p.relative_to(folder)) for p in first if again[p] != first[p]}
    assert "rollouts/part-00002.jsonl" in changed
    assert {c.split("/")[0] for c in changed} <= {"rollouts", "events"}
    import_store(folder, tmp_path / "b.db")
    assert read_rows(str(tmp_path / "b.db")) == read_rows(location)


@pytest.mark.parametrize("what", ["import", "copy"])
async def test_until_it_is_done_the_target_is_as_it_was(
    what: str, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(tmp_path / "from.db")
    await fill_many(source)
    if what == "import":
        await fill(location, prefix="theirs-", count=2)
    before = read_rows_or_none(location) if what == "import" else None
    export_store(source, tmp_path / "a", part_rows=PART_ROWS)

    def transfer(cut: float) -> None:
        if what == "import":
            import_store(tmp_path / "a", location, progress=cut_after(cut))
        else:
            copy_store(source, location, cut_after(cut), part_rows=PART_ROWS)

    for cut in (0.0, 0.3, 0.6, 0.9):
        with pytest.raises(CutError):
            transfer(cut)
        assert what == "copy" or read_rows(location) == before
    if what == "copy" and "://" not in location:
        assert not os.path.exists(location)  # noqa: ASYNC240
    written: list[str] = []
    from agentlightning.store.transfer.staging import Staging

    put = Staging.put

    def counted(self: Staging, plan: object, *args: object) -> object:
        written.append(plan.name)  # type: ignore[attr-defined]
        return put(self, plan, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Staging, "put", counted)
    transfer(2.0)
    assert len(written) < 15  # of more than 60 parts
    if what == "copy":
        assert read_rows(location) == read_rows(source)
    else:
        assert {r[1] for r in read_rows(location)["rollouts"]} >= {f"ro-{n}" for n in range(40)} | {"theirs-ro-0"}


async def test_a_copy_continues_although_the_source_has_changed(location: str, tmp_path: Path) -> None:
    source = str(tmp_path / "from.db")
    await fill_many(source)
    with pytest.raises(CutError):
        copy_store(source, location, cut_after(0.8), part_rows=PART_ROWS)
    store = SqlLightningStore(source)
    for n in (0, 17, 39):
        await store.update_rollout(f"ro-{n}", metadata={"changed": "meanwhile"})
    await store.enqueue_rollout("new")
    await store.add_resources({})
    await store.close()
    import sqlite3

    connection = sqlite3.connect(source)  # as pruning does
    connection.execute("DELETE FROM spans WHERE no BETWEEN 10 AND 20")
    connection.commit()
    connection.close()
    copy_store(source, location, part_rows=PART_ROWS)
    assert read_rows(location) == read_rows(source)
    store = SqlLightningStore(location)
    assert (await store.dequeue_rollout()).input == "new"  # type: ignore[union-attr]
    await store.close()


async def test_what_another_transfer_left_is_in_nobodys_way(location: str, tmp_path: Path) -> None:
    one, other = str(tmp_path / "one.db"), str(tmp_path / "other.db")
    await fill_many(one, 10)
    await fill_many(other, 20)
    with pytest.raises(CutError):
        copy_store(one, location, cut_after(0.8), part_rows=PART_ROWS)
    copy_store(other, location, part_rows=PART_ROWS)
    assert read_rows(location) == read_rows(other)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_in_its_last_moments(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the file that was filled is about to become the target, or has just done so."""
    from agentlightning.store.transfer import staging

    source, target = str(tmp_path / "s.db"), tmp_path / "t.db"
    await fill_many(source, 10)
    export_store(source, tmp_path / "a")

    def cut(file: Path, name: Path) -> bool:
        if when == "after":
            os.link(file, name)
        raise CutError

    with monkeypatch.context() as patched:
        patched.setattr(staging, "give_name", cut)
        with pytest.raises(CutError):
            import_store(tmp_path / "a", target)
    again = import_store(tmp_path / "a", target)
    assert again["rollouts"] == (10 if when == "before" else 0)
    assert read_rows(str(target)) == read_rows(source)
    assert not [name for name in os.listdir(tmp_path) if ".transfer" in name]


async def test_two_transfers_into_one_store_do_not_meet(location: str, tmp_path: Path) -> None:
    source = str(tmp_path / "s.db")
    await fill_many(source, 5)
    tried: list[str] = []

    def meanwhile(_: float, __: str) -> None:
        if not tried:
            tried.append("once")
            with pytest.raises(BusyError, match="transfer into"):
                copy_store(source, location)

    copy_store(source, location, meanwhile, part_rows=PART_ROWS)
    assert tried
    assert read_rows(location) == read_rows(source)


async def test_a_target_filled_meanwhile_is_not_overwritten(location: str, tmp_path: Path) -> None:
    import sqlite3

    source = str(tmp_path / "s.db")
    await fill_many(source, 5)
    filled = str(tmp_path / "filled.db")
    await fill(filled, prefix="other-", count=1)
    done: list[str] = []

    def meanwhile(_: float, what: str) -> None:
        if what == "done" and not done:
            done.append("once")
            if "://" in location:
                import psycopg

                from agentlightning.kit.db.postgres import Address
                from agentlightning.kit.db.postgres.connection import connect

                with connect(Address.parse(location)) as other:
                    assert isinstance(other, psycopg.Connection)
                    other.execute("INSERT INTO workers (worker_id, status) VALUES ('w9', 'idle')")
            else:
                shutil.copy(filled, location)

    with pytest.raises(ConflictError, match="not empty"):
        copy_store(source, location, meanwhile, part_rows=PART_ROWS)
    assert done
    if "://" not in location:
        assert read_rows(location) == read_rows(filled)
    assert sqlite3.sqlite_version


async def test_a_store_in_the_place_of_the_staging_file_is_left_alone(tmp_path: Path) -> None:
    source = str(tmp_path / "s.db")
    await fill(source, count=1)
    await fill(str(tmp_path / "t.db.transfer"), count=2)
    before = read_rows(str(tmp_path / "t.db.transfer"))
    with pytest.raises(ConflictError, match="in the way"):
        copy_store(source, tmp_path / "t.db")
    assert read_rows(str(tmp_path / "t.db.transfer")) == before


@contextmanager
def file_size_limit(count: int) -> Iterator[None]:
    """The operating system lets no file grow beyond it, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("encoding", ["jsonl", "jsonl.zst", "parquet"])
async def test_a_full_disk_stops_an_export_which_then_continues(encoding: str, tmp_path: Path) -> None:
    source = str(tmp_path / "s.db")
    store = SqlLightningStore(source)
    for n in range(30):
        await store.enqueue_rollout({"x": os.urandom(3000).hex()}, rollout_id=f"ro-{n}")
    await store.close()
    with file_size_limit(40_000), pytest.raises(StorageError) as caught:
        export_store(source, tmp_path / "a", encoding=encoding)
    assert caught.value.hint
    assert not [name for _, _, names in os.walk(tmp_path / "a") for name in names if "partial" in name]
    export_store(source, tmp_path / "a", encoding=encoding)
    with file_size_limit(60_000), pytest.raises(StorageError) as caught:
        import_store(tmp_path / "a", tmp_path / "t.db")
    assert caught.value.hint
    assert "t.db" not in os.listdir(tmp_path)
    import_store(tmp_path / "a", tmp_path / "t.db")
    assert read_rows(str(tmp_path / "t.db")) == read_rows(source)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_says_what_to_do(tmp_path: Path) -> None:
    source = str(tmp_path / "s.db")
    asyncio.run(fill_many(source, 1200))  # so many that the signal comes before the end
    arguments = [sys.executable, "-m", "agentlightning.cli.main", "store", "export", source, str(tmp_path / "a")]
    stopped = False
    for _ in range(20):
        process = subprocess.Popen([*arguments, "--part-rows", "1"], stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (tmp_path / "a" / "manifest.json").exists():
            time.sleep(0.01)  # another process writes the file
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 130:
            stopped = True
            assert "the same command continues" in errors
            assert "Traceback" not in errors
            break
        shutil.rmtree(tmp_path / "a")
    assert stopped
    assert subprocess.run([*arguments, "--part-rows", "1"], timeout=120).returncode == 0
    import_store(tmp_path / "a", tmp_path / "t.db")
    assert read_rows(str(tmp_path / "t.db")) == read_rows(source)
