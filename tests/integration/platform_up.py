"""`agl up` in processes of its own, and somebody who follows its events; for tests that take parts of it away."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import websockets.exceptions
from websockets.sync.client import connect

AGL = [sys.executable, "-m", "agentlightning.cli.main"]
PASSWORD = "four unrelated words"


def environment(names: dict[str, str], **more: str) -> dict[str, str]:
    """`names` without what would lead the platform elsewhere, and short leases."""
    ours = ("DATABASE_URL", "REDIS_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY")
    kept = {name: value for name, value in names.items() if name not in ours and not name.startswith("AGL_")}
    return {**kept, "PYTHONUNBUFFERED": "1", "AGL_TASK_LEASE_S": "3", "AGL_REQUESTS_PER_MINUTE": "100000", **more}


class Up:
    """`agl up` with several workers, a model server, and an admin who is logged in."""

    def __init__(self, home: Path, model_url: str, environment: dict[str, str], workers: int) -> None:
        command = [*AGL, "up", "--port", "0", "--home", str(home), "--workers", str(workers)]
        command += ["--base-url", model_url, "--default-model", "m"]
        self.log = home.with_name(f"{home.name}.log")
        with self.log.open("wb") as stream:  # a pipe that nobody reads would fill up and stop it
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment)
        assert self.process.stdout is not None
        said = "".join(self.process.stdout.readline() for _ in range(4))
        found = re.search(r"listening on (\S+).*one-time password: (\S+)", said, re.DOTALL)
        assert found, said
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, timeout=30)
        self._until_ready(workers)
        self.headers = {"Authorization": f"Bearer {self._login(found[2])}"}
        change = {"current_password": found[2], "new_password": PASSWORD}
        assert self.client.put("/auth/password", headers=self.headers, json=change).status_code == 200
        self.headers = {"Authorization": f"Bearer {self._login(PASSWORD)}"}

    def _login(self, password: str) -> str:
        return self.client.post("/auth/login", json={"username": "admin", "password": password}).json()["access_token"]

    def _until_ready(self, workers: int) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):  # nobody listens yet
                if self.client.get("/api/v2/health").status_code == 200 and len(self.workers()) == workers:
                    return
            time.sleep(0.1)  # a starting server tells nobody
        raise AssertionError("it does not start")

    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if "up" in child.cmdline()]

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """The answer's data; asked again while a process that was killed takes its connections with it."""
        end = time.monotonic() + 120
        while True:
            try:
                answer = self.client.request(method, path, headers=self.headers, **more)
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.1)  # until another process has the port
                continue
            assert answer.is_success, answer.text
            return answer.json()["data"]

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stopping has tests of its own; it is ended below
            self.process.communicate(timeout=60)
        self.process.kill()
        self.process.communicate()


class Follower(threading.Thread):
    """Follows all events over websockets, and goes on where it was when its process dies."""

    def __init__(self, up: Up) -> None:
        super().__init__(daemon=True)
        self.up = up
        self.seen: list[dict[str, Any]] = []
        self.connections = 0
        self.done = threading.Event()
        self.ready = threading.Event()

    def run(self) -> None:
        url = self.up.url.replace("http", "ws") + "/ws/agents"
        last = 0
        while not self.done.is_set():
            try:
                with connect(url, additional_headers=self.up.headers, open_timeout=10) as socket:
                    self.connections += 1
                    socket.send(json.dumps({"action": "subscribe", "last_seq": last}))
                    while not self.done.is_set():
                        with contextlib.suppress(TimeoutError):  # no news: look whether it is over
                            message = json.loads(socket.recv(0.5))
                            self.ready.set()
                            if message["type"] == "event":
                                self.seen.append(message)
                                last = message["seq"]
            except (websockets.exceptions.WebSocketException, OSError):
                time.sleep(0.2)  # as a client does before it connects again
