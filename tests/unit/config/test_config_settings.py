from pathlib import Path

import pytest
from pydantic import ValidationError

from agentlightning.config import Settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in ("AGL_HOME", "AGL_STORE", "AGL_HOST", "AGL_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_need_nothing_and_stay_on_this_machine():
    settings = Settings()
    assert (settings.home, settings.host, settings.port) == (Path(".agentlightning"), "127.0.0.1", 0)


def test_everything_lives_below_home(monkeypatch):
    monkeypatch.setenv("AGL_HOME", "/data/agl")
    settings = Settings()
    assert settings.store_location == "/data/agl/store.db"
    assert settings.runs_path == Path("/data/agl/runs")
    assert settings.models_path == Path("/data/agl/models")


def test_the_store_may_be_elsewhere(monkeypatch):
    monkeypatch.setenv("AGL_HOME", "/data/agl")
    for location in ("/fast/store.db", "postgresql://db.example/agl"):
        monkeypatch.setenv("AGL_STORE", location)
        assert Settings().store_location == location
    monkeypatch.setenv("AGL_STORE", "")
    assert Settings().store_location == "/data/agl/store.db"


def test_the_environment_sets_host_and_port(monkeypatch):
    monkeypatch.setenv("AGL_HOST", "0.0.0.0")
    monkeypatch.setenv("AGL_PORT", "8123")
    assert (Settings().host, Settings().port) == ("0.0.0.0", 8123)


def test_an_argument_beats_the_environment(monkeypatch):
    monkeypatch.setenv("AGL_PORT", "8123")
    assert Settings(port=1).port == 1


def test_a_port_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("AGL_PORT", "http")
    with pytest.raises(ValidationError, match="port"):
        Settings()
