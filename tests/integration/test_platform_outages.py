"""Redis or PostgreSQL goes away in the middle of tasks and comes back: clear answers meanwhile, and nothing is lost."""

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.platform_up import PASSWORD, Follower, Up, environment
from tests.postgres import OwnServer
from tests.redis_server import RedisServer, running_redis
from tests.unit.platform.models import scripted_server
from tests.unit.platform.tasks.things import slow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TASKS = 120
_PATIENCE_S = 90.0
_CALL_S = 25.0
"""The longest that any answer may take, on however slow a machine."""


class Site:
    def __init__(self, up: Up, redis: RedisServer, postgres: OwnServer) -> None:
        self.up, self.redis, self.postgres = up, redis, postgres

    def new_user(self, role: str = "user") -> tuple[str, str]:
        """Name and the password of a user who may log in."""
        name = f"{role}-{time.time_ns() % 10**9}"
        made = self.up.ask("POST", "/api/v2/users", json={"username": name, "role": role, "password": PASSWORD})
        assert made["username"] == name
        return name, PASSWORD

    def login(self, name: str, password: str) -> httpx.Response:
        return self.up.client.post("/auth/login", json={"username": name, "password": password})

    def health(self) -> dict[str, Any]:
        return self.up.client.get("/api/v2/health").json()["data"]

    def until_health(self, status: str, part: str, state: str) -> dict[str, Any]:
        """Of all workers: several in a row say so."""
        end = time.monotonic() + _PATIENCE_S
        agreed = 0
        while True:
            with httpx.Client(base_url=self.up.url, timeout=_CALL_S) as client:  # a new connection: any worker
                found = client.get("/api/v2/health").json()["data"]
            agreed = agreed + 1 if (found["status"], found["components"][part]["state"]) == (status, state) else 0
            if agreed == 8:
                return found
            assert time.monotonic() < end, found
            time.sleep(0.1)  # health is asked, it does not tell


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, own_postgres: OwnServer) -> Iterator[tuple[Site, Any]]:
    home: Path = tmp_path_factory.mktemp("home")
    with running_redis() as redis, scripted_server() as server:
        given = environment(
            dict(os.environ), DATABASE_URL=own_postgres.url, REDIS_URL=redis.url, AGL_LOGIN_ATTEMPTS="5"
        )
        up = Up(home, server.base_url, given, workers=2)
        try:
            yield Site(up, redis, own_postgres), server
        finally:
            up.stop()


class Load(threading.Thread):
    """Assigns tasks, and tries again with the same key when it is told to; every other answer is kept as a fault."""

    def __init__(self, up: Up, name: str, tasks: int, pause_s: float) -> None:
        super().__init__(daemon=True)
        self.made: list[int] = []
        self.faults: list[str] = []
        self.refusals: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._up, self._name, self._tasks, self._pause_s = up, name, tasks, pause_s

    def run(self) -> None:
        with httpx.Client(base_url=self._up.url, headers=self._up.headers, timeout=_CALL_S) as client:
            for number in range(self._tasks):
                if not self._assign(client, f"{self._name}-{number}"):
                    return
                time.sleep(self._pause_s)  # spreads the tasks over the outage

    def _assign(self, client: httpx.Client, key: str) -> bool:
        body = {"task": f"do {key}", "agent": "data_agent", "idempotency_key": key}
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                answer = client.post("/api/v2/agents/assign", json=body)
            except httpx.TransportError as error:
                self.faults.append(f"{key}: {error!r}")
                return False
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            if answer.is_success:
                self.made.append(answer.json()["data"]["task_id"])
                return True
            error = answer.json()["error"]
            if answer.status_code != 503 or not error["code"] or not error["hint"]:
                self.faults.append(f"{key}: {answer.status_code} {answer.text}")
                return False
            self.refusals[error["code"]] += 1
            time.sleep(0.1)  # as a client does that is told to try again
        self.faults.append(f"{key}: never taken")
        return False


