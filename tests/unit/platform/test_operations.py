"""System status, numbers, and settings that are changed while the platform runs."""

import asyncio
import time
from typing import Any

import pytest

from agentlightning.platform.system import config as module
from agentlightning.platform.system.config import CACHE_KEY, ConfigService, RuntimeConfig
from tests.unit.platform.site import Site, error_code

BASE = "/api/v2/system"


@pytest.fixture(scope="module")
def admin(site: Site) -> dict[str, str]:
    return site.headers("admin")


def get(site: Site, path: str, headers: dict[str, str]) -> Any:
    answer = site.client.get(BASE + path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def put(site: Site, headers: dict[str, str], version: int, **config: Any) -> Any:
    return site.client.put(f"{BASE}/config", json={"version": version, "config": config}, headers=headers)


def test_status_tells_of_every_part_and_of_this_process(site: Site):
    found = get(site, "/status", site.headers("developer"))
    assert found["status"] == "ok"
    assert found["components"]["database"]["state"] == "up"
    assert found["process"]["uptime_s"] > 0
    assert 0 < found["resources"]["memory_percent"] < 100
    assert found["resources"]["process_memory_mb"] > 10
    assert [model["name"] for model in found["models"]] == found["targets"] == ["nano"]


def test_stats_count_what_there_is(site: Site, admin: dict[str, str]):
    before = get(site, "/stats", admin)
    site.add_user()

    async def one_more() -> None:
        await site.platform.store.start_rollout("task")

    site.run(one_more())
    after = get(site, "/stats", admin)
    assert after["platform"]["users"]["total"] == before["platform"]["users"]["total"] + 1
    assert after["store"]["total_rollouts"] == before["store"]["total_rollouts"] + 1
    assert set(after["platform"]) >= {"users", "agents", "knowledge_items"}


def test_settings_change_while_it_runs_and_go_back(site: Site, admin: dict[str, str]):
    start = get(site, "/config", admin)
    changed = put(site, admin, start["version"], requests_per_minute=77_777, default_model="nano").json()["data"]
    assert changed["version"] == start["version"] + 1
    assert changed["in_force"]["requests_per_minute"] == 77_777
    answer = site.client.get(f"{BASE}/config", headers=admin)
    assert answer.headers["ratelimit-limit"] == "77777"
    stale = put(site, admin, start["version"], requests_per_minute=1)
    assert (stale.status_code, error_code(stale)) == (409, "CONFLICT")
    assert stale.json()["error"]["details"]["version"] == changed["version"]
    back = put(site, admin, changed["version"]).json()["data"]
    assert back["in_force"] == start["in_force"]
    entries = site.client.get("/api/v2/audit?action=system.config", headers=admin).json()["data"]["entries"]
    assert entries[1]["details"]["config"] == {"requests_per_minute": 77_777, "default_model": "nano"}


@pytest.mark.parametrize(
    "config",
    [{"requests_per_minute": 0}, {"requests_per_minute": "9"}, {"default_model": ""}, {"jwt_secrets": "x"}, {"x": 1}],
)
def test_what_cannot_be_set_is_refused(site: Site, admin: dict[str, str], config: dict[str, Any]):
    assert put(site, admin, 0, **config).status_code == 422


def test_only_admins_change_it(site: Site):
    assert put(site, site.headers("developer"), 0).status_code == 403
    assert site.client.get(f"{BASE}/stats", headers=site.headers("user")).status_code == 403


def test_another_worker_takes_it_over(site: Site, admin: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """It looks at the cache they share, or else at the database; an old entry of the cache does not win."""
    monkeypatch.setattr(module, "_LOOK_S", 0.02)
    platform = site.platform
    version = get(site, "/config", admin)["version"]

    async def other_worker() -> int:
        settings = platform.settings.model_copy()
        other = ConfigService(settings, platform.database, platform.cache)
        async with other.followed():
            assert other.version == version
            changed = asyncio.to_thread(put, site, admin, version, requests_per_minute=88_888)
            assert (await changed).status_code == 200
            deadline = time.monotonic() + 120
            while other.version == version and time.monotonic() < deadline:  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.02)
            assert settings.requests_per_minute == 88_888
            await platform.cache.set(CACHE_KEY, b'{"version": 1, "config": {"requests_per_minute": 5}}', 60)
            await asyncio.sleep(0.1)
            assert settings.requests_per_minute == 88_888
            await platform.cache.delete(CACHE_KEY)
        return other.version

    final = asyncio.run_coroutine_threadsafe(other_worker(), site._loop).result(30)  # pyright: ignore[reportPrivateUsage]
    assert put(site, admin, final).status_code == 200


def test_it_is_there_again_after_a_restart(make_site: Any):
    first = make_site()
    headers = first.headers("admin")
    assert put(first, headers, 0, records_per_minute=4321).status_code == 200
    again = ConfigService(first.platform.settings.model_copy(), first.platform.database, first.platform.cache)
    first.run(again.load())
    assert (again.version, again.config) == (1, RuntimeConfig(records_per_minute=4321))
