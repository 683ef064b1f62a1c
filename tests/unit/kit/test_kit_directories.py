"""Directories that are replaced whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agentlightning.kit import directories
from agentlightning.kit.directories import exchange, whole_directory
from agentlightning.kit.errors import StorageError


def write(target: Path, text: str) -> None:
    with whole_directory(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text(text)


def test_a_failed_block_leaves_the_old_directory_and_no_rest(tmp_path: Path) -> None:
    write(tmp_path / "model", "old")

    def fail() -> None:
        with whole_directory(tmp_path / "model") as folder:
            (folder / "half").write_text("x")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (tmp_path / "model" / "sub" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"), whole_directory(tmp_path / "file" / "model"):
        pass


def test_readers_find_a_directory_at_every_moment(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write(target, "0")
    if not exchange_works(tmp_path):
        pytest.skip("this file system exchanges nothing")
    missing, stop = 0, threading.Event()

    def read() -> None:
        nonlocal missing
        while not stop.is_set():
            missing += not target.exists()

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(200):
        write(target, str(i))
    stop.set()
    reader.join()
    assert missing == 0
    assert (target / "sub" / "a").read_text() == "199"


def exchange_works(folder: Path) -> bool:
    for name in ("x", "y"):
        (folder / name).mkdir()
    return exchange(folder / "x", folder / "y")


def test_where_nothing_can_be_exchanged_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories.sys, "platform", "plan9")
    write(tmp_path / "model", "old")
    write(tmp_path / "model", "new")
    assert (tmp_path / "model" / "sub" / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_exchanging_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    if exchange_works(tmp_path):
        with pytest.raises(FileNotFoundError):
            exchange(tmp_path / "x", tmp_path / "gone")
