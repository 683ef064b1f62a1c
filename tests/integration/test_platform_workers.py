"""Several processes on one port, some of which are killed: every task ends once, and nobody who follows misses it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from tests.postgres import SCHEMA, drop_schema, with_schema
from tests.redis_server import running_redis
from tests.unit.platform.models import scripted_server
from tests.unit.platform.tasks.things import slow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

AGL = [sys.executable, "-m", "agentlightning.cli.main"]
PASSWORD = "four unrelated words"


@pytest.fixture(params=["sqlite", "postgres"])
def surroundings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    ours = ("DATABASE_URL", "REDIS_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("AGL_")}
    kept |= {"PYTHONUNBUFFERED": "1", "AGL_TASK_LEASE_S": "3", "AGL_REQUESTS_PER_MINUTE": "100000"}
    if request.param == "sqlite":
        yield kept
        return
    server = request.getfixturevalue("postgres_server")
    schema = f"{SCHEMA}_workers_{time.time_ns() % 10**9}"
    with running_redis() as redis:
        yield {**kept, "DATABASE_URL": with_schema(server, schema), "REDIS_URL": redis.url}
    with psycopg.connect(server, autocommit=True) as connection:
        for name in (schema, f"{schema}_store"):
            drop_schema(connection, name)


class Up:
    """`agl up` with several workers, a model server, and an admin who is logged in."""

    def __init__(self, home: Path, model_url: str, environment: dict[str, str], workers: int) -> None:
        command = [*AGL, "up", "--port", "0", "--home", str(home), "--workers", str(workers)]
        command += ["--base-url", model_url, "--default-model", "m"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
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
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/api/v2/health").status_code == 200 and len(self.workers()) == workers:
                    return
            time.sleep(0.1)
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
                time.sleep(0.1)
                continue
            assert answer.is_success, answer.text
            return answer.json()["data"]

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
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
                        with contextlib.suppress(TimeoutError):
                            message = json.loads(socket.recv(0.5))
                            self.ready.set()
                            if message["type"] == "event":
                                self.seen.append(message)
                                last = message["seq"]
            except (websockets.exceptions.WebSocketException, OSError):
                time.sleep(0.2)


def test_killed_workers_lose_nothing(tmp_path: Path, surroundings: dict[str, str]) -> None:
    with scripted_server() as server:
        server.script = [slow(2.5)] * 500  # so that there is something to lose
        up = Up(tmp_path / "home", server.base_url, surroundings, workers=2)
        followers = [Follower(up) for _ in range(3)]
        try:
            for follower in followers:
                follower.start()
                assert follower.ready.wait(30)
            body = {"task": "x", "agent": "data_agent"}
            made = [
                up.ask("POST", "/api/v2/agents/assign", json={**body, "idempotency_key": f"k{n}"})["task_id"]
                for n in range(40)
            ]
            for victims in (up.workers, lambda: up.workers()[:1], lambda: up.workers()[-1:]):  # all of them first
                time.sleep(1.5)
                for victim in victims():
                    victim.send_signal(signal.SIGKILL)
            end = time.monotonic() + 120
            while any(up.ask("GET", f"/api/v2/tasks/{n}")["status"] in ("pending", "running") for n in made):
                assert time.monotonic() < end
                time.sleep(0.5)
            tasks = [up.ask("GET", f"/api/v2/tasks/{number}") for number in made]
            assert {task["status"] for task in tasks} == {"completed"}
            assert len({task["rollout_id"] for task in tasks}) == 40
            assert any(task["attempts"] > 1 for task in tasks)
            time.sleep(2)
            expected = up.ask("GET", "/api/v2/pool")
            assert (expected["queued"], expected["running"]) == (0, 0)
        finally:
            for follower in followers:
                follower.done.set()
            for follower in followers:
                follower.join(30)
            up.stop()
    for follower in followers:
        ends = Counter(each["task_id"] for each in follower.seen if each["event"] in ("task_completed", "task_failed"))
        assert ends == Counter(made)
        numbers = [each["seq"] for each in follower.seen]
        assert numbers == sorted(set(numbers))
    assert {each["seq"] for each in followers[0].seen} == {each["seq"] for each in followers[1].seen}


def test_what_one_process_does_the_other_tells(tmp_path: Path, surroundings: dict[str, str]) -> None:
    """Requests go to both processes in turn: tasks, cancellations, logouts and limits are one thing."""
    with scripted_server() as server:
        up = Up(tmp_path / "home", server.base_url, surroundings, workers=2)
        try:
            sockets = [
                connect(up.url.replace("http", "ws") + "/ws/agents", additional_headers=up.headers) for _ in range(8)
            ]
            for socket in sockets:
                socket.send('{"action": "subscribe", "events": ["task_completed", "task_cancelled"]}')
                assert json.loads(socket.recv(10))["type"] == "subscribed"
            number = up.ask("POST", "/api/v2/agents/assign", json={"task": "x", "agent": "data_agent"})["task_id"]
            for socket in sockets:
                assert json.loads(socket.recv(20))["task_id"] == number
            server.script = [slow(30)]
            number = up.ask("POST", "/api/v2/agents/assign", json={"task": "x", "agent": "data_agent"})["task_id"]
            while up.ask("GET", f"/api/v2/tasks/{number}")["status"] != "running":
                time.sleep(0.1)
            with httpx.Client(base_url=up.url, headers=up.headers, timeout=30) as other:
                assert other.post(f"/api/v2/tasks/{number}/cancel").json()["data"]["status"] == "cancelled"
            for socket in sockets:
                assert json.loads(socket.recv(20))["event"] == "task_cancelled"
            end = time.monotonic() + 120
            while not server.disconnected.is_set() and up.ask("GET", "/api/v2/pool")["running"]:
                assert time.monotonic() < end
                time.sleep(0.1)
            assert up.client.post("/auth/logout", headers=up.headers).status_code == 200
            for socket in sockets:
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    socket.recv(20)
        finally:
            up.stop()
