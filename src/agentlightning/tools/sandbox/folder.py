"""The folder that a run may write: filled before, read after. What a program left there is handled with care."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path, PurePosixPath

from agentlightning.kit.errors import BadInputError
from agentlightning.tools.sandbox.result import Limits, SandboxError

_DEPTH = 16


@contextlib.contextmanager
def run_folder(user: int | None) -> Generator[tuple[Path, Path]]:
    """Two empty folders, for the program's work and for its temporary files; gone afterwards."""
    top = Path(tempfile.mkdtemp(prefix="agl-sandbox-"))
    try:
        work, temporary = top / "work", top / "tmp"
        for folder in (work, temporary):
            folder.mkdir(mode=0o700)
        if user is not None:
            top.chmod(0o711)
            for folder in (work, temporary):
                os.chown(folder, user, user)
        yield work, temporary
    finally:
        _remove(top)


def _remove(top: Path) -> None:
    """Also what a program made unreadable; only its owner needs that, root does not."""
    for folder, names, _ in os.walk(top):
        for name in names:
            with contextlib.suppress(OSError):
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
    try:
        shutil.rmtree(top)
    except OSError as error:
        raise SandboxError(f"The folder of a sandbox cannot be removed: {error}.") from error


def put(files: Mapping[str, bytes], work: Path, user: int | None, limits: Limits) -> None:
    """Write what the program finds there.

    Raises:
        BadInputError: A name leads out of the folder, or there is more than the limits allow.
    """
    if len(files) > limits.files_count // 2 or sum(map(len, files.values())) > limits.files_mb * 2**19:
        raise BadInputError(
            "The files are too many, or too large, for a sandbox.",
            hint=f"Give it {limits.files_count // 2} files and {limits.files_mb / 2:g} MB at most.",
        )
    for name, content in files.items():
        target = work.joinpath(*_parts(name))
        for folder in reversed(target.relative_to(work).parents[:-1]):
            (work / folder).mkdir(mode=0o700, exist_ok=True)
        try:
            target.write_bytes(content)
        except OSError as error:
            raise BadInputError(f"The file {name!r} cannot be put into the sandbox: {error.strerror}.") from error
    if user is not None:
        for folder, names, entries in os.walk(work):
            for name in (*names, *entries):
                os.chown(os.path.join(folder, name), user, user, follow_symlinks=False)


def _parts(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or len(parts) > _DEPTH:
        raise BadInputError(f"{name!r} is no relative name of a file.")
    return parts


def taken(work: Path, before: Mapping[str, bytes], limits: Limits) -> dict[str, bytes]:
    """New and changed regular files. Nothing is followed: no links, no devices, no second names of other files."""
    found: dict[str, bytes] = {}
    room = limits.files_mb * 2**20
    top = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    waiting: list[tuple[int, str]] = [(top, "")]
    try:
        while waiting and len(found) < limits.files_count:
            folder, prefix = waiting.pop()
            try:
                for name in sorted(_listed(folder)):
                    room -= _take(folder, name, prefix, waiting, found, room)
            finally:
                os.close(folder)
    finally:
        for folder, _ in waiting:
            os.close(folder)
    return {name: content for name, content in found.items() if before.get(name) != content}


def _listed(folder: int) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if _is_text(name)]
    except OSError:
        return []


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _take(
    folder: int, name: str, prefix: str, waiting: list[tuple[int, str]], found: dict[str, bytes], room: int
) -> int:
    """Note one entry; returns the bytes it took."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened = os.open(name, flags, dir_fd=folder)
    except OSError:
        return 0  # a link, a socket, or made unreadable
    told = os.fstat(opened)
    if stat.S_ISDIR(told.st_mode) and prefix.count("/") < _DEPTH:
        waiting.append((opened, f"{prefix}{name}/"))
        return 0
    with os.fdopen(opened, "rb", closefd=True) as file:
        if not stat.S_ISREG(told.st_mode) or told.st_nlink != 1 or told.st_size > room:
            return 0
        found[prefix + name] = file.read(room)
    return told.st_size
