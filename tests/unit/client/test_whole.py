"""The client reaches the whole API: each call that is described is made by a method, on a platform that really runs."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentlightning.client import Platform, TimedOutError, reports
from agentlightning.kit.errors import BadInputError, ConflictError, ForbiddenError, NotFoundError
from tests.unit.platform.agents.calls import DRAFT
from tests.unit.platform.site import PASSWORD, Site
from tests.unit.platform.tasks.things import definition, said
from tests.unit.platform.test_openapi import finished

LEFT_OUT = {
    ("GET", "/agents"): "another path of GET /api/v2/agents",
    ("GET", "/health"): "another path of GET /api/v2/health",
    ("GET", "/metrics"): "Prometheus' own text, which its scrapers read",
    ("POST", "/agents/execute"): "another path of POST /api/v2/agents/execute",
    ("POST", "/api/v2/agents/execute"): "tasks.run assigns and waits, which outlives a connection that is cut",
    ("GET", "/api/v1/tasks/{task_id}"): "another path of GET /api/v2/tasks/{task_id}",
    ("POST", "/api/v2/ws-ticket"): "for browsers, which can send no headers with a websocket; tasks.events follows",
}
"""What no method calls, and why."""

CASES = [
    {"input": f"Word {n}?", "expected": "hello there", "reference": "hello there", "split": split}
    for n, split in enumerate(["train", "train", "held_out", "held_out"])
]


class Noted(httpx.HTTPTransport):
    """Sends as always, and notes what was asked for and what came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, int]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        self.seen.append((request.method, request.url.path, answer.status_code))
        return answer


@pytest.fixture(scope="module", autouse=True)
def tested_agent(site: Site) -> None:
    tested = definition("tested_agent", evaluator={"kind": "exact"}, evaluation=CASES)
    site.run(site.platform.agents.create(tested))


def test_an_agent_is_evaluated_measured_and_decided_on(developer: Platform):
    begun = developer.agents.evaluate("tested_agent", split="held_out", limit=1)
    assert (begun.agent, begun.split, begun.cases) == ("tested_agent", "held_out", 1)
    ended = developer.agents.wait_evaluation("tested_agent", begun.id, timeout_s=60)
    assert (ended.status, ended.score, ended.passed) == ("completed", 1.0, 1)
    assert ended.interval is not None
    assert ended.interval[0] < 1.0 <= ended.interval[1]
    assert ended.results[0]["passed"] is True
    listed = next(found for found in developer.agents.evaluations("tested_agent") if found.id == begun.id)
    assert (listed.score, listed.results) == (1.0, [])
    measured = developer.agents.metrics("tested_agent")
    assert [found.id for found in measured.evaluations] == [begun.id]
    assert measured.learning["algorithm"]
    (decision,) = developer.experiments.auto_trigger("tested_agent")
    assert (decision.agent, decision.decision, decision.experiment_id) == ("tested_agent", "wait", None)
    assert decision.score == 1.0
    assert "enough" in decision.reason
    stands = {found.agent: found for found in developer.experiments.auto_status().agents}
    assert stands["tested_agent"].reason == decision.reason
    kind = developer.experiments.auto_trigger(task_type="customer_service")
    assert 0 < len(kind) < len(stands)
    with pytest.raises(NotFoundError):
        developer.agents.metrics("nobody_agent")
    with pytest.raises(NotFoundError):
        developer.agents.evaluation("tested_agent", 10**9)


def test_what_runs_longer_than_one_waits_goes_on(developer: Platform):
    def looking() -> reports.Import:
        return reports.Import(status="running", report={})

    with pytest.raises(TimedOutError, match="Import 1 has not ended"):
        developer.knowledge.until(looking, lambda found: found.is_over, "Import 1", 0.0)


def test_an_experiment_is_forced(developer: Platform):
    (decision,) = developer.experiments.auto_trigger("sql_agent", force=True, config={"budget_calls": 50})
    assert decision.experiment_id is not None
    assert [found.agent_id for found in developer.experiments.list(agent="sql_agent")] == [decision.agent_id]
    assert developer.experiments.stop(decision.experiment_id).config["budget_calls"] == 50
    assert developer.experiments.wait(decision.experiment_id, timeout_s=60).is_over


