"""How a sandbox is entered: the command line, the user, the rules. One function for each mechanism. Starts nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from agentlightning.tools.sandbox.interpreter import Interpreter
from agentlightning.tools.sandbox.result import Limits
from agentlightning.tools.sandbox.seccomp import PID_PLACE

BUBBLEWRAP = "bwrap"
_FIRST_USER = 1_900_000_000
_USERS = 100_000
_NOBODY = 65_534
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_LIBRARIES = "/etc/ld.so.cache"
SCRIPT = files("agentlightning.tools.sandbox").joinpath("inside.py")


@dataclass
class Launch:
    """How to start one run."""

    command: list[str]
    request: dict[str, Any]
    user: int | None
    descriptors: tuple[int, ...]
    environment: dict[str, str]


def sandbox_user() -> int | None:
    """A user id that nobody has, another for each run; `None` if this process is not root and keeps its own."""
    if os.geteuid() != 0:
        return None
    first, count = _FIRST_USER, _USERS
    mapped = _mapped_users()
    if first + count > mapped:  # in a container with a small range of its own
        count = min(1000, max(mapped // 8, 1))
        first = mapped - count
    return first + secrets.randbelow(count)


def _mapped_users() -> int:
    try:
        lines = Path("/proc/self/uid_map").read_text().split("\n")
        return max(int(line.split()[0]) + int(line.split()[2]) for line in lines if line.strip())
    except (OSError, ValueError):
        return _NOBODY


def bubblewrap(
    program: str,
    interpreter: Interpreter,
    work: Path,
    temporary: Path,
    filter_fd: int,
    limits: Limits,
    user: int | None,
) -> Launch:
    """In namespaces of its own: no network, no other processes, an almost empty file system."""
    command = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", str(_NOBODY)]
    command += ["--gid", str(_NOBODY), "--hostname", "sandbox", "--as-pid-1", "--new-session", "--die-with-parent"]
    command += ["--cap-drop", "ALL", "--seccomp", str(filter_fd)]
    for path in _SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    command += ["--ro-bind-try", _LIBRARIES, _LIBRARIES]
    for device in _DEVICES:  # not --dev: that brings a /dev/shm that no limit counts
        command += ["--dev-bind", device, device]
    command += ["--bind", str(work), "/work", "--bind", str(temporary), "/tmp"]
    for path in interpreter.folders:  # after /tmp, in which one of them may lie
        command += ["--ro-bind", path, path]
    command += ["--remount-ro", "/", "--chdir", "/work", "--", *_python(interpreter)]
    rules = _rules(interpreter, ["/work", "/tmp"])
    # The first process, which waits for the others, counts as one of them.
    request = _request(rules, interpreter, limits, processes=limits.processes + 1)
    return Launch(command, request, user, (filter_fd,), _environment("/work", "/tmp", interpreter))


def landlock(
    program: bytes,
    interpreter: Interpreter,
    work: Path,
    temporary: Path,
    limits: Limits,
    user: int | None,
    version: int,
) -> Launch:
    """One process among the others, with Landlock around its files and a strict filter on its system calls."""
    rules = _rules(interpreter, [str(work), str(temporary)])
    # Without a user of its own, the server's processes count, too.
    others = 0 if user is not None else _threads_of(os.geteuid())
    request = _request(rules, interpreter, limits, processes=limits.processes + others)
    request |= {"filter": program.hex(), "place": PID_PLACE, "landlock": version}
    return Launch(_python(interpreter), request, user, (), _environment(str(work), str(temporary), interpreter))


def _python(interpreter: Interpreter) -> list[str]:
    return [interpreter.program, "-I", "-S", "-B", "-u", "-X", "utf8", "-c", SCRIPT.read_text(encoding="utf-8")]


def _rules(interpreter: Interpreter, writable: Sequence[str]) -> list[tuple[str, str]]:
    rules = [(path, "r") for path in (*_SYSTEM, _LIBRARIES, *interpreter.folders, interpreter.program)]
    rules += [(path, "d") for path in _DEVICES]
    return rules + [(path, "w") for path in writable]


def _request(
    rules: list[tuple[str, str]], interpreter: Interpreter, limits: Limits, *, processes: int
) -> dict[str, Any]:
    megabyte = 2**20
    return {
        "rules": rules,
        "packages": interpreter.packages,
        "filter": "",
        "place": 0,
        "landlock": 99,
        "limits": {
            "CORE": 0,
            "AS": limits.memory_mb * megabyte,
            "CPU": max(1, int(limits.timeout_s * 2)),
            "FSIZE": limits.files_mb * megabyte,
            "NOFILE": limits.open_files,
            "NPROC": processes,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
            "NICE": 0,
            "RTPRIO": 0,
        },
    }


def _environment(work: str, temporary: str, interpreter: Interpreter) -> dict[str, str]:
    """All that the program sees of an environment."""
    found = {"HOME": work, "TMPDIR": temporary, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
    found |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if interpreter.libraries:
        found["LD_LIBRARY_PATH"] = interpreter.libraries
    return found


def _threads_of(user: int) -> int:
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == user:
                    count += sum(1 for _ in (entry / "task").iterdir())
            except OSError:
                continue  # it has ended meanwhile
    return count
