"""Experiments that really run: an agent of the platform, a process of its own, a scripted model server."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentlightning.modelservice.fronts import Fronts
from agentlightning.platform.agents.models import AgentEvaluation
from agentlightning.platform.auth.repository import user_named
from agentlightning.platform.columns import now
from agentlightning.platform.learning import supervisor
from agentlightning.platform.learning.models import Experiment
from agentlightning.platform.learning.trainable import as_prompt, as_template
from agentlightning.platform.mounts import ModelSetup
from agentlightning.schemas.agent import AgentDefinition
from tests.scripted_model import PROPOSER, SEED, ScriptedModel, tasks
from tests.unit.platform.site import Site, error_code

BASE = "/api/v2/rl"


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel(models=("task", PROPOSER)) as found:
        yield found


def learner(name: str = "learner_agent", **more: Any) -> AgentDefinition:
    cases = [
        {
            "input": task["question"],
            "expected": task["expected"],
            "reference": task["expected"],
            "split": "train" if number // 4 % 2 else "held_out",
        }
        for number, task in enumerate(tasks(48))
    ]
    given = {
        "name": name,
        "type": "testing",
        "description": "Answers questions of four categories.",
        "role": "helper",
        "system_prompt": SEED,
        "capabilities": [name],
        "evaluator": {"kind": "exact"},
        "evaluation": cases,
        "learning": {"task_type": "data_analysis"},
        **more,
    }
    return AgentDefinition.model_validate(given)


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site], server: ScriptedModel) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "LOOK_S", 0.1)
        patch.setattr(supervisor, "_BEAT_S", 0.2)
        found = make_site(models=ModelSetup(fronts=Fronts(base_url=server.url)), default_model="task")
        found.run(found.platform.agents.create(learner()))
        yield found


@pytest.fixture(scope="module")
def developer(site: Site) -> dict[str, str]:
    return site.headers("developer")


CONFIG = {
    "budget_calls": 2000,
    "proposer_model": "proposer",
    "settings": {"beam_width": 2, "branch_factor": 2, "beam_rounds": 4, "val_batch_size": 8},
}


def post(site: Site, path: str, headers: dict[str, str], **body: Any) -> Any:
    return site.client.post(BASE + path, json=body, headers=headers)


def ended(site: Site, number: int, headers: dict[str, str], *, within_s: float = 240) -> dict[str, Any]:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = site.client.get(f"{BASE}/experiments/{number}", headers=headers).json()["data"]
        if found["status"] in ("completed", "failed", "stopped"):
            return found
        time.sleep(0.1)
    raise AssertionError(found)


@pytest.mark.slow
def test_an_agent_learns_and_its_better_prompt_becomes_its_next_version(site: Site, developer: dict[str, str]):
    made = post(site, "/experiments", developer, name="first", algorithm="apo", agent_id="learner_agent", config=CONFIG)
    assert made.status_code == 201, made.text
    number = made.json()["data"]["id"]
    busy = post(site, "/experiments", developer, name="second", algorithm="apo", agent_id="learner_agent")
    assert (busy.status_code, error_code(busy)) == (409, "CONFLICT")
    found = ended(site, number, developer)
    assert found["status"] == "completed", found
    (held_out, *_) = found["metrics"]["comparisons"]
    assert (held_out["held_out"], held_out["n"]) == (True, 24)
    assert held_out["after"] > held_out["before"]
    assert found["metrics"]["is_improved"] is True
    assert found["metrics"]["spent"]["calls"] <= 2000
    prompt = found["checkpoints"][-1]["prompts"]["system_prompt"]
    assert "{question}" in prompt, "braces are braces"
    assert "rule" in prompt

    applied = post(site, f"/experiments/{number}/apply", developer).json()["data"]
    assert applied["version"] == found["agent_version"] + 1
    agent = site.run(site.platform.agents.find("learner_agent"))
    assert agent.config["system_prompt"] == prompt
    assert post(site, f"/experiments/{number}/apply", developer).status_code == 409, "it was applied"
    assert post(site, "/experiments", developer, name="first", agent_id="learner_agent").status_code == 409, "the name"
    keys = site.client.get("/api/v2/api-keys", headers=developer).json()["data"]
    assert keys == [], "the experiment's key is gone"


@pytest.mark.slow
def test_it_can_be_stopped_before_and_while_it_runs(site: Site, developer: dict[str, str], server: ScriptedModel):
    site.run(site.platform.agents.create(learner("slow_agent")))
    server.delay_s = 0.5
    try:
        made = post(site, "/experiments", developer, name="slow", algorithm="apo", agent_id="slow_agent", config=CONFIG)
        number = made.json()["data"]["id"]
        deadline, asked = time.monotonic() + 120, server.total
        while server.total == asked:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        waiting = post(site, "/experiments", developer, name="waits", algorithm="edit", agent_id="learner_agent")
        stopped = post(site, f"/experiments/{waiting.json()['data']['id']}/stop", developer).json()["data"]
        assert stopped["status"] == "stopped"
        assert post(site, f"/experiments/{number}/stop", developer).status_code == 200
        assert ended(site, number, developer)["status"] == "stopped"
    finally:
        server.delay_s = 0.0


@pytest.mark.slow
def test_one_whose_worker_died_goes_on(site: Site, developer: dict[str, str]):
    site.run(site.platform.agents.create(learner("orphan_agent")))
    owner = site.add_user("developer")

    async def orphan() -> int:
        agent = await site.platform.agents.find("orphan_agent")
        async with site.platform.database.read() as session:
            user = await user_named(session, owner)
        assert user is not None
        made = Experiment(
            name="orphan",
            algorithm="edit",
            config={"budget_calls": 400},
            status="running",
            agent_id=agent.id,
            agent_version=agent.version,
            created_at=now(),
            created_by=user.id,
            reason="",
            metrics={},
            checkpoints=[],
            worker="one that died",
            lease_until=now(),
            attempts=1,
        )
        async with site.platform.database.write() as session:
            session.add(made)
        return made.id

    found = ended(site, site.run(orphan()), developer)
    assert found["error_message"] is None, found["error_message"]
    assert found["status"] == "completed"


def test_what_cannot_run_says_why(site: Site, developer: dict[str, str]):
    for algorithm in ("ppo", "grpo", "magic"):
        refused = post(site, "/experiments", developer, name="x", algorithm=algorithm, agent_id="learner_agent")
        assert (refused.status_code, error_code(refused)) == (422, "ALGORITHM_NOT_AVAILABLE")
    remote = post(site, "/experiments", developer, name="x", algorithm="sft", agent_id="learner_agent")
    assert (remote.status_code, error_code(remote)) == (422, "ALGORITHM_NOT_AVAILABLE")
    assert "another server" in remote.json()["error"]["message"]
    wrong = post(
        site,
        "/experiments",
        developer,
        name="x",
        agent_id="learner_agent",
        algorithm="apo",
        config={"settings": {"no": 1}},
    )
    assert (wrong.status_code, error_code(wrong)) == (400, "CONFIG_INVALID")
    assert post(site, "/experiments", developer, name="x", agent_id="nobody").status_code == 404
    site.run(site.platform.agents.create(learner("bare_agent", evaluation=[])))
    bare = post(site, "/experiments", developer, name="x", agent_id="bare_agent")
    assert (bare.status_code, error_code(bare)) == (422, "BAD_INPUT")
    assert site.client.get(f"{BASE}/experiments/999", headers=developer).status_code == 404


def test_the_agent_has_one_name_and_the_other_means_the_same(site: Site, developer: dict[str, str]):
    agent = site.run(site.platform.agents.create(learner("named_agent")))
    for number, given in enumerate(({"agent_id": agent.id}, {"agent": "named_agent"})):
        made = post(site, "/experiments", developer, name=f"named {number}", algorithm="edit", **given)
        assert (made.status_code, made.json()["data"]["agent_id"]) == (201, agent.id), made.text
        ended(
            site,
            post(site, f"/experiments/{made.json()['data']['id']}/stop", developer).json()["data"]["id"],
            developer,
        )
    for wrong in ({}, {"agent_id": "named_agent", "agent": "named_agent"}, {"agent": ""}, {"agent_id": None}):
        refused = post(site, "/experiments", developer, name="never", algorithm="edit", **wrong)
        assert (refused.status_code, error_code(refused)) == (422, "VALIDATION_FAILED")
        assert "agent" in refused.text
    assert post(site, "/experiments", developer).status_code == 422
    listed = site.client.post(f"{BASE}/experiments", json=[1], headers=developer)
    assert listed.status_code == 422
    described = site.app.openapi()["components"]["schemas"]["ExperimentIn"]
    assert "agent" not in described["properties"]
    assert described["required"] == ["name", "agent_id"]


def test_without_a_model_nothing_is_begun(make_site: Callable[..., Site]):
    """The answer says at once how to configure one, as for tasks; where nobody asked by name, the agent waits."""
    site = make_site()
    site.run(site.platform.agents.create(learner()))
    developer = site.headers("developer")
    for agent, config, why in (
        ("learner_agent", {}, "does not work on the embedded one"),
        ("sql_agent", {}, "which does not read its prompt"),
        ("sql_agent", {"model": "absent"}, "'absent', which nobody serves"),
        ("sql_agent", {"model": "nano", "proposer_model": "absent"}, "'absent', which nobody serves"),
    ):
        refused = post(site, "/experiments", developer, name="x", algorithm="edit", agent_id=agent, config=config)
        assert (refused.status_code, error_code(refused)) == (503, "MODEL_NOT_CONFIGURED")
        error = refused.json()["error"]
        assert why in error["message"]
        assert any("agl up --model" in way for way in error["details"]["ways"])
    forced = post(site, "/auto-trigger", developer, agent_id="learner_agent", force=True)
    assert (forced.status_code, error_code(forced)) == (503, "MODEL_NOT_CONFIGURED")

    async def measured() -> None:
        agent = await site.platform.agents.find("learner_agent")
        async with site.platform.database.write() as session:
            session.add(
                AgentEvaluation(
                    agent_id=agent.id,
                    version=agent.version,
                    split="held_out",
                    status="completed",
                    score=0.1,
                    cases=24,
                    results=[],
                    started_at=now(),
                    deadline_at=now(),
                    created_by="somebody",
                )
            )

    site.run(measured())
    (decision,) = post(site, "/auto-trigger", developer, agent_id="learner_agent").json()["data"]["decisions"]
    assert (decision["decision"], decision["experiment_id"]) == ("wait", None)
    assert "No model is configured" in decision["reason"]
    experiments = site.client.get(f"{BASE}/experiments", headers=developer).json()["data"]["experiments"]
    assert experiments == []


@pytest.mark.slow
def test_without_its_model_it_fails_and_says_so(site: Site, developer: dict[str, str]):
    model = post(site, "/experiments", developer, name="no model", agent_id="learner_agent", config={"model": "absent"})
    found = ended(site, model.json()["data"]["id"], developer)
    assert found["status"] == "failed"
    assert found["error_message"]
    refused = post(site, f"/experiments/{found['id']}/apply", developer)
    assert refused.status_code == 409


def test_agents_learn_by_themselves_only_when_they_should(site: Site, developer: dict[str, str]):
    """What was never measured waits; what is watched only is never begun; force begins it all the same."""
    status = site.client.get(f"{BASE}/auto-status", headers=developer).json()["data"]
    by_name = {found["agent"]: found for found in status["agents"]}
    assert by_name["learner_agent"]["decision"] == "wait"
    assert "evaluated" in by_name["learner_agent"]["reason"]
    assert by_name["customer_service_agent"]["decision"] == "monitor"
    everyone = post(site, "/auto-trigger", developer).json()["data"]
    assert everyone["triggered"] == 0
    assert len(everyone["decisions"]) == len(status["agents"])
    config = {"budget_calls": 100, "proposer_model": "proposer"}
    answer = post(site, "/auto-trigger", developer, agent_id="learner_agent", force=True, config=config)
    assert answer.status_code == 200, answer.text
    forced = answer.json()["data"]
    assert forced["triggered"] == 1
    number = forced["decisions"][0]["experiment_id"]
    listed = site.client.get(f"{BASE}/experiments?agent=learner_agent", headers=developer).json()["data"]
    assert listed["experiments"][0]["id"] == number
    assert listed["experiments"][0]["reason"].startswith("asked for")
    assert post(site, f"/experiments/{number}/stop", developer).status_code == 200
    ended(site, number, developer)
    assert post(site, "/auto-trigger", site.headers("user")).status_code == 403
    documented = post(site, "/auto-trigger", developer, agent_id="code_agent", task_type="code_generation")
    assert documented.json()["data"]["decisions"][0]["threshold"] == 0.8
    watched = post(site, "/auto-trigger", developer, agent_id="code_agent", task_type="customer_service")
    assert watched.json()["data"]["decisions"][0]["decision"] == "monitor"
    kind = post(site, "/auto-trigger", developer, task_type="code_generation").json()["data"]["decisions"]
    assert 0 < len(kind) < len(status["agents"])


@pytest.mark.parametrize("prompt", ["plain", "{one} brace", "{{two}}", "{% three %} {", "{# {{x}} #}"])
def test_a_prompt_survives_being_a_template(prompt: str):
    assert as_prompt(as_template(prompt)) == prompt