def test_versions_are_read_and_gone_back_to(developer: Platform):
    before = developer.agents.get("email_agent")
    changed = developer.agents.update("email_agent", version=before.version, system_prompt="Write letters.")
    assert [(found.version, found.current) for found in developer.agents.versions("email_agent")][:2] == [
        (changed.version, True),
        (before.version, False),
    ]
    assert developer.agents.version("email_agent", before.version).definition == before.definition
    with pytest.raises(ConflictError):
        developer.agents.roll_back("email_agent", before.version, version=before.version)
    back = developer.agents.roll_back("email_agent", shipped=True, version=changed.version)
    assert (back.version, back.definition) == (changed.version + 1, before.definition)
    stands = developer.agents.status()
    assert stands.total == len(stands.agents) == sum(stands.by_type.values())
    assert next(found for found in stands.agents if found.name == "email_agent").version == back.version


def test_an_agent_is_designed(developer: Platform, server: Any):
    server.script[:] = [said(json.dumps(DRAFT)), said("Answer: 00:00")]
    drafted = developer.agents.design("Says when the tide is high.")
    assert (drafted.definition["name"], drafted.saved, drafted.agent) == ("tide_agent", False, None)
    assert drafted.dry_run
    server.script[:] = [said(json.dumps(DRAFT)), said("Answer: 00:00")]
    kept = developer.agents.design("Says when the tide is high.", name="ebb_agent", save=True)
    assert kept.agent is not None
    assert developer.agents.get("ebb_agent").definition == kept.agent.definition
    with pytest.raises(ConflictError):
        developer.agents.design("Says when the tide is high.", name="ebb_agent", save=True)
    server.script[:] = [said("I had rather not.")] * 9
    with pytest.raises(BadInputError) as caught:
        developer.agents.design("Says when the tide is high.")
    assert caught.value.code == "DESIGN_FAILED"
    server.script.clear()


def test_knowledge_is_imported(developer: Platform, tmp_path: Path):
    texts = {"bees.md": "# Bees\n\nBees dance to tell each other where the clover is.", "odd.xyz": "?"}
    done = developer.knowledge.import_documents(texts, category="insects", tags=["wings"])
    assert (done.is_over, done.report["items"], len(done.report["problems"])) == (True, 1, 1)
    (item,) = developer.knowledge.list(category="insects", tags=["wings"])
    developer.knowledge.update(item.id, version=item.version, title="Honey bees")
    assert [(old.version, old.title) for old in developer.knowledge.versions(item.id)][-1] == (1, item.title)
    path = tmp_path / "wasps.html"
    path.write_text("<title>Wasps</title><p>Wasps build nests out of wood that they have chewed.</p>")
    assert developer.knowledge.import_file(path, category="insects").report["items"] == 1
    assert developer.knowledge.import_file(str(path), category="insects").report["unchanged"] == 1
    path.write_bytes(b"")
    with pytest.raises(BadInputError) as caught:
        developer.knowledge.import_file(path)
    assert caught.value.code == "DOCUMENT_UNREADABLE"
    with pytest.raises(OSError, match="absent"):
        developer.knowledge.import_file(tmp_path / "absent.md")
    begun = developer.knowledge.import_packages(["typer"])
    assert begun.id is not None
    assert developer.knowledge.wait_import(begun.id, timeout_s=200).report["items"] > 10
    with pytest.raises(NotFoundError):
        developer.knowledge.import_packages(["no-such-thing"])


