"""A program on a leash ends with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentlightning.kit.leash import leashed

_PARENT = """
import subprocess, sys
from agentlightning.kit.leash import leashed
child = subprocess.Popen(leashed([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]),
                         stdout=subprocess.PIPE, text=True, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux' kernel does it")
def test_a_killed_parent_takes_its_program_along() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_program_takes_the_place_and_its_status_comes_back() -> None:
    done = subprocess.run(
        leashed([sys.executable, "-c", "import sys; print('hi'); sys.exit(3)"]), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (3, b"hi")
    done = subprocess.run(leashed(["/nowhere/program"]), capture_output=True, check=False)
    assert done.returncode == 1
    assert b"/nowhere/program cannot be run" in done.stderr
