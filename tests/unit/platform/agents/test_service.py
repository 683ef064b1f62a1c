"""Agents over both databases: history, locks, what comes with the program and what becomes of it."""

import asyncio

import pytest

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.platform.agents import seeding, shipped
from agentlightning.platform.agents.models import Agent
from agentlightning.platform.agents.service import (
    AgentNotFoundError,
    AgentService,
    DefinitionUnreadableError,
    PreconditionError,
    VersionConflictError,
)
from agentlightning.platform.cache import MemoryCache
from agentlightning.platform.database import Database
from agentlightning.platform.migrations import migrate
from tests.unit.platform.agents.things import definition


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'platform.db'}"
    else:
        url = request.getfixturevalue("fresh_postgres_url")
    migrate(url)
    database = Database(url)
    yield database
    await database.close()


async def test_an_agent_from_its_first_version_to_its_return(database):
    agents = AgentService(database, MemoryCache())
    made = await agents.create(definition())
    assert (made.version, made.status, made.created_by) == (1, "active", "system")
    with pytest.raises(ConflictError):
        await agents.create(definition())
    changed = await agents.change("sum_agent", definition(description="Adds better."), expected=1)
    assert (changed.id, changed.version) == (made.id, 2)
    with pytest.raises(VersionConflictError) as caught:
        await agents.change(made.id, definition(description="Too late."), expected=1)
    assert (caught.value.status, caught.value.details["version"]) == (409, 2)
    with pytest.raises(PreconditionError):
        await agents.change(made.id, definition(), expected=1, precondition=True)
    same = await agents.change(made.id, definition(description="Adds better."))
    assert same.version == 2  # nothing changed
    assert (await agents.change(made.id, status="paused")).status == "paused"
    assert await agents.for_capability("arithmetic") == []
    restarted = await agents.restart(made.id)
    assert (restarted.generation, restarted.status) == (2, "active")
    back = await agents.roll_back(str(made.id), 1)
    assert back.version == 3
    assert agents.definition_of(back) == definition()
    await agents.delete("sum_agent")
    with pytest.raises(AgentNotFoundError):
        await agents.find("sum_agent")
    _, versions = await agents.versions("sum_agent", None, 10)
    assert [each.version for each in versions] == [3, 2, 1]
    assert (await agents.version("sum_agent", 2))[1].config["description"] == "Adds better."
    with pytest.raises(NotFoundError):
        await agents.roll_back("sum_agent", 9)
    revived = await agents.roll_back("sum_agent", 2)
    assert (revived.status, revived.version, revived.id) == ("active", 4, made.id)
    assert revived.created_at.tzinfo is not None
    await agents.delete("sum_agent")
    assert (await agents.create(definition())).version == 5


async def test_agents_are_found_by_what_they_can_do(database):
    agents = AgentService(database, MemoryCache())
    await agents.create(definition("sum_agent"))
    await agents.create(definition("count_agent", capabilities=["counting", "arithmetic"]))
    await agents.create(definition("word_agent", type="text", capabilities=["counting"]))

    def names(found: list[Agent]) -> list[str]:
        return [agent.name for agent in found]

    assert names(await agents.for_capability("counting", "arithmetic")) == ["count_agent", "sum_agent", "word_agent"]
    assert names(await agents.for_capability("nothing")) == names(await agents.for_capability()) == []
    assert names(await agents.for_type("math")) == names(await agents.for_type("math_agent"))
    assert names(await agents.for_type("word_agent")) == ["word_agent"]
    assert names(await agents.page(capability="counting")) == ["count_agent", "word_agent"]
    assert names(await agents.page(type="text", status="active")) == ["word_agent"]
    assert names(await agents.page(after=1, limit=1)) == ["count_agent"]
    await agents.change("word_agent", definition("word_agent", capabilities=["spelling"]))
    assert names(await agents.for_capability("counting")) == ["count_agent"]
    with pytest.raises(ConflictError):
        await agents.change("word_agent", definition("sum_agent"))
    with pytest.raises(BadInputError):
        await agents.change("word_agent")
    with pytest.raises(BadInputError):
        await agents.change("word_agent", status="deleted")


async def test_of_many_changes_from_one_version_one_wins(database):
    agents = AgentService(database, MemoryCache())
    await agents.create(definition())
    changes = (agents.change("sum_agent", definition(description=f"{n}"), expected=1) for n in range(8))
    done = await asyncio.gather(*changes, return_exceptions=True)
    assert sum(isinstance(each, Agent) for each in done) == 1
    assert sum(isinstance(each, VersionConflictError) for each in done) == 7
    assert (await agents.find("sum_agent")).version == 2


async def test_what_is_kept_and_no_definition_is_said(database):
    agents = AgentService(database, MemoryCache())
    agent = await agents.create(definition())
    agent.config = {**agent.config, "from_the_future": 1}
    with pytest.raises(DefinitionUnreadableError):
        agents.definition_of(agent)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two shipped agents of this test's own."""
    folder = tmp_path / "definitions"
    folder.mkdir()
    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.setattr(shipped, "shipped_names", lambda: ("first_agent", "second_agent"))

    def write(name: str, description: str) -> None:
        text = f'type = "math"\ndescription = "{description}"\nrole = "adder"\nsystem_prompt = "Add."\n'
        (folder / f"{name}.toml").write_text(text + f'capabilities = ["{name}"]\n', encoding="utf-8")

    write("first_agent", "Old.")
    write("second_agent", "Old.")
    return write


async def test_shipped_agents_follow_updates_until_somebody_changes_them(database, folder):
    agents = AgentService(database, MemoryCache())
    assert await asyncio.gather(seeding.seed(database), seeding.seed(database)) in (
        [["first_agent", "second_agent"], []],
        [[], ["first_agent", "second_agent"]],
    )
    assert await seeding.seed(database) == []
    await agents.change("first_agent", definition("first_agent", description="Mine."))
    folder("first_agent", "New.")
    folder("second_agent", "New.")
    assert await seeding.seed(database) == ["second_agent"]
    assert (await agents.find("first_agent")).description == "Mine."
    updated = await agents.find("second_agent")
    assert (updated.description, updated.version) == ("New.", 2)
    await agents.delete("second_agent")
    folder("second_agent", "Newer.")
    assert await seeding.seed(database) == []
    await agents.roll_back("second_agent", 1)  # somebody's wish: it stays
    assert await seeding.seed(database) == []
    assert (await agents.find("second_agent")).description == "Old."
