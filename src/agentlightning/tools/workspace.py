"""A folder that cannot be left: every path is walked part by part from its descriptor, and no link is followed.

Knows no tools. What a path means is decided by the kernel while walking, so nothing can be swapped between a check and
the use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.tools.base import ToolContext, ToolDeniedError, ToolUnavailableError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH = 32
_LONGEST = 1024


@dataclass(frozen=True)
class Entry:
    """A file or folder, by its path from the top."""

    path: str
    is_folder: bool
    size: int


@dataclass(frozen=True)
class Workspace:
    """The folder.

    Args:
        root: Where it is; made if missing.
        max_total: Bytes that all files together may have.
        max_files: How many there may be.
    """

    root: Path
    max_total: int = 256 * 2**20
    max_files: int = 2000

    @contextlib.contextmanager
    def _folder(self, parts: tuple[str, ...], *, make: bool = False) -> Generator[int]:
        """The descriptor of a folder below the root."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            current = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ToolUnavailableError(f"The workspace cannot be opened: {error.strerror}.") from error
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=current)
                following = os.open(part, _FOLDER, dir_fd=current)
                os.close(current)
                current = following
            yield current
        finally:
            os.close(current)

    def read(self, path: str, most: int) -> tuple[bytes, int]:
        """The first `most` bytes of a file, and its size.

        Raises:
            NotFoundError: There is no such file.
            ToolDeniedError: The path leads out, or over a link, or to something that is no file.
        """
        parts = parse(path)
        with told(path), self._folder(parts[:-1]) as folder:
            return _read(folder, parts[-1], most, path)

    def write(self, path: str, content: bytes) -> bool:
        """Replace or make a file, at once or not at all; returns whether it is new.

        Raises:
            ToolDeniedError: As `read`, or the workspace would be too large.
        """
        parts = parse(path)
        with told(path), self._folder(parts[:-1], make=True) as folder:
            old = _stat(folder, parts[-1])
            if old is not None and not stat.S_ISREG(old.st_mode):
                raise ToolDeniedError(f"{path!r} is no ordinary file.")
            self._check_room(len(content) - (old.st_size if old else 0), 0 if old else 1)
            temporary = f".{secrets.token_hex(8)}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(content)
            os.rename(temporary, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            return old is None

    def delete(self, path: str) -> None:
        """Remove a file, or an empty folder.

        Raises:
            NotFoundError: There is none.
        """
        parts = parse(path)
        with told(path), self._folder(parts[:-1]) as folder:
            found = _stat(folder, parts[-1])
            if found is not None and stat.S_ISDIR(found.st_mode):
                os.rmdir(parts[-1], dir_fd=folder)
            else:
                os.unlink(parts[-1], dir_fd=folder)

    def entries(self, path: str = ".", *, deep: bool = True) -> Iterator[Entry]:
        """What lies in a folder, sorted, and with `deep` in those below it. Links are left out."""
        parts = () if path in (".", "", "./") else parse(path)
        with told(path), self._folder(parts) as folder:
            yield from _walk(folder, "/".join(parts), deep)

    def _check_room(self, more_bytes: int, more_files: int) -> None:
        size = count = 0
        for entry in self.entries():
            size, count = size + entry.size, count + 1
        if size + more_bytes > self.max_total or count + more_files > self.max_files:
            raise ToolDeniedError(
                f"The workspace is full: {self.max_files} files and {self.max_total} bytes are the most.",
                hint="Delete what is not needed.",
            )


def parse(path: str) -> tuple[str, ...]:
    """The parts of a relative path.

    Raises:
        ToolDeniedError: It is absolute, climbs, or has characters that systems read differently.
    """
    text = path.removeprefix("./")
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    odd = "\\" in text or re.search(r"[\x00-\x1f\x7f]", text) or re.match(r"^[A-Za-z]:", text) or len(text) > _LONGEST
    if not parts or text.startswith("/") or ".." in parts or odd or len(parts) > _DEPTH:
        raise ToolDeniedError(f"{path[:100]!r} is no path inside the workspace.", hint="Write it like notes/today.md.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ToolDeniedError("The path has characters that no file name can have.") from error
    return parts


def workspace_of(context: ToolContext, root: Path | None, max_total_mb: int, max_files: int) -> Workspace:
    """The caller's own, or its user's below the settings' folder.

    Raises:
        ToolUnavailableError: There is none.
    """
    where = context.workspace
    if where is None and root is not None:
        where = root / _safe(context.user or "shared")
    if where is None:
        raise ToolUnavailableError("There is no workspace.", hint="Set workspace in the tools' settings.")
    return Workspace(where, max_total_mb * 2**20, max_files)


def _safe(user: str) -> str:
    """A folder's name that two users never share."""
    if re.fullmatch(r"[a-z0-9_-]{1,40}", user):
        return user
    return f"{re.sub(r'[^a-z0-9_-]', '-', user.lower())[:20]}.{sha256(user.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def told(path: str) -> Generator[None]:
    """The system's refusals as errors that a model can read."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no {path!r} in the workspace.") from error
    except NotADirectoryError as error:
        raise ToolDeniedError(f"{path!r} leads over something that is no folder, or over a link.") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ToolDeniedError(f"{path!r} leads over a link.") from error
        raise BadInputError(f"{path!r} cannot be used: {error.strerror}.") from error


def _read(folder: int, name: str, most: int, path: str) -> tuple[bytes, int]:
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(opened)
        if stat.S_ISDIR(found.st_mode):
            raise ToolDeniedError(f"{path!r} is a folder.", hint="List it instead.")
        if not stat.S_ISREG(found.st_mode):
            raise ToolDeniedError(f"{path!r} is no ordinary file.")
        with os.fdopen(opened, "rb", closefd=False) as file:
            return file.read(most), found.st_size
    finally:
        os.close(opened)


def _stat(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _walk(folder: int, prefix: str, deep: bool, depth: int = 0) -> Iterator[Entry]:
    for name in sorted(os.listdir(folder)):
        found = _stat(folder, name)
        path = f"{prefix}/{name}" if prefix else name
        if found is None or not path.isprintable():
            continue
        if stat.S_ISREG(found.st_mode):
            yield Entry(path, False, found.st_size)
        elif stat.S_ISDIR(found.st_mode):
            yield Entry(path, True, 0)
            if deep and depth < _DEPTH:
                with contextlib.suppress(OSError):
                    below = os.open(name, _FOLDER, dir_fd=folder)
                    try:
                        yield from _walk(below, path, deep, depth + 1)
                    finally:
                        os.close(below)
