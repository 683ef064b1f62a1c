"""The sandbox as it is used: results, files, limits, what is said when it cannot be."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agentlightning.kit.errors import BadInputError, ConfigError
from agentlightning.tools.sandbox import (
    Limits,
    Sandbox,
    SandboxError,
    SandboxUnavailableError,
    run_python,
    shared_sandbox,
)
from agentlightning.tools.sandbox import setup as ways
from agentlightning.tools.sandbox.interpreter import copied_interpreter, own_interpreter, readable_by_others
from agentlightning.tools.sandbox.launch import sandbox_user
from agentlightning.tools.sandbox.run import run_in
from agentlightning.tools.sandbox.seccomp import PID_PLACE, build_filter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux'")


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request):
    made = Sandbox(request.param)
    state = asyncio.run(made.state())
    if state.mechanism is None:
        pytest.skip(state.reason)
    return made


async def test_a_program_runs(sandbox):
    result = await run_python("import sys\nprint('out')\nprint('err', file=sys.stderr)", sandbox=sandbox)
    assert (result.stdout, result.stderr, result.exit_code, result.ok) == ("out\n", "err\n", 0, True)
    assert result.mechanism == (await sandbox.state()).mechanism


async def test_the_standard_library_works(sandbox):
    code = """
import asyncio, collections, csv, datetime, decimal, hashlib, json, math, random, re, sqlite3, statistics, tempfile
import threading, zlib
async def main():
    await asyncio.sleep(0.01)
    return await asyncio.to_thread(lambda: sqlite3.connect(":memory:").execute("select 6 * 7").fetchone()[0])
with tempfile.TemporaryFile() as file:
    file.write(b"x")
print(asyncio.run(main()))
"""
    result = await run_python(code, sandbox=sandbox)
    assert result.stdout == "42\n", result.stderr


async def test_processes_of_its_own_work_with_namespaces(sandbox):
    code = "import subprocess; print(subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout)"
    result = await run_python(code, sandbox=sandbox)
    assert result.ok == (result.mechanism == "bubblewrap")


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("exit()", 0, ""),
        ("import sys; sys.exit('wrong input')", 1, "wrong input\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("def f(:", 1, "SyntaxError"),
        ("import os; os._exit(9)", 9, ""),
        ("import ctypes; ctypes.string_at(0)", 139, ""),
        ("import os; os.abort()", 134, ""),
        ("x = " + "(" * 10_000, 1, "Error"),
        ("print('\\ud800')", 1, "UnicodeEncodeError"),
    ],
)
async def test_how_it_ended(sandbox, code, exit_code, said):
    result = await run_python(code, sandbox=sandbox)
    assert result.exit_code == exit_code, result
    assert said in result.stderr
    assert not result.killed_because


async def test_a_traceback_shows_the_programs_lines_only(sandbox):
    result = await run_python("def f():\n    return 1 / 0  # here\nf()", sandbox=sandbox)
    assert "return 1 / 0  # here" in result.stderr
    assert "line 2, in f" in result.stderr
    assert "<string>" not in result.stderr


async def test_the_last_value_is_shown_when_asked(sandbox):
    assert (await run_python("x = 20\nx + 1", sandbox=sandbox, show_last=True)).stdout == "21\n"
    assert (await run_python("x = 20\nx + 1", sandbox=sandbox)).stdout == ""
    assert (await run_python("print(1)", sandbox=sandbox, show_last=True)).stdout == "1\n"


async def test_files_go_in_and_come_out(sandbox):
    code = """
import os
os.makedirs("a/deep", exist_ok=True)
open("a/deep/new.txt", "w").write(open("a/in.txt").read().upper())
open("same.txt", "w").write("same")
os.symlink("/etc/passwd", "link")
os.link("same.txt", "second")
os.mkfifo("pipe") if os.path.exists("/proc/never") else None
open("closed", "w").close(); os.fchmod(os.open("closed", os.O_RDONLY), 0)
"""
    result = await run_python(code, files={"a/in.txt": b"hi", "kept.txt": b"1"}, sandbox=sandbox)
    assert result.ok, result.stderr
    assert result.files["a/deep/new.txt"] == b"HI"
    assert {"link", "second", "same.txt", "kept.txt"}.isdisjoint(result.files)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a\0b", "/".join("a" * 40), "x" * 300])
async def test_a_name_that_leads_out_is_refused(sandbox, name):
    with pytest.raises(BadInputError):
        await run_python("1", files={name: b""}, sandbox=sandbox)


async def test_too_much_to_start_with_is_refused(sandbox):
    with pytest.raises(BadInputError, match="too large"):
        await run_python("1", files={"x": bytes(17 * 2**20)}, sandbox=sandbox)
    with pytest.raises(SandboxError, match="characters long"):
        await run_python("1" * (2**20 + 1), sandbox=sandbox)


async def test_what_was_printed_before_the_time_was_up_is_kept(sandbox):
    result = await run_python("print('so far')\nimport time; time.sleep(60)", timeout_s=10, sandbox=sandbox)
    assert result.timed_out
    assert result.killed_because == "time"
    assert result.exit_code is None
    assert result.stdout == "so far\n"


async def test_a_cancelled_run_leaves_nothing(sandbox, tmp_path):
    task = asyncio.create_task(run_python("import time; time.sleep(60)", timeout_s=60, sandbox=sandbox))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running(sandbox) == []


async def test_a_run_cancelled_while_it_starts_leaves_nothing(sandbox):
    for step in range(50):  # every few attempts one met the moment between the process and its pipes
        task = asyncio.create_task(run_python("import time; time.sleep(60)", timeout_s=60, sandbox=sandbox))
        await asyncio.sleep(step * 0.0004)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 50)
    assert running(sandbox) == []


def running(sandbox):
    """Command lines of this sandbox's programs that run now."""
    program = sandbox._setup.interpreter.program.encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if program in line and b"landlock_create" in line:
            found.append(line)
    return found


