"""Several processes on one port, some of which are killed: every task ends once, and nobody who follows misses it."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from tests.integration.platform_up import Follower, Up, environment
from tests.postgres import SCHEMA, drop_schema, with_schema
from tests.redis_server import running_redis
from tests.unit.platform.models import scripted_server
from tests.unit.platform.tasks.things import slow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(params=["sqlite", "postgres"])
def surroundings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    kept = environment(dict(os.environ))
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


def test_an_evaluation_goes_on_when_its_worker_is_killed(tmp_path: Path, surroundings: dict[str, str]) -> None:
    with scripted_server() as server:
        server.script = [slow(2.0)] * 100
        up = Up(tmp_path / "home", server.base_url, surroundings, workers=2)
        try:
            path = "/api/v2/agents/finance_agent"
            before = up.ask("GET", "/api/v2/tasks", params={"limit": 100})["tasks"]
            number = up.ask("POST", f"{path}/evaluate", json={"limit": 8})["id"]
            end = time.monotonic() + 120
            while not up.ask("GET", f"{path}/evaluations/{number}")["results"]:
                assert time.monotonic() < end
                time.sleep(0.1)  # evaluations have no events
            for victim in up.workers():
                victim.send_signal(signal.SIGKILL)
            end = time.monotonic() + 120
            while (found := up.ask("GET", f"{path}/evaluations/{number}"))["status"] == "running":
                assert time.monotonic() < end, found
                time.sleep(0.3)  # evaluations have no events
            tasks = up.ask("GET", "/api/v2/tasks", params={"limit": 100})["tasks"]
        finally:
            up.stop()
    assert found["status"] == "completed"
    assert [each["case"] for each in found["results"]] == list(range(8))
    assert len({each["rollout_id"] for each in found["results"]}) == 8
    assert len(tasks) - len(before) == 8  # no case was begun twice
