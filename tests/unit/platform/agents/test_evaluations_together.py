"""Two processes and one agent: of the evaluations that they begin at the same moment, the database lets one in."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import DateTime, bindparam, text

from agentlightning.platform.agents import repository
from agentlightning.platform.agents.models import AgentEvaluation
from agentlightning.platform.columns import now
from agentlightning.platform.database import sync_engine
from agentlightning.platform.migrations import head, migrate
from tests.unit.platform.agents.calls import AGENTS, ScriptedExecutor
from tests.unit.platform.agents.things import plain
from tests.unit.platform.site import error_code

_AGENT = text(
    "INSERT INTO agents (name, type, config, status, created_at, updated_at, performance_metrics, version, generation,"
    " created_by) VALUES (:name, 't', '{}', 'active', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, '{}', 1, 1, 'somebody')"
)
_EVALUATION = text(
    "INSERT INTO agent_evaluations (agent_id, version, split, status, started_at, deadline_at, cases, results,"
    " created_by, lease_until, attempts)"
    " VALUES (:agent, 1, 'all', 'running', CURRENT_TIMESTAMP, :later, 1, '[]', 'somebody', :lease, 1)"
).bindparams(bindparam("later", type_=DateTime(timezone=True)), bindparam("lease", type_=DateTime(timezone=True)))


@pytest.fixture(scope="module")
def sites(make_site):
    """Two servers over one database, as two workers are; what they run takes until they stop."""
    first = make_site()
    second = make_site(DATABASE_URL=first.settings.location)
    for each in (first, second):
        each.platform.evaluations.executor = ScriptedExecutor(lambda _: asyncio.sleep(3600))
    return first, second


def begin(site, headers, name):
    return site.client.post(f"{AGENTS}/{name}/evaluate", headers=headers, json={})


def test_of_two_processes_that_begin_at_once_one_does(sites, monkeypatch):
    async def both_look_before_either_begins(*_):
        return False

    monkeypatch.setattr(repository, "is_being_evaluated", both_look_before_either_begins)
    ways = [(site, site.headers("developer")) for site in sites]
    together = threading.Barrier(2)

    def one(way, name):
        together.wait(100)
        return begin(*way, name)

    with ThreadPoolExecutor(2) as threads:
        for turn in range(3):
            name = f"wanted{turn}_agent"
            made = ways[0][0].client.post(AGENTS, headers=ways[0][1], json={"definition": plain(name)})
            assert made.status_code == 201, made.text
            won, lost = sorted(threads.map(one, ways, [name] * 2), key=lambda answer: answer.status_code)
            assert (won.status_code, lost.status_code) == (202, 409), (won.text, lost.text)
            assert error_code(lost) == "CONFLICT"
            listed = ways[0][0].client.get(f"{AGENTS}/{name}/evaluations", headers=ways[0][1]).json()["data"]
            assert [each["id"] for each in listed["evaluations"]] == [won.json()["data"]["id"]]


def test_what_nobody_goes_on_with_does_not_stop_the_next(sites):
    first, second = sites
    headers = first.headers("developer")
    name = "left_agent"
    assert first.client.post(AGENTS, headers=headers, json={"definition": plain(name)}).status_code == 201
    agent = first.run(first.platform.agents.find(name))
    early = now() - timedelta(hours=1)

    async def left() -> int:
        async with first.platform.database.write() as session:
            row = _running(agent.id, started_at=early, deadline_at=early, lease_until=None)
            session.add(row)
            await session.flush()
            return row.id

    number = first.run(left())
    assert begin(second, second.headers("developer"), name).status_code == 202
    assert first.client.get(f"{AGENTS}/{name}/evaluations/{number}", headers=headers).json()["data"]["status"] == (
        "interrupted"
    )
    assert begin(first, headers, name).status_code == 409


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_of_those_that_ran_together_before_the_newest_goes_on(kind, request, tmp_path):
    url = f"sqlite:///{tmp_path / 'platform.db'}"
    if kind == "postgres":
        url = request.getfixturevalue("fresh_postgres_url")
    migrate(url, "0008")
    later = now() + timedelta(hours=1)
    leases = [(1, later), (1, later), (1, None), (2, later), (2, None)]
    engine = sync_engine(url)
    with engine.begin() as connection:
        for name in ("one_agent", "other_agent"):
            connection.execute(_AGENT, {"name": name})
        connection.execute(_EVALUATION, [{"agent": agent, "later": later, "lease": at} for agent, at in leases])
    assert migrate(url) == ("0008", head())
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT status, finished_at IS NULL FROM agent_evaluations ORDER BY id")).all()
    engine.dispose()
    gone, left = ("interrupted", False), ("running", True)
    assert [(status, bool(no_end)) for status, no_end in kept] == [gone, left, gone, left, gone]


def _running(agent_id: int, **more) -> AgentEvaluation:
    given = {"version": 1, "split": "all", "status": "running", "cases": 1, "results": [], "created_by": "somebody"}
    return AgentEvaluation(agent_id=agent_id, **given, **more)
