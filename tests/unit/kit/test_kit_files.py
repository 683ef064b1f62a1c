import errno
import os
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import pytest

from agentlightning.kit.errors import BusyError, StorageError
from agentlightning.kit.files import exclusive_lock, write_atomic


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("data", ["täxt", b"\x00\xff", "", b""])
def test_write_then_read_gives_the_same(tmp_path, data):
    path = tmp_path / "file"
    write_atomic(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)


def test_write_makes_missing_folders_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    write_atomic(path, "1")
    write_atomic(path, "2")
    assert path.read_text() == "2"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_readers_see_the_old_or_the_new_content_never_a_part(tmp_path):
    path = tmp_path / "file"
    contents = [character * 200_000 for character in "ab"]
    write_atomic(path, contents[0])
    torn: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found = path.read_text()
            if found not in contents:
                torn.append(found[:10])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        write_atomic(path, contents[number % 2])
    done.set()
    reader.join()
    assert torn == []


def test_a_full_disk_is_named_and_the_old_content_stays(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the operating system at its edge: a disk cannot be filled in a test
    with pytest.raises(StorageError, match="No space left on the disk") as caught:
        write_atomic(path, "new")
    assert "Free some space" in caught.value.hint
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_folder_that_is_a_file_is_a_storage_error_with_the_path(tmp_path):
    (tmp_path / "blocked").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*blocked/file"):
        write_atomic(tmp_path / "blocked" / "file", "x")


def test_a_target_that_is_a_folder_is_a_storage_error_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError):
        write_atomic(tmp_path / "taken", "x")
    assert leftovers(tmp_path) == []


def test_lock_writes_the_holder_and_refuses_a_second_one(tmp_path):
    path = tmp_path / "run" / ".lock"
    with exclusive_lock(path, purpose="Run r1"):
        assert path.read_text() == str(os.getpid())
        with (
            pytest.raises(BusyError, match=f"Run r1 is already running here .process {os.getpid()}"),
            exclusive_lock(path, purpose="Run r1"),
        ):
            pass
    with exclusive_lock(path, purpose="Run r1"):
        pass


def test_an_error_inside_the_block_frees_the_lock(tmp_path):
    path = tmp_path / ".lock"
    with pytest.raises(RuntimeError, match="inside"), exclusive_lock(path, purpose="x"):
        raise RuntimeError("inside")
    with exclusive_lock(path, purpose="x"):
        pass


def test_the_name_of_a_longer_dead_holder_is_overwritten(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("12345678901234567890")
    with exclusive_lock(path, purpose="x"):
        assert path.read_text() == str(os.getpid())


def test_a_lock_of_unknown_holder_still_says_where_it_is(tmp_path):
    path = tmp_path / ".lock"
    with exclusive_lock(path, purpose="x"):
        path.write_text("")
        with pytest.raises(BusyError, match="process unknown"), exclusive_lock(path, purpose="x"):
            pass


def test_a_lock_that_cannot_be_opened_is_a_storage_error(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StorageError, match="Cannot write"), exclusive_lock(tmp_path / ".lock", purpose="x"):
        pass


def test_a_lock_below_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"), exclusive_lock(tmp_path / "file" / "lock", purpose="x"):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path):
    path = tmp_path / ".lock"
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from agentlightning.kit.files import exclusive_lock
        with exclusive_lock(Path({str(path)!r}), purpose="x"):
            print("held", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=str(holder.pid)), exclusive_lock(path, purpose="x"):
            pass
        holder.kill()
        holder.wait(timeout=10)
    with exclusive_lock(path, purpose="x"):
        pass


def test_where_there_is_no_flock_the_other_system_call_is_asked(tmp_path, monkeypatch):
    """`msvcrt` exists on Windows only; this stands in for it, so that the refusal is at least run."""
    taken: list[int] = []

    def locking(descriptor: int, mode: int, size: int) -> None:
        if taken:
            raise OSError(errno.EACCES, "locked")
        taken.append(size)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with exclusive_lock(tmp_path / "lock", purpose="x"):
        assert taken == [1]
        with pytest.raises(BusyError), exclusive_lock(tmp_path / "lock", purpose="x"):
            pass
