"""What runs inside the sandbox, before and around the program: limits, Landlock, seccomp. Imports nothing of ours.

Its text is handed to a bare interpreter with `-c`; the request comes as JSON on standard input. It trusts the request
and nothing that happens after `exec`.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import linecache
import os
import resource
import struct
import sys
import traceback

READ = 0b1101  # execute, read files, read folders
WRITE = 0b0010
# All that Landlock could refuse, by its version: 13 kinds; + refer; + truncate; (network); + device ioctl.
FILES = {0: 0, 1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
ALL_FILES = 0xFFFF
DEVICE_FILE = 0b0110  # read and write files
SYSCALLS = (444, 445, 446)  # create a set of rules, add one, apply; the same numbers on every architecture


def system() -> ctypes.CDLL:
    """The C library."""
    return ctypes.CDLL(None, use_errno=True)


def landlock_version(libc: ctypes.CDLL) -> int:
    """Of the running kernel; 0 without Landlock."""
    return max(libc.syscall(SYSCALLS[0], None, 0, 1), 0)


def confine(libc: ctypes.CDLL, rules: list[tuple[str, str]], at_most: int) -> int:
    """Allow what `rules` (path, "r", "w" or "d" for a device) say, and no other file, TCP port, signal or socket."""
    version = min(landlock_version(libc), at_most)
    if version == 0:
        return 0
    files = FILES.get(version, ALL_FILES)
    network = 0b11 if version >= 4 else 0
    scope = 0b11 if version >= 6 else 0  # abstract Unix sockets and signals
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("QQQ", files, network, scope)[:size]
    ruleset = check(libc.syscall(SYSCALLS[0], attributes, size, 0), "landlock_create_ruleset")
    for path, kind in rules:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = {"r": READ, "w": files & ~1, "d": DEVICE_FILE}[kind]
        if not os.path.isdir(path):
            allowed &= 0b0111 | (0x4000 if version >= 3 else 0)
        rule = struct.pack("=Qi", allowed & files, folder)
        check(libc.syscall(SYSCALLS[1], ruleset, 1, rule, 0), "landlock_add_rule")
        os.close(folder)
    check(libc.syscall(SYSCALLS[2], ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
    return version


def load_filter(libc: ctypes.CDLL, program: str, place: int) -> None:
    """Give this process its seccomp filter; `place` in it stands for the process's number."""
    code = bytes.fromhex(program).replace(struct.pack("<I", place), struct.pack("<I", os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    check(libc.prctl(22, 2, header, 0, 0), "prctl(PR_SET_SECCOMP)")


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def run(code: str, show_last: bool) -> int:
    """Run the program as `__main__`; returns its exit code."""
    import ast

    builtins.exit = builtins.quit = sys.exit
    linecache.cache["main.py"] = (len(code), None, code.splitlines(keepends=True), "main.py")
    sys.argv = ["main.py"]
    names = {"__name__": "__main__", "__builtins__": builtins, "__file__": "main.py"}
    result = 0
    try:
        tree = ast.parse(code, "main.py")
        last = None
        if show_last and tree.body and isinstance(tree.body[-1], ast.Expr):
            last, tree.body = tree.body[-1].value, tree.body[:-1]
        exec(compile(tree, "main.py", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last), "main.py", "eval"), names)
            if value is not None:
                sys.stdout.write(repr(value) + "\n")
    except SystemExit as stop:
        result = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        if isinstance(stop.code, str):
            sys.stderr.write(stop.code + "\n")
    except BaseException as error:  # noqa: BLE001  # all that a program may raise is its own, and is shown
        shown = error.__traceback__
        while shown is not None and shown.tb_frame.f_code.co_filename != "main.py":
            shown = shown.tb_next
        traceback.print_exception(type(error), error, shown)
        result = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            result = result or 1
    return result & 0xFF


def supervise(child: int, status: int) -> None:
    """Wait for the program, as the first process of its namespace; all others end with this one."""
    while True:
        pid, how = os.wait()
        if pid == child:
            break
    os.write(status, json.dumps(os.waitstatus_to_exitcode(how)).encode())
    os._exit(0)


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    status = request["status"]
    for first, last in ((3, status), (status + 1, 4096)):
        os.closerange(first, last)
    libc = system()
    os.umask(0o077)
    limit(request["limits"])
    check(libc.prctl(38, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    confine(libc, request["rules"], request["landlock"])
    if request["filter"]:
        load_filter(libc, request["filter"], request["place"])
    else:
        child = os.fork()
        if child:
            libc.prctl(4, 0, 0, 0, 0)  # what is in its memory, the program shall not read
            supervise(child, status)
    os.close(status)
    sys.path += request["packages"]
    os._exit(run(request["code"], request["show_last"]))


if __name__ == "__main__":
    main()
