"""Files that survive a crash: atomic replacement and an exclusive lock."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from agentlightning.kit.errors import BusyError, StorageError

_READABLE = 0o644
_LOCK_POLL_S = 0.02


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` so that `path` holds the old content or the new one, never a part.

    Raises:
        StorageError: The disk is full or the folder not writable; `path` is unchanged.
    """
    with atomic_stream(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_stream(path: Path) -> Generator[IO[bytes]]:
    """As `write_atomic`, piece by piece: what the block wrote becomes `path` when it ends, and nothing if it fails.

    Raises:
        StorageError: The disk is full or the folder not writable; `path` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise storage_error(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(_READABLE)  # a temporary file is private, a result is not
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Our error for the operating system's about writing `path`."""
    if error.errno == errno.ENOSPC:
        return StorageError(f"No space left on the disk that holds {path}.", hint="Free some space and try again.")
    return StorageError(f"Cannot write {path}: {error.strerror or error}.", hint="Check the path and its permissions.")


@contextmanager
def exclusive_lock(path: Path, *, purpose: str, wait_s: float = 0.0, remove: bool = False) -> Generator[None]:
    """Hold an operating-system lock on `path` for the block; it is freed by the kernel even after SIGKILL.

    Args:
        path: The lock file; it holds the number of the last process.
        purpose: What the block does, for the message.
        wait_s: How long to wait, sleeping, while another process holds it.
        remove: Remove the file in the end; otherwise it stays behind.

    Raises:
        BusyError: Another process holds it; the message names that process.
        StorageError: The lock file cannot be made.
    """
    stream = _open_locked(path, purpose, time.monotonic() + wait_s)
    with stream:
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield
        finally:
            if remove:
                with suppress(OSError):  # not while it is open, on Windows
                    path.unlink()


def _open_locked(path: Path, purpose: str, deadline: float) -> IO[str]:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+")
        except OSError as error:
            raise storage_error(path, error) from error
        if _try_lock(stream.fileno()):
            if _is_at(stream, path):
                return stream
            stream.close()  # its last holder has removed it
            continue
        if time.monotonic() >= deadline:
            with stream:
                stream.seek(0)
                holder = stream.read().strip() or "unknown"
            raise BusyError(
                f"{purpose} is already running here (process {holder}, lock {path}).",
                hint="Wait for it, stop it, or use another directory.",
            )
        stream.close()
        time.sleep(_LOCK_POLL_S)  # systems tell nobody that a lock is free, except by blocking without a limit


def _is_at(stream: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
