"""Directories that are there whole or not at all, whatever kills the process. Knows nothing of what they hold."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from agentlightning.kit.errors import StorageError

UNFINISHED = ".unfinished-"
"""Prefix of what a killed process may leave beside a directory; safe to delete."""

_AT_FDCWD = -100  # Linux: paths are relative to the current folder
_RENAME_EXCHANGE = 2


@contextmanager
def whole_directory(target: Path) -> Generator[Path]:
    """A temporary directory beside `target` that takes its place when the block ends well.

    An older `target` is exchanged in one step where the system can (Linux): a reader finds the old or the new
    directory at every moment. Elsewhere there is a moment between two renames without either.

    Raises:
        StorageError: The disk refused; what was there is unharmed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
    except OSError as error:
        raise refused(target, error) from error
    try:
        yield unfinished
        unfinished.chmod(0o755)
        _sync_tree(unfinished)
        _put(unfinished, target)
        _sync(target.parent)
    except OSError as error:
        raise refused(target, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files below `source` into the existing directory `target`, links followed, hidden locks left out.

    Raises:
        OSError: The disk refused, or `source` is gone.
    """
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(f"{UNFINISHED}*", ".lock"))


def refused(target: Path, error: BaseException) -> StorageError:
    """What to say when the disk refused to write `target`."""
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error):
        return StorageError(f"No space left on the disk for {target}.", hint="Free some space and try again.")
    return StorageError(f"Cannot write {target}: {error}", hint="Check the path and its permissions.")


def _put(unfinished: Path, target: Path) -> None:
    if not target.exists():
        unfinished.rename(target)
        return
    if exchange(unfinished, target):
        return  # what is called unfinished now is the old directory; it is removed
    old = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
    target.rename(old / "old")
    unfinished.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Let two existing paths change places in one step; `False` where the system or the file system cannot.

    Raises:
        OSError: It can, but not these two.
    """
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one))


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
