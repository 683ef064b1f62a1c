"""Experiments that train weights: what is refused and why, what they begin with, how results go into use and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentlightning.platform.agents.models import Agent
from agentlightning.platform.columns import now
from agentlightning.platform.learning.algorithms import WEIGHTS
from agentlightning.platform.learning.models import COMPLETED, Experiment
from agentlightning.platform.learning.weights import Base, Weights, name_of, production
from agentlightning.registry import ModelRegistry
from tests.unit.platform.learning.pupils import pupil
from tests.unit.platform.site import Site, error_code

BASE = "/api/v2/rl"


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    found = make_site()
    found.platform.url = ""  # nothing is run here
    return found


@pytest.fixture(scope="module")
def developer(site: Site) -> dict[str, str]:
    return site.headers("developer")


@pytest.fixture(scope="module")
def registry(site: Site) -> ModelRegistry:
    assert site.platform.models is not None
    return site.platform.models.service.registry


def post(site: Site, path: str, headers: dict[str, str], **body: Any) -> Any:
    return site.client.post(BASE + path, json=body, headers=headers)


def agent_of(site: Site, name: str) -> Agent:
    return site.run(site.platform.agents.find(name))


def new_pupil(site: Site, name: str) -> Agent:
    return site.run(site.platform.agents.create(pupil(site.settings.home, name)))


class Line:
    """The models of one agent, and experiments that have ended with one of them."""

    def __init__(self, site: Site, agent: Agent, files: Path) -> None:
        self.site, self.agent, self.name = site, agent, name_of(agent)
        self.files = files
        self.files.mkdir(exist_ok=True)
        (self.files / "config.json").write_text("{}")
        assert site.platform.models is not None
        self.registry = site.platform.models.service.registry
        self.made = 0

    @property
    def production(self) -> str | None:
        return production(self.registry, self.name)

    def ended(self, *, model: str = "nano", version: str = "base", improved: bool = True) -> tuple[int, str]:
        """An experiment over with a candidate: its number, and the candidate."""
        self.made += 1
        run = f"{self.name}-{self.made}"
        ref = self.registry.register(self.name, self.files, base=version, run_id=run, step=2, metrics={}).ref
        base = Base(model=model, version=version, style="text_to_sql", name=self.name)
        row = Experiment(
            name=run,
            algorithm="grpo",
            config={},
            status=COMPLETED,
            agent_id=self.agent.id,
            agent_version=agent_of(self.site, self.agent.name).version,
            created_at=now(),
            metrics={"is_improved": improved, "comparisons": []},
            checkpoints=[{"kind": "base", **base.model_dump()}, {"kind": "model", "model": ref}],
        )

        async def add() -> int:
            async with self.site.platform.database.write() as session:
                session.add(row)
            return row.id

        return self.site.run(add()), ref

    def runs_on(self) -> tuple[str, str | None, str | None]:
        agent = agent_of(self.site, self.agent.name)
        definition = self.site.platform.agents.definition_of(agent)
        choice = self.site.run(self.site.platform.tasks.chooser.choose(definition))
        return choice.model, choice.style, choice.version


@pytest.fixture
def line(site: Site, tmp_path: Path, request: pytest.FixtureRequest) -> Line:
    return Line(site, new_pupil(site, request.node.originalname), tmp_path / "weights")


def test_it_begins_with_the_model_that_the_agent_runs_on(site: Site, developer: dict[str, str]):
    for algorithm in WEIGHTS:
        made = post(site, "/experiments", developer, name=algorithm, algorithm=algorithm, agent="sql_agent")
        assert made.status_code == 201, made.text
        found = made.json()["data"]
        base = found["checkpoints"][0]
        agent = agent_of(site, "sql_agent")
        assert {name: base[name] for name in ("kind", "model", "version", "style", "name")} == {
            "kind": "base",
            "model": "nano",
            "version": "base",
            "style": "text_to_sql",
            "name": f"agent-{agent.id}-sql_agent",
        }
        assert "budget_calls" not in found["config"], "it has no effect"
        assert post(site, f"/experiments/{found['id']}/apply", developer).status_code == 409, "it has not run"
        assert post(site, f"/experiments/{found['id']}/rollback", developer).status_code == 409
        assert post(site, f"/experiments/{found['id']}/stop", developer).json()["data"]["status"] == "stopped"


def test_what_has_no_effect_or_no_meaning_is_refused(site: Site, developer: dict[str, str]):
    def refused(algorithm: str, agent: str = "sql_agent", **config: Any) -> tuple[int, str, dict[str, Any]]:
        found = post(site, "/experiments", developer, name="x", algorithm=algorithm, agent=agent, config=config)
        return found.status_code, error_code(found), found.json()["error"]

    for config in ({"budget_calls": 9}, {"settings": {"beam_width": 2}}, {"settings": {"prompts_per_step": 9999}}):
        assert refused("grpo", **config)[:2] == (400, "CONFIG_INVALID"), config
    assert refused("sft", settings={"steps": 2})[:2] == (400, "CONFIG_INVALID")
    for algorithm in ("ppo", "dqn", "sac"):
        status, code, error = refused(algorithm)
        assert (status, code) == (422, "ALGORITHM_NOT_AVAILABLE")
        assert "policies" in error["message"]
        assert "@agl.algo" in error["hint"]
    assert "agl train" in refused("dpo")[2]["hint"]
    assert refused("grpo", "code_agent")[:2] == (503, "MODEL_NOT_CONFIGURED")
    assert refused("grpo", model="absent")[:2] == (503, "MODEL_NOT_CONFIGURED")


def test_an_agent_needs_cases_and_somebody_who_judges(site: Site, developer: dict[str, str]):
    """Both are seen before anything runs; an agent that talks to the embedded model in its own words has no sample."""
    few = pupil(site.settings.home, "few_agent", train=3, held_out=0, model="nano", fallback=None)
    judge = {"kind": "judge", "rubric": "Is it right?"}
    judged = pupil(site.settings.home, "judged_agent", model="nano", fallback=None, evaluation=[], evaluator=judge)
    site.run(site.platform.agents.create(few))
    site.run(site.platform.agents.create(judged))
    for agent, said in (("few_agent", "held-out"), ("judged_agent", "judges")):
        found = post(site, "/experiments", developer, name="x", algorithm="grpo", agent=agent)
        assert (found.status_code, error_code(found)) == (422, "BAD_INPUT")
        assert said in found.json()["error"]["message"]


def test_a_better_model_goes_into_production_and_back(line: Line, developer: dict[str, str]):
    site, agent = line.site, line.agent
    worse, first = line.ended(improved=False)
    refused = post(site, f"/experiments/{worse}/apply", developer)
    assert (refused.status_code, error_code(refused)) == (422, "BAD_INPUT")
    assert (line.production, line.runs_on()) == (None, ("nano", "text_to_sql", None)), "nothing is promoted"

    applied = post(site, f"/experiments/{worse}/apply", developer, force=True).json()["data"]
    assert (applied["version"], applied["model"]) == (agent.version + 1, first)
    assert (line.production, line.runs_on()) == (first, (line.name, "text_to_sql", first))
    assert site.run(site.platform.default_model()) is None, "it is nobody else's model"

    better, second = line.ended(model=line.name, version=first)
    assert post(site, f"/experiments/{better}/apply", developer).json()["data"]["version"] == agent.version + 2
    assert (line.production, line.runs_on()[2]) == (second, second)
    assert post(site, f"/experiments/{better}/apply", developer).status_code == 409, "it was applied"
    assert post(site, f"/experiments/{worse}/rollback", developer).status_code == 409, "another one came after it"

    back = post(site, f"/experiments/{better}/rollback", developer).json()["data"]
    assert back["version"] == agent.version + 3
    assert back["experiment"]["checkpoints"][-1]["kind"] == "rolled_back"
    assert (line.production, line.runs_on()[2]) == (first, first)
    assert post(site, f"/experiments/{better}/rollback", developer).status_code == 409


def test_the_first_one_taken_back_leaves_the_agent_as_it_was(line: Line, developer: dict[str, str]):
    number, ref = line.ended()
    assert post(line.site, f"/experiments/{number}/apply", developer).status_code == 200
    assert post(line.site, f"/experiments/{number}/rollback", developer).status_code == 200
    assert (line.production, line.runs_on()) == (None, ("nano", "text_to_sql", None))
    assert line.registry.get(ref).stage == "archived"
    assert agent_of(line.site, line.agent.name).config["fallback"]["model"] == "nano"


def test_applying_goes_on_where_a_crash_left_it(line: Line, developer: dict[str, str]):
    """All was done but the note that it was; and the promotion was done, but not the agent's version."""
    site = line.site
    number, ref = line.ended()
    version = post(site, f"/experiments/{number}/apply", developer).json()["data"]["version"]

    async def forget() -> None:
        async with site.platform.database.write() as session:
            found = await session.get(Experiment, number)
            assert found is not None
            found.applied_version = None

    site.run(forget())
    assert post(site, f"/experiments/{number}/apply", developer).json()["data"]["version"] == version
    later, second = line.ended(model=line.name, version=ref)
    line.registry.promote(second)
    assert post(site, f"/experiments/{later}/apply", developer).json()["data"]["version"] == version + 1