async def test_many_at_once(sandbox):
    results = await asyncio.gather(*(run_python(f"print({n})", sandbox=sandbox, timeout_s=30) for n in range(8)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(8)]


async def test_switched_off_is_off():
    off = Sandbox("off")
    assert (await off.state()).reason == "switched off"
    with pytest.raises(SandboxUnavailableError, match="switched off"):
        await run_python("1", sandbox=off)


def test_an_unknown_mechanism_is_refused():
    with pytest.raises(ConfigError, match="no sandbox"):
        Sandbox("docker")  # pyright: ignore[reportArgumentType]


async def test_where_nothing_works_it_says_why_and_runs_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("agentlightning.tools.sandbox.inside.landlock_version", lambda libc: 0)
    sandbox = Sandbox()
    state = await sandbox.state()
    assert state.mechanism is None
    assert "bwrap is not installed" in state.reason
    assert "no Landlock" in state.reason
    with pytest.raises(SandboxUnavailableError, match="bwrap is not installed"):
        await sandbox.run("open('ran', 'w')")


async def test_a_bubblewrap_that_does_not_confine_is_not_used(monkeypatch, tmp_path):
    """A stand-in that ignores its options and runs the program as it is: the trial run has to notice."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done; shift; exec "$@"\n')
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(ways, "build_filter", lambda strict: build_filter(strict=strict))
    monkeypatch.setattr("shutil.which", lambda name: str(fake))
    state = await Sandbox("bubblewrap").state()
    assert state.mechanism is None


async def test_a_bubblewrap_that_fails_is_reported_with_its_words(monkeypatch):
    false = shutil.which("false")
    monkeypatch.setattr("shutil.which", lambda name: false)
    state = await Sandbox("bubblewrap").state()
    assert state.mechanism is None
    assert "could not be set up" in state.reason


async def test_other_systems_have_no_sandbox(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert "needs Linux" in (await Sandbox().state()).reason


async def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    assert "agentlightning[tools]" in (await Sandbox().state()).reason


def test_the_shared_one_follows_the_environment(monkeypatch):
    shared_sandbox.cache_clear()
    monkeypatch.setenv("AGL_SANDBOX", "off")
    assert asyncio.run(shared_sandbox().state()).mechanism is None
    shared_sandbox.cache_clear()


def test_a_strict_filter_has_a_place_for_the_process_number():
    place = PID_PLACE.to_bytes(4, "little")
    assert place in build_filter(strict=True)
    assert place not in build_filter(strict=False)


async def test_a_copied_python_runs_and_takes_packages_along():
    setup = ways.prepare("landlock", ("typing_extensions", "iniconfig", "no_such"), copy=True)
    result = await run_in(
        setup, "import iniconfig, typing_extensions; print('there')", files={}, limits=Limits(memory_mb=1024)
    )
    assert result.stdout == "there\n", result.stderr


def test_a_copy_goes_with_its_last_user():
    interpreter = copied_interpreter()
    folder = Path(interpreter.folders[0])
    assert readable_by_others(interpreter)
    del interpreter
    assert not folder.exists()


@pytest.mark.slow
def test_a_copy_that_a_killed_process_left_is_removed_and_others_are_not():
    code = "from agentlightning.tools.sandbox.interpreter import copied_interpreter as c\n"
    code += "import os, signal\nkept = c(); print(kept.folders[0], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=100, check=False)
    left = Path(done.stdout.strip())
    assert left.exists()
    first = copied_interpreter()
    second = copied_interpreter()
    assert not left.exists()
    assert Path(first.program).exists()
    assert Path(second.program).exists()


def test_an_unreachable_interpreter_is_noticed(tmp_path):
    from dataclasses import replace

    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").touch()
    own = own_interpreter()
    assert not readable_by_others(replace(own, program=str(closed / "python")))
    assert not readable_by_others(replace(own, program=str(closed / "missing")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives its runs users of their own")
def test_root_gives_each_run_a_user_of_its_own(monkeypatch):
    assert len({sandbox_user() for _ in range(50)}) > 40
    monkeypatch.setattr("agentlightning.tools.sandbox.launch._mapped_users", lambda: 65_536)
    assert 60_000 < (sandbox_user() or 0) < 65_536