def under_load(site: Site, server: Any, name: str, outage: Any) -> tuple[list[Load], list[Follower], list[int]]:
    """`outage` in the middle of tasks that are assigned and run; everything is checked that has to hold anyway."""
    server.script = [slow(0.5)] * (10 * TASKS)  # so that there is something to lose
    before = site.up.ask("GET", "/api/v2/pool")
    assert (before["queued"], before["running"]) == (0, 0)
    followers = [Follower(site.up) for _ in range(2)]
    loads = [Load(site.up, f"{name}{n}", TASKS // 4, 0.25) for n in range(4)]
    try:
        for follower in followers:
            follower.start()
            assert follower.ready.wait(30)
        for load in loads:
            load.start()
        time.sleep(2)  # into the middle of the load
        outage()
        for load in loads:
            load.join(2 * _PATIENCE_S)
        assert [load.faults for load in loads] == [[], [], [], []]
        made = [number for load in loads for number in load.made]
        assert len(set(made)) == TASKS
        end = time.monotonic() + _PATIENCE_S
        while (pool := site.up.ask("GET", "/api/v2/pool")) and pool["queued"] + pool["running"]:
            assert time.monotonic() < end, pool
            time.sleep(0.3)  # the pool is asked, it does not tell
        tasks = [site.up.ask("GET", f"/api/v2/tasks/{number}") for number in made]
        assert Counter(task["status"] for task in tasks) == {"completed": TASKS}
        assert len({task["rollout_id"] for task in tasks}) == TASKS
        last = until_all_seen(followers, made)
    finally:
        server.script = []
        for follower in followers:
            follower.done.set()
        for follower in followers:
            follower.join(30)
    for follower in followers:
        numbers = [each["seq"] for each in follower.seen if each["seq"] <= last]
        assert numbers == sorted(set(numbers))
        assert numbers == [each["seq"] for each in replay(site.up, numbers[0] - 1) if each["seq"] <= last]
    return loads, followers, made


def until_all_seen(followers: list[Follower], made: list[int]) -> int:
    """Every task ended once for everybody; the number of the last event that all have seen."""
    end = time.monotonic() + _PATIENCE_S
    ends = ("task_completed", "task_failed", "task_cancelled")
    while True:
        ended = [[each for each in follower.seen if each["event"] in ends] for follower in followers]
        seen = [Counter(each["task_id"] for each in events if each["task_id"] in made) for events in ended]
        if all(count == Counter(made) for count in seen):
            return min(follower.seen[-1]["seq"] for follower in followers)
        assert time.monotonic() < end, [len(count) for count in seen]
        time.sleep(0.2)  # followers are threads that only collect


def replay(up: Up, after: int) -> list[dict[str, Any]]:
    """What the table of events says, by server-sent events."""
    found: list[dict[str, Any]] = []
    with (
        httpx.Client(base_url=up.url, headers=up.headers, timeout=_CALL_S) as client,
        client.stream("GET", "/api/v2/events", params={"last_seq": after}) as stream,
        contextlib.suppress(httpx.ReadTimeout),  # the stream has no end: when it is silent, all has been said
    ):
        for line in stream.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
            elif line == ": still here":
                break
    return found


def test_redis_gone_and_back(site: tuple[Site, Any]) -> None:
    site_, server = site
    name, password = site_.new_user()
    victim, _ = site_.new_user()
    told: dict[str, Any] = {}

    def outage() -> None:
        ended = {"Authorization": f"Bearer {site_.login(name, password).json()['access_token']}"}
        later = {"Authorization": f"Bearer {site_.login(name, password).json()['access_token']}"}
        assert site_.up.client.post("/auth/logout", headers=ended).status_code == 200
        for _ in range(5):
            assert site_.login(victim, "wrong").status_code == 401
        assert site_.login(victim, PASSWORD).status_code == 429
        site_.redis.stop()
        told["away"] = site_.until_health("degraded", "cache", "down")
        for _ in range(8):
            with httpx.Client(base_url=site_.up.url, timeout=_CALL_S) as client:
                assert client.get("/auth/profile", headers=ended).status_code == 401
                assert client.get("/auth/profile", headers=later).status_code == 200
        assert site_.up.client.post("/auth/logout", headers=later).status_code == 200
        told["logins"] = [site_.login(victim, "wrong").status_code for _ in range(30)]
        assert site_.login(victim, PASSWORD).status_code == 429
        site_.redis.start()  # empty: the blacklist of before is gone
        told["back"] = site_.until_health("ok", "cache", "up")
        for _ in range(8):
            with httpx.Client(base_url=site_.up.url, timeout=_CALL_S) as client:
                assert client.get("/auth/profile", headers=ended).status_code == 401
                assert client.get("/auth/profile", headers=later).status_code == 401
        assert site_.login(victim, PASSWORD).status_code == 429

    loads, _, _ = under_load(site_, server, "redis", outage)
    assert [load.refusals for load in loads] == [{}, {}, {}, {}]
    away = told["away"]["components"]["cache"]
    assert away["since"] is not None
    assert away["reason"]
    assert told["away"]["components"]["database"] == {**told["back"]["components"]["database"]}
    assert told["back"]["components"]["cache"]["since"] is None
    assert told["logins"].count(401) <= 10  # of two workers
    assert set(told["logins"]) <= {401, 429}


def test_postgres_gone_and_back(site: tuple[Site, Any]) -> None:
    site_, server = site
    name, password = site_.new_user()
    told: dict[str, Any] = {}

    def outage() -> None:
        ended = {"Authorization": f"Bearer {site_.login(name, password).json()['access_token']}"}
        assert site_.up.client.post("/auth/logout", headers=ended).status_code == 200
        site_.postgres.stop()
        told["away"] = site_.until_health("down", "database", "down")
        with httpx.Client(base_url=site_.up.url, timeout=_CALL_S) as client:
            told["health"] = client.get("/api/v2/health").status_code
            told["ended"] = client.get("/auth/profile", headers=ended)
            told["known"] = client.get("/auth/profile", headers=site_.up.headers)
            told["login"] = client.post("/auth/login", json={"username": name, "password": password})
            told["model"] = client.get("/v1/models", headers=site_.up.headers)
        time.sleep(4)  # longer than a lease
        site_.postgres.start()
        told["back"] = site_.until_health("ok", "database", "up")

    loads, _, _ = under_load(site_, server, "postgres", outage)
    assert sum(sum(load.refusals.values()) for load in loads) > 0
    assert {code for load in loads for code in load.refusals} == {"DATABASE_UNAVAILABLE"}
    assert told["health"] == 503
    away = told["away"]["components"]["database"]
    assert away["since"] is not None
    assert away["reason"]
    assert told["back"]["components"]["database"]["since"] is None
    assert told["ended"].status_code in (401, 503)  # the blacklist knows, or nobody does
    for asked in ("known", "login", "model"):
        assert told[asked].status_code == 503, asked
        assert told[asked].json()["error"]["code"] == "DATABASE_UNAVAILABLE"
        assert told[asked].json()["error"]["hint"]