def test_the_system_is_looked_at_and_configured(admin: Platform, developer: Platform):
    status = developer.system.status()
    assert (status.status, status.components["database"].state) == ("ok", "up")
    assert status.process.uptime_s > 0
    assert status.resources.process_memory_mb > 1
    assert developer.system.stats().platform["users"].total >= 2
    assert developer.system.pool().size > 0
    before = admin.system.config()
    changed = admin.system.set_config(version=before.version, requests_per_minute=77_777)
    assert changed.in_force["requests_per_minute"] == changed.config["requests_per_minute"] == 77_777
    with pytest.raises(ConflictError):
        admin.system.set_config(version=before.version)
    with pytest.raises(BadInputError):
        admin.system.set_config(version=changed.version, no_such_thing=1)
    with pytest.raises(ForbiddenError):
        developer.system.set_config(version=changed.version)
    assert admin.system.set_config(version=changed.version).config["requests_per_minute"] is None
    kept = admin.system.set_secret("OUR_OWN_KEY", "nobody sees this")
    assert kept.is_readable
    assert "OUR_OWN_KEY" in [secret.name for secret in admin.system.secrets()]
    admin.system.delete_secret("OUR_OWN_KEY")
    assert "OUR_OWN_KEY" not in [secret.name for secret in admin.system.secrets()]


SHAPES = {
    "StatusOut": "AgentState",
    "StatusOverview": "AgentsStatus",
    "agentlightning__platform__agents__schemas__VersionOut": "AgentVersion",
    "FullVersionOut": "FullAgentVersion",
    "EvaluationOut": "Evaluation",
    "MetricsOut": "AgentMetrics",
    "DesignOut": "Design",
    "Assessment": "Decision",
    "AutoStatusOut": "AutoStatus",
    "agentlightning__platform__knowledge__schemas__VersionOut": "ItemVersion",
    "ImportOut": "Import",
    "Component": "Component",
    "Process": "Process",
    "Resources": "Resources",
    "ModelState": "ModelState",
    "SystemStatus": "SystemStatus",
    "Counts": "Counts",
    "SystemStats": "SystemStats",
    "ConfigOut": "SystemConfig",
    "SecretOut": "Secret",
    "PoolOut": "Pool",
}


@pytest.mark.parametrize("described", SHAPES)
def test_the_shapes_are_those_of_the_api(site: Site, described: str):
    schema = site.app.openapi()["components"]["schemas"][described]
    assert set(getattr(reports, SHAPES[described]).model_fields) == set(schema["properties"])


def test_every_call_that_is_described_is_made_by_a_method(site: Site, server: Any, tmp_path: Path):
    server.script.clear()
    noted = Noted()
    with Platform(site.url, username=site.add_user("admin"), password=PASSWORD, http=noted) as platform:
        _walk(platform, site, server, tmp_path)
    described = {(method.upper(), path) for path, calls in site.app.openapi()["paths"].items() for method in calls}
    reached: set[tuple[str, str]] = set()
    for method, path, status in noted.seen:
        fits = [route for verb, route in described if verb == method and re.fullmatch(_as_pattern(route), path)]
        assert fits, f"{method} {path} is not described"
        assert status < 400, f"{method} {path} answered {status}"
        reached.add((method, min(fits, key=lambda route: route.count("{"))))
    assert reached & set(LEFT_OUT) == set()
    assert reached | set(LEFT_OUT) == described


def _as_pattern(route: str) -> str:
    return re.sub(r"\{[^}]*\}", "[^/]+", route)


def _walk(platform: Platform, site: Site, server: Any, folder: Path) -> None:
    """Every method, once so that it works."""
    platform.profile()
    platform.health()
    next(platform.audit())
    _walk_users(platform)
    _walk_agents(platform, server)
    _walk_tasks(platform, site)
    _walk_knowledge(platform, folder)
    _walk_experiments(platform, site)
    _walk_memory(platform)
    _walk_system(platform)
    platform._transport._good_until = 0.0  # pyright: ignore[reportPrivateUsage]
    platform.profile()  # renews the login
    name = platform.profile().username
    platform.change_password(PASSWORD, "five other unrelated words")
    platform.login(name, "five other unrelated words")


def _walk_users(platform: Platform) -> None:
    made = platform.users.create("walker")
    platform.users.get(made.user_id)
    platform.users.update(made.user_id, disabled=True)
    assert made.user_id in [user.user_id for user in platform.users]
    platform.users.delete(made.user_id)
    key = platform.api_keys.create("walker")
    assert list(platform.api_keys)
    platform.api_keys.delete(key.id)


