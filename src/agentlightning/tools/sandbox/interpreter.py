"""Which Python runs inside, and which folders it needs: as it lies there, or copied where another user can read it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "agl-python-"
_LOCK = ".lock"
_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "config-*", "site-packages")


@dataclass(frozen=True)
class Interpreter:
    """A Python, and what has to be readable for it to run.

    Attributes:
        program: The executable.
        folders: What it reads, besides the system's own folders.
        packages: Folders for `sys.path`.
        libraries: Folder of `libpython`, if it would not be found by itself.
    """

    program: str
    folders: tuple[str, ...]
    packages: tuple[str, ...] = ()
    libraries: str = ""
    keep: object = None


def own_interpreter() -> Interpreter:
    """The Python of this process, with its installed packages."""
    program, base = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    folders = [base, *(path for path in packages if not path.startswith(base + os.sep))]
    if not program.startswith(base + os.sep):
        folders.append(program)
    return Interpreter(program, tuple(path for path in folders if not path.startswith("/usr/")), tuple(packages))


def readable_by_others(interpreter: Interpreter) -> bool:
    """Whether a user that owns nothing can get to it, by the modes of its folders."""
    return all(_reachable(Path(path)) for path in (*interpreter.folders, interpreter.program))


def _reachable(path: Path) -> bool:
    try:
        parents = all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
        return bool(parents and path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def copied_interpreter(names: tuple[str, ...] = ()) -> Interpreter:
    """A copy of this Python with its standard library, and of the installed packages named, below the temporary folder.

    For a Python under a home that only its owner may enter. It lasts as long as what is returned.
    """
    _remove_left()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    keep = _Kept(folder)
    folder.chmod(0o755)
    program, base = Path(os.path.realpath(sys.executable)), Path(os.path.realpath(sys.base_prefix))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "bin").mkdir()
    shutil.copy2(program, folder / "bin" / version)
    (folder / "lib").mkdir()
    for library in (base / "lib").glob("libpython*.so*"):
        shutil.copy2(library, folder / "lib" / library.name)
    standard = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(standard, folder / "lib" / version, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
    packages = folder / "packages"
    packages.mkdir()
    for name in names:
        _copy_package(name, packages)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink() and path.name != _LOCK:
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    return Interpreter(str(folder / "bin" / version), (str(folder),), (str(packages),), str(folder / "lib"), keep)


def _copy_package(name: str, target: Path) -> None:
    for where in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for found in (Path(where) / name, Path(where) / f"{name}.libs"):
            if found.is_dir():
                ignored = shutil.ignore_patterns("tests", "test")
                shutil.copytree(found, target / found.name, ignore=ignored, dirs_exist_ok=True)
        if (single := Path(where) / f"{name}.py").is_file():
            shutil.copy2(single, target / single.name)


class _Kept:
    """Removes the folder when the last sandbox that uses it is gone, or at exit."""

    def __init__(self, folder: Path) -> None:
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        weakref.finalize(self, _remove, folder, lock)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_left() -> None:
    """Copies of processes that were killed: nobody holds their lock any more."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):
            opened = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(opened).st_uid == os.geteuid():
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(opened)