def test_nothing_is_half_promoted_when_the_agent_changed(
    line: Line, developer: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """Before it is applied, and in the very moment; and when another model was promoted by hand."""
    site = line.site
    number, first = line.ended()
    assert post(site, f"/experiments/{number}/apply", developer).status_code == 200
    stale, _ = line.ended(model=line.name, version=first)

    def edited(text: str) -> Any:
        return site.platform.agents.change(line.agent.id, changes={"description": text})

    site.run(edited("Edited."))
    late = post(site, f"/experiments/{stale}/apply", developer)
    assert (late.status_code, error_code(late), line.production) == (409, "VERSION_CONFLICT", first)

    racing, second = line.ended(model=line.name, version=first)
    promote = Weights.promote

    async def slow(self: Weights, base: Base, ref: str, reason: str) -> None:
        await promote(self, base, ref, reason)
        assert production(line.registry, line.name) == second
        await edited("Edited meanwhile.")

    with monkeypatch.context() as patch:
        patch.setattr(Weights, "promote", slow)
        lost = post(site, f"/experiments/{racing}/apply", developer)
    assert (lost.status_code, error_code(lost), line.production) == (409, "VERSION_CONFLICT", first)

    other, _ = line.ended(model=line.name, version=first)
    line.registry.promote(second)
    refused = post(site, f"/experiments/{other}/apply", developer)
    assert (refused.status_code, line.production) == (409, second)
    assert "compared" in refused.json()["error"]["message"]


def test_agents_on_local_models_learn_by_their_weights(site: Site, developer: dict[str, str]):
    status = site.client.get(f"{BASE}/auto-status", headers=developer).json()["data"]
    assert {"grpo", "sft"} <= set(status["algorithms"])
    by_name = {found["agent"]: found["optimizer"] for found in status["agents"]}
    assert by_name["sql_agent"] == "grpo", "its model does not read its prompt"
    assert by_name["code_agent"] == "auto"
    asked = {"agent_id": "sql_agent", "force": True, "config": {"budget_calls": 50, "settings": {"steps": 1}}}
    begun = post(site, "/auto-trigger", developer, **asked).json()["data"]["decisions"][0]
    made = site.client.get(f"{BASE}/experiments/{begun['experiment_id']}", headers=developer).json()["data"]
    assert (made["algorithm"], made["config"]) == ("grpo", {"seed": 0, "settings": {"steps": 1}})
    assert post(site, f"/experiments/{made['id']}/stop", developer).status_code == 200