def _walk_agents(platform: Platform, server: Any) -> None:
    assert list(platform.agents)
    platform.agents.status()
    platform.agents.create({**definition("walking_agent").model_dump(mode="json"), "evaluation": CASES})
    one = platform.agents.get("walking_agent")
    platform.agents.update(one.name, version=one.version, description="Walks.")
    platform.agents.roll_back(one.name, one.version)
    platform.agents.version(one.name, 1)
    assert list(platform.agents.versions(one.name))
    platform.agents.pause(one.name)
    platform.agents.restart(one.name)
    found = platform.agents.evaluate(one.name, limit=1)
    platform.agents.wait_evaluation(one.name, found.id, timeout_s=60)
    assert list(platform.agents.evaluations(one.name))
    platform.agents.metrics(one.name)
    platform.agents.delete(one.name)
    server.script[:] = [said(json.dumps(DRAFT)), said("Answer: 00:00")]
    platform.agents.design("Says when the tide is high.")


def _walk_tasks(platform: Platform, site: Site) -> None:
    done = platform.tasks.run("Say hello", agent="data_agent", session_id="a walk", wait_s=60)
    platform.tasks.feedback(done.task_id, score=0.5)
    assert platform.tasks.trace(done.task_id)
    assert list(platform.tasks)
    assert next(platform.tasks.events(last_seq=0))
    site.run(site.platform.tasks.pool.stop())
    platform.tasks.cancel(platform.tasks.assign("Wait", agent="data_agent").task_id)

    async def go_on() -> None:
        site.platform.tasks.pool.start()

    site.run(go_on())


def _walk_knowledge(platform: Platform, folder: Path) -> None:
    made = platform.knowledge.create("Walks", "One foot after the other, and the other after the one.")
    platform.knowledge.get(made.id)
    platform.knowledge.update(made.id, version=made.version, title="Walking")
    assert list(platform.knowledge.versions(made.id))
    assert list(platform.knowledge)
    platform.knowledge.search("walking")
    platform.knowledge.delete(made.id)
    platform.knowledge.import_documents({"a.md": "A text about stairs, which are steps that go up."})
    file = folder / "b.txt"
    file.write_text("A text about paths, which are ways that somebody went before.")
    platform.knowledge.import_file(file)
    begun = platform.knowledge.import_packages(["typer"])
    platform.knowledge.wait_import(begun.id or 0, timeout_s=200)


def _walk_experiments(platform: Platform, site: Site) -> None:
    platform.experiments.auto_status()
    platform.experiments.auto_trigger("data_agent")
    made = platform.experiments.create("a walk", "code_agent", algorithm="edit")
    platform.experiments.stop(made.id)
    platform.experiments.wait(made.id, timeout_s=60)
    assert list(platform.experiments)
    done = site.run(finished(site.platform))
    platform.experiments.apply(done)
    platform.experiments.roll_back(done)


def _walk_memory(platform: Platform) -> None:
    kept = platform.memory.remember("I walk to work.")
    platform.memory.get(kept.id)
    assert platform.memory.update(kept.id, text="I walk home.").text == "I walk home."
    platform.memory.recall("how do I get home")
    assert list(platform.memory)
    platform.memory.forget(kept.id)
    assert [talk.session_id for talk in platform.memory.conversations()] == ["a walk"]
    platform.memory.conversation("a walk")
    platform.memory.forget_conversation("a walk")
    assert list(platform.tools)
    platform.tools.run("files", {"action": "list"})


def _walk_system(platform: Platform) -> None:
    platform.system.status()
    platform.system.stats()
    platform.system.pool()
    platform.system.set_config(version=platform.system.config().version)
    platform.system.set_secret("WALKERS_OWN_KEY", "nobody sees this")
    assert list(platform.system.secrets())
    platform.system.delete_secret("WALKERS_OWN_KEY")
