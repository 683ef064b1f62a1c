"""A platform that really runs, a model's server whose answers the test writes, and clients of three roles."""

from collections.abc import Iterator

import pytest

from agentlightning.client import Platform
from agentlightning.platform.auth import passwords
from tests.unit.gateway.scripted import ScriptedOpenAIServer
from tests.unit.platform.models import scripted_server
from tests.unit.platform.site import PASSWORD, Site, settings_for
from tests.unit.platform.tasks.things import add_agents, models


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedOpenAIServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: ScriptedOpenAIServer) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "ROUNDS", 4)
        settings = settings_for(tmp_path_factory.mktemp("home"), default_model="m")
        found = Site(settings, models=models(server)).start()
        add_agents(found)
        yield found
        found.stop()


@pytest.fixture
def admin(site: Site) -> Iterator[Platform]:
    with Platform(site.url, username=site.add_user("admin"), password=PASSWORD) as platform:
        yield platform


@pytest.fixture
def developer(site: Site) -> Iterator[Platform]:
    with Platform(site.url, username=site.add_user("developer"), password=PASSWORD) as platform:
        yield platform


@pytest.fixture
def user(site: Site) -> Iterator[Platform]:
    with Platform(site.url, username=site.add_user(), password=PASSWORD) as platform:
        yield platform
