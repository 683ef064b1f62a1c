"""Experiments that really train the embedded model: through the platform, its tasks and its registry."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentlightning.config import ModelSpec
from agentlightning.platform.learning import supervisor
from agentlightning.platform.learning.weights import name_of, production
from agentlightning.platform.mounts import ModelSetup
from tests.unit.learner.tiny import save_model
from tests.unit.platform.learning.pupils import pupil
from tests.unit.platform.site import Site, settings_for
from tests.unit.platform.tasks.things import Caller

pytestmark = pytest.mark.slow

BASE = "/api/v2/rl/experiments"
_WITHIN_S = 400.0
SMALL = {"steps": 2, "prompts_per_step": 4, "group_size": 4}


@pytest.fixture(autouse=True, scope="module")
def quickly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "LOOK_S", 0.2)
        patch.setattr(supervisor, "_BEAT_S", 0.5)
        yield


@pytest.fixture(scope="module")
def site(quickly: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    found = Site(settings_for(tmp_path_factory.mktemp("home"))).start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def developer(site: Site) -> Caller:
    return Caller(site, "developer")


def post(developer: Caller, path: str, **body: Any) -> Any:
    return developer.site.client.post(path, json=body, headers=developer.headers)


def until(developer: Caller, number: int, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + _WITHIN_S
    while time.monotonic() < deadline:
        found = developer.get(f"{BASE}/{number}").json()["data"]
        if is_there(found):
            return found
        assert found["status"] != "failed", found["error_message"]
        time.sleep(0.2)  # between two looks
    raise AssertionError(found)


def begin(developer: Caller, name: str, agent: str, algorithm: str, **settings: Any) -> int:
    made = post(developer, BASE, name=name, algorithm=algorithm, agent_id=agent, config={"settings": settings})
    assert made.status_code == 201, made.text
    return made.json()["data"]["id"]


def rewards(found: dict[str, Any]) -> list[list[float]]:
    return found["metrics"].get("progress", {}).get("rewards", [])


def is_over(found: dict[str, Any]) -> bool:
    return found["status"] in ("completed", "stopped")


def test_two_steps_of_grpo_become_a_candidate_that_is_put_into_use_and_taken_back(site: Site, developer: Caller):
    agent = site.run(site.platform.agents.create(pupil(site.settings.home)))
    registry = site.platform.models.service.registry
    for step in range(site.settings.kept_candidates):  # of experiments before, which nobody applied
        registry.register(name_of(agent), Path(__file__).parent, base="nano", run_id="before", step=step, metrics={})
    number = begin(developer, "grpo", agent.name, "grpo", **SMALL)
    watched = until(developer, number, lambda found: is_over(found) or rewards(found) != [])
    assert is_over(watched) or watched["metrics"]["progress"]["steps"] == 2
    found = until(developer, number, is_over)
    assert found["metrics"]["data"] == {"source": "evaluation cases", "train": 8, "held_out": 8}
    assert [each["n"] for each in found["metrics"]["comparisons"]] == [8, 8]
    ref = found["metrics"]["model"]
    assert [version.version for version in registry.versions(name_of(agent))] == ["v2", "v3", "v4", "v5", "v6"]
    version = registry.get(ref)
    assert (version.stage, version.step, version.run_id) == ("candidate", 2, found["metrics"]["run_id"])
    assert version.metrics["after"]["held_out/greedy"]["n"] == 8
    assert production(registry, name_of(agent)) is None

    question = {"task": "How many elements are there?", "agent": agent.name}
    before = developer.until(developer.assign(**question), timeout_s=200)
    assert before["result"]["model"] == "nano"
    if not found["metrics"]["is_improved"]:
        assert post(developer, f"{BASE}/{number}/apply").status_code == 422
    assert post(developer, f"{BASE}/{number}/apply", force=True).json()["data"]["model"] == ref
    assert developer.until(developer.assign(**question), timeout_s=200)["result"]["model"] == ref
    assert post(developer, f"{BASE}/{number}/rollback").json()["data"]["model"] == "nano"
    assert developer.until(developer.assign(**question), timeout_s=200)["result"]["model"] == "nano"


def test_sft_learns_from_the_agents_well_rated_tasks_alone(site: Site, developer: Caller):
    definition = pupil(site.settings.home, "shown_agent")
    site.run(site.platform.agents.create(definition))
    train, held_out = definition.cases("train"), definition.cases("held_out")
    asked = [(train[0].input, 1.0), (train[1].input, 1.0), (train[2].input, 0.1), (held_out[0].input, 1.0)]
    for text, score in asked:
        task = developer.until(developer.assign(text, agent="shown_agent"), timeout_s=200)
        assert task["status"] == "completed", "the embedded model finds a query that runs for its own questions"
        rated = post(developer, f"/api/v2/tasks/{task['task_id']}/feedback", score=score)
        assert rated.status_code in (200, 201), rated.text
    number = begin(developer, "sft", "shown_agent", "sft", epochs=1, held_out=0.0)
    found = until(developer, number, is_over)
    assert found["status"] == "completed", found["error_message"]
    learning = found["metrics"]["learning"]
    assert learning["train"] == 2
    assert learning["data"]["skipped"]["held_out"] == 1
    assert learning["data"]["skipped"]["low_reward"] == 1
    assert found["checkpoints"][-1]["model"] == found["metrics"]["model"]


def test_it_goes_on_after_a_restart_and_stopped_it_leaves_nothing(tmp_path: Path):
    first = Site(settings_for(tmp_path)).start()
    agent = first.run(first.platform.agents.create(pupil(first.settings.home)))
    developer = Caller(first, "developer")
    number = begin(developer, "long", agent.name, "grpo", **{**SMALL, "steps": 500})

    def step(found: dict[str, Any]) -> int:
        return found["metrics"].get("progress", {}).get("step", 0)

    reached = step(until(developer, number, lambda found: step(found) >= 1))
    first.stop()  # as on a restart: the process of the experiment ends, its checkpoint stays
    second = Site(first.settings).start()
    try:
        developer.site = second
        gone_on = until(developer, number, lambda found: step(found) > reached)
        assert gone_on["status"] == "running"
        assert rewards(gone_on)[0][0] > 1, "it did not begin anew"
        assert post(developer, f"{BASE}/{number}/stop").status_code == 200
        assert until(developer, number, is_over)["status"] == "stopped"
        assert second.platform.models.service.registry.versions(name_of(agent)) == []
        assert post(developer, f"{BASE}/{number}/apply").status_code == 409
    finally:
        second.stop()


def test_a_model_of_a_directory_is_trained_by_what_the_agents_evaluator_says(tmp_path: Path):
    """A random one, so that its answers differ: they are right as far as they hold certain letters."""
    cases = [
        {
            "input": f"say {number}",
            "checks": [{"pattern": letter} for letter in "aeiou"],
            "reference": "aeiou",
            "split": "train" if number < 4 else "held_out",
        }
        for number in range(8)
    ]
    given = {
        "evaluator": {"kind": "checks"},
        "evaluation": cases,
        "model": "mini",
        "fallback": None,
        "temperature": 1.0,
    }
    definition = pupil(tmp_path, "letters_agent", system_prompt="say", **given)
    spec = ModelSpec(name="mini", source=str(save_model(tmp_path / "mini")), device="cpu", lazy=True)
    site = Site(settings_for(tmp_path / "home"), models=ModelSetup(specs=(spec,))).start()
    try:
        agent = site.run(site.platform.agents.create(definition))
        developer = Caller(site, "developer")
        settings = {"steps": 1, "prompts_per_step": 4, "group_size": 4, "max_tokens": 12}
        found = until(developer, begin(developer, "letters", agent.name, "grpo", **settings), is_over)
        assert found["metrics"]["comparisons"][0]["data"] == "held_out/sampled", "it asks at a high temperature"
        assert 0 < found["metrics"]["rewards"][0][1] < 1
        applied = post(developer, f"{BASE}/{found['id']}/apply", force=True).json()["data"]
        assert applied["model"] == f"{name_of(agent)}@v1"
        changed = site.run(site.platform.agents.find(agent.id))
        assert (changed.config["model"], changed.config["fallback"]) == (name_of(agent), None)
        assert site.run(site.platform.default_model()) == "mini", "not the one that was trained"
    finally:
        site.stop()
