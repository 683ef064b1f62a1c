"""Keys that are kept encrypted: used by what reads them from the environment, and told to nobody."""

import logging
import os
import sqlite3
import time

import pytest
from sqlalchemy import text

from agentlightning.cli.platform_parts import platform_parts
from agentlightning.kit.bridge import run_sync
from agentlightning.platform.app import create_app
from agentlightning.platform.crypto import VaultKeyError
from agentlightning.platform.migrations import migrate
from agentlightning.platform.system import live
from agentlightning.platform.system.stored import supply
from agentlightning.tools.settings import load_tool_settings
from tests.unit.platform.models import scripted_server
from tests.unit.platform.site import error_code, settings_for
from tests.unit.platform.tasks.things import Caller, models

VALUE = "sk-live-of-the-provider-1234567890 ü\nsecond line"
OLD, NEW = "o1d" + "f7c9a2e4" * 8, "n3w" + "b8d0e6a1" * 8
NAME = "SOMETHING_API_KEY"


@pytest.fixture(autouse=True)
def as_before(monkeypatch, tmp_path):
    """Variables that a test supplies are gone after it."""
    for name in (NAME, "BRAVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield
    supply(settings_for(tmp_path / "empty"))
    assert NAME not in os.environ


def test_kept_encrypted_and_told_to_nobody(site, caplog):
    caplog.set_level(logging.DEBUG)
    admin = Caller(site, "admin")
    url = "/api/v2/system/secrets"
    kept = site.client.put(f"{url}/{NAME}", headers=admin.headers, json={"value": VALUE})
    assert kept.status_code == 200, kept.text
    again = site.client.put(f"{url}/{NAME}", headers=admin.headers, json={"value": VALUE + "!"})
    listed = admin.get(url)
    (told,) = listed.json()["data"]["secrets"]
    assert (told["name"], told["updated_by"], told["is_readable"]) == (NAME, admin.name, True)
    audit = admin.get("/api/v2/audit", params={"action": "secret.set"})
    assert [entry["target"] for entry in audit.json()["data"]["entries"]] == [NAME, NAME]

    async def sealed() -> str:
        async with site.platform.database.read() as session:
            return (await session.execute(text("SELECT sealed FROM stored_secrets"))).scalar_one()

    first = site.run(sealed())
    for said in (kept.text, again.text, listed.text, audit.text, caplog.text, first):
        assert "sk-live" not in said
    assert kept.json()["message"] == "Kept. It is used from the platform's next start on."
    assert supply(site.settings) == [NAME]
    assert os.environ[NAME] == VALUE + "!"
    assert site.client.delete(f"{url}/{NAME}", headers=admin.headers).status_code == 200
    assert error_code(site.client.delete(f"{url}/{NAME}", headers=admin.headers)) == "NOT_FOUND"
    assert supply(site.settings) == []
    assert NAME not in os.environ


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("LD_PRELOAD_KEY", {"value": "x"}),
        ("PYTHONPATH", {"value": "x"}),
        ("AGL_SECRET_KEY", {"value": "x"}),
        ("PATH", {"value": "x"}),
        ("openai_api_key", {"value": "x"}),
        (NAME, {"value": ""}),
        (NAME, {"value": "se\0cret"}),
        (NAME, {"value": "secret" * 10_000}),
        (NAME, {"value": "secret", "sealed": "v1.x"}),
        (NAME, {"value": {"secret": 1}}),
    ],
)
def test_what_is_no_secret_is_refused_and_not_repeated(site, name, body):
    admin = Caller(site, "admin")
    answer = site.client.put(f"/api/v2/system/secrets/{name}", headers=admin.headers, json=body)
    assert answer.status_code == 422
    assert "secret" not in answer.json()["error"]["message"].replace("A secret has", "").replace("of a secret", "")
    assert "cretsec" not in answer.text


def test_only_admins(site):
    developer = Caller(site, "developer")
    assert error_code(developer.get("/api/v2/system/secrets")) == "FORBIDDEN"


def test_models_get_a_changed_key_without_a_restart(make_site, monkeypatch):
    name, url = "OPENAI_API_KEY", "/api/v2/system/secrets/OPENAI_API_KEY"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(live, "_LOOK_S", 0.2)
    with scripted_server() as server:
        first = make_site(models=models(server), secret_key=OLD)
        second = make_site(models=models(server), secret_key=OLD, DATABASE_URL=first.settings.location)
        admin, other = Caller(first, "admin"), Caller(second, "admin")

        def key_of(caller: Caller) -> str | None:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            assert caller.post("/v1/chat/completions", body).status_code == 200
            return server.headers[-1].get("authorization")

        def put(value: str) -> str:
            answer = first.client.put(url, headers=admin.headers, json={"value": value})
            assert answer.status_code == 200, answer.text
            return answer.json()["message"]

        assert key_of(admin) is key_of(other) is None
        for value in ("sk-first", "sk-second"):
            assert "use it now" in put(value)
            assert key_of(admin) == f"Bearer {value}"
            end = time.monotonic() + 120
            while key_of(other) != f"Bearer {value}":
                assert time.monotonic() < end
        gone = first.client.delete(url, headers=admin.headers)
        assert (gone.status_code, key_of(admin)) == (200, None)
        monkeypatch.setenv(name, "sk-given")
        assert "which wins" in put("sk-third")


def test_the_environment_wins(tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    migrate(settings.location)
    _set(settings, "BRAVE_API_KEY", "stored")
    create_app(settings)
    assert os.environ["BRAVE_API_KEY"] == "stored"
    assert load_tool_settings(environment={**os.environ, "AGL_HOME": str(tmp_path)}).search.backend == "brave"
    monkeypatch.setenv("BRAVE_API_KEY", "given")
    create_app(settings)
    assert os.environ["BRAVE_API_KEY"] == "given"


def test_a_new_key_takes_over_what_the_old_one_keeps(tmp_path):
    first = settings_for(tmp_path, secret_key=OLD)
    migrate(first.location)
    assert supply(first) == []
    for name in (NAME, "BRAVE_API_KEY"):
        _set(first, name, f"value of {name}")
    wrong = settings_for(tmp_path, secret_key=NEW)
    with pytest.raises(VaultKeyError, match="agl platform secrets rotate") as caught:
        create_app(wrong)
    assert "value of" not in str(caught.value)
    with pytest.raises(VaultKeyError):
        _rotate(wrong)
    with pytest.raises(Exception, match="another key"):
        _set(wrong, NAME, "mixed")  # half of them under each key would be worse
    both = settings_for(tmp_path, secret_key=NEW, old_secret_keys=OLD)
    assert supply(both) == ["BRAVE_API_KEY", NAME]
    assert _rotate(both) == 2
    assert _rotate(both) == 0
    assert supply(wrong) == ["BRAVE_API_KEY", NAME]
    assert os.environ[NAME] == f"value of {NAME}"
    with pytest.raises(VaultKeyError):
        supply(first)
    moved = "UPDATE stored_secrets SET sealed = (SELECT sealed FROM stored_secrets WHERE name = 'BRAVE_API_KEY')"
    with sqlite3.connect(tmp_path / "platform.db") as connection:
        connection.execute(moved)
    connection.close()
    with pytest.raises(Exception, match="cannot be decrypted"):
        supply(wrong)


def _set(settings, name, value):
    async def run() -> None:
        async with platform_parts(settings) as platform:
            await platform.secrets.set(name, value)

    run_sync(run())


def _rotate(settings) -> int:
    async def run() -> int:
        async with platform_parts(settings) as platform:
            return await platform.secrets.rotate()

    return run_sync(run())
