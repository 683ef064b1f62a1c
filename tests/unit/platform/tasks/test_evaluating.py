"""Evaluations, judges and the designer over the whole way: queue, rollouts, gateway, a scripted model server."""

import json
from typing import Any

import orjson
import pytest

from tests.unit.gateway.scripted import completion, reply
from tests.unit.platform.agents.calls import AGENTS, DRAFT, ended
from tests.unit.platform.agents.things import plain
from tests.unit.platform.site import error_code
from tests.unit.platform.tasks.things import Caller, models


@pytest.fixture(scope="module")
def site(make_site, server):
    return make_site(models=models(server), default_model="m")


@pytest.fixture(scope="module")
def caller(site):
    return Caller(site, "developer")


def answering(answers: dict[str, str]) -> Any:
    """A script entry: answers by what is in the last message."""

    async def answer(request: Any, body: dict[str, Any]) -> Any:
        found = completion(body)
        last = body["messages"][-1]["content"]
        found["choices"][0]["message"]["content"] = next(said for part, said in answers.items() if part in last)
        return reply(found)

    return answer


def evaluated(site, caller, name, **body):
    started = caller.post(f"{AGENTS}/{name}/evaluate", body)
    assert started.status_code == 202, started.text
    return ended(site, caller.headers, f"{AGENTS}/{name}/evaluations/{started.json()['data']['id']}")


def case(text, expected, **more):
    return {"input": text, "expected": expected, "reference": expected, **more}


def test_every_case_is_a_rollout_and_only_lessons_get_a_reward(site, server, caller):
    cases = [case("1 + 1?", "2"), case("2 + 2?", "4"), case("3 + 3?", "6", split="held_out")]
    assert caller.post(AGENTS, {"definition": plain("real_agent", evaluation=cases)}).status_code == 201
    server.script[:] = [answering({"1 + 1": "2", "2 + 2": "5", "3 + 3": "6"})] * 3
    found = evaluated(site, caller, "real_agent")
    assert (found["status"], found["passed"], found["told"], found["score"]) == ("completed", 2, 3, 2 / 3)
    rollouts = [each["rollout_id"] for each in found["results"]]
    assert len(set(rollouts)) == 3

    async def judgements() -> list[Any]:
        store = site.platform.store
        return [
            [each.score for each in (await store.query_feedback(rollout_id_in=[rollout])).items] for rollout in rollouts
        ]

    scores = site.run(judgements())
    assert [len(each) for each in scores] == [1, 1, 0]
    assert scores[0][0] > scores[1][0]
    metrics = caller.get(f"{AGENTS}/real_agent/metrics").json()["data"]
    assert metrics["tasks"]["by_status"] == {"completed": 3}
    assert metrics["tasks"]["success_rate"] == 1.0
    status = caller.get(f"{AGENTS}/status").json()["data"]["agents"]
    one = next(each for each in status if each["name"] == "real_agent")
    assert one["last_activity"] is not None


def test_a_judge_reads_what_was_answered(site, server, caller):
    judged = plain(
        "judged_agent", evaluator={"kind": "judge", "rubric": "Is it polite?"}, evaluation=[case("Hi", "Hi")]
    )
    assert caller.post(AGENTS, {"definition": judged}).status_code == 201
    server.script[:] = [answering({"Is it polite?": "Nice.\nScore: 9", "Hi": "Good day"})] * 2
    found = evaluated(site, caller, "judged_agent")
    assert (found["passed"], found["score"]) == (1, 0.9)
    server.script[:] = [answering({"Hi": "Good day"}), answering({"Is it polite?": "I would not say"})]
    found = evaluated(site, caller, "judged_agent")
    assert (found["score"], found["results"][0]["passed"]) == (0.0, False)


def test_surroundings_that_fail_are_no_zero(site, server, caller):
    async def refuse(request: Any, body: Any) -> Any:
        return reply({"error": {"message": "bad key"}}, 401)

    assert caller.post(AGENTS, {"definition": plain("lonely_agent")}).status_code == 201
    server.script[:] = [refuse] * 10
    found = evaluated(site, caller, "lonely_agent")
    server.script.clear()
    assert (found["status"], found["told"], found["score"]) == ("completed", 0, None)
    assert found["results"][0]["reason"]


def test_a_design_goes_through_the_gateway_with_a_schema(site, server, caller):
    server.bodies.clear()
    wrong = json.dumps({**DRAFT, "capabilities": []})
    server.script[:] = [
        answering({"An agent for tides": wrong}),
        answering({"not valid": orjson.dumps(DRAFT).decode()}),
        answering({"Tide 0?": "Answer: 00:00"}),
    ]
    made = caller.post(f"{AGENTS}/design", {"description": "An agent for tides.", "save": True})
    assert made.status_code == 201, made.text
    found = made.json()["data"]
    assert (found["drafts"], found["dry_run"]["passed"]) == (2, True)
    assert caller.get(f"{AGENTS}/tide_agent").json()["data"]["definition"] == found["definition"]
    first = server.bodies[0]
    assert (first["model"], first["response_format"]["type"]) == ("m", "json_schema")
    assert "tools" not in server.bodies[2]

    async def broken(request: Any, body: Any) -> Any:
        return reply({"error": {"message": "no"}}, 400)

    server.script[:] = [broken] * 5
    answer = caller.post(f"{AGENTS}/design", {"description": "An agent for tides."})
    server.script.clear()
    assert (answer.status_code, error_code(answer)) == (502, "UPSTREAM_FAILED")
