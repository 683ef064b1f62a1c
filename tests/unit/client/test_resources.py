"""Agents, tasks, knowledge and experiments through the client, on a platform that really runs."""

import threading
from typing import Any

import pytest

from agentlightning.client import Platform, PlatformError, TimedOutError
from agentlightning.client import models as shapes
from agentlightning.kit.errors import BadInputError, ConflictError, ForbiddenError, NotFoundError
from tests.unit.platform.site import Site
from tests.unit.platform.tasks.things import Held, said


def test_a_task_is_assigned_waited_for_judged_and_traced(site: Site, user: Platform, developer: Platform):
    done = user.tasks.run("Say hello", agent="data_agent", context={"a": 1}, wait_s=30)
    assert (done.status, done.output, done.context) == ("completed", "hello there", {"a": 1})
    user.tasks.feedback(done.task_id, score=0.9, comment="good")
    (kept,) = site.run(site.platform.store.query_feedback(author=user.profile().username))
    assert kept.normalized_score == 0.9
    assert "task" in {
        span["attributes"].get("agentlightning.operation.name") for span in user.tasks.trace(done.task_id)
    }
    same = [user.tasks.assign("Once", agent="data_agent", idempotency_key="k").task_id for _ in range(2)]
    assert same[0] == same[1]
    assert {task.task_id for task in user.tasks} >= {done.task_id, same[0]}
    with pytest.raises(NotFoundError):
        developer.tasks.get(done.task_id)
    with pytest.raises(NotFoundError):
        user.tasks.assign("x", agent="nobody_agent")


def test_a_task_that_takes_long_is_waited_for_again_or_cancelled(user: Platform, server: Any):
    held = Held()
    server.script.append(held)
    task = user.tasks.assign("Take your time", agent="poet_agent")
    with pytest.raises(TimedOutError):
        user.tasks.wait(task.task_id, timeout_s=0.3)
    assert user.tasks.cancel(task.task_id).status in ("running", "cancelled")
    assert user.tasks.wait(task.task_id, timeout_s=100).status == "cancelled"
    held.release()


def test_events_come_as_they_happen(user: Platform):
    seen: list[dict[str, Any]] = []

    def listen() -> None:
        for event in user.tasks.events(last_seq=0, agent="data_agent"):
            seen.append(event)
            if event["event"] == "task_completed":
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    done = user.tasks.run("Say hello", agent="data_agent", wait_s=30)
    listener.join(20)
    assert seen[-1]["task_id"] == done.task_id
    assert [event["seq"] for event in seen] == sorted(event["seq"] for event in seen)


def test_agents_are_listed_changed_from_a_version_and_rolled_back(developer: Platform, user: Platform):
    assert {agent.name for agent in user.agents} >= {"sql_agent", "code_agent", "data_agent"}
    assert all(agent.type == "poet" for agent in user.agents.list(capability="rhymes"))
    before = developer.agents.get("poet_agent")
    changed = developer.agents.update("poet_agent", version=before.version, system_prompt="Rhyme.")
    assert (changed.version, changed.definition["system_prompt"]) == (before.version + 1, "Rhyme.")
    with pytest.raises(ConflictError) as caught:
        developer.agents.update("poet_agent", version=before.version, system_prompt="No.")
    assert caught.value.details["version"] == changed.version
    back = developer.agents.roll_back("poet_agent", before.version)
    assert back.definition == before.definition
    assert developer.agents.pause("poet_agent").status == "paused"
    assert developer.agents.restart("poet_agent").status == "active"
    copied = developer.agents.create({**before.definition, "name": "other_poet_agent"})
    developer.agents.delete(copied.id)
    with pytest.raises(NotFoundError):
        developer.agents.get("other_poet_agent")
    with pytest.raises(ForbiddenError):
        user.agents.update("poet_agent", version=back.version, system_prompt="Mine.")
    with pytest.raises(BadInputError):
        developer.agents.create({"name": "No"})


def test_a_good_result_becomes_knowledge_when_who_judges_may_write_it(developer: Platform, user: Platform, server: Any):
    answer = "Parsnips are sown in March, thinned in May and pulled after the first hard frost of winter."
    server.script.extend([said(answer), said(answer)])
    for platform in (user, developer):
        done = platform.tasks.run("When are parsnips sown and pulled?", agent="data_agent", wait_s=30)
        platform.tasks.feedback(done.task_id, score=1.0)
        found = [item for item in developer.knowledge.list(category="experience") if answer in item.content]
        assert len(found) == (platform is developer), "what a user did stays the user's"
    assert found[0].metadata["rated_by"] == developer.profile().username


def test_knowledge_is_kept_found_and_changed(developer: Platform):
    made = developer.knowledge.create("Leases", "A lease ends when nothing is heard.", category="queues", tags=["a"])
    scores = {found.id: score for found, score in developer.knowledge.search("when does a lease end", limit=3)}
    assert scores[made.id] > 0
    assert [item.id for item in developer.knowledge.list(category="queues", tags=["a"])] == [made.id]
    changed = developer.knowledge.update(made.id, version=made.version, title="Leases end")
    assert developer.knowledge.get(made.id).title == "Leases end"
    with pytest.raises(ConflictError):
        developer.knowledge.update(made.id, version=made.version, title="Too late")
    assert changed.version == made.version + 1
    developer.knowledge.delete(made.id)
    with pytest.raises(NotFoundError):
        developer.knowledge.get(made.id)


def test_experiments_are_begun_and_stopped(developer: Platform):
    made = developer.experiments.create("from the client", "sql_agent", algorithm="edit", config={"budget_calls": 50})
    assert made.id in {found.id for found in developer.experiments}
    developer.experiments.stop(made.id)
    assert developer.experiments.wait(made.id, timeout_s=60).is_over
    with pytest.raises(ConflictError):
        developer.experiments.apply(made.id)
    with pytest.raises(ConflictError):
        developer.experiments.roll_back(made.id)


SHAPES = {
    "AgentSummary": "Agent",
    "AgentOut": "FullAgent",
    "TaskOut": "Task",
    "TaskError": "TaskError",
    "ItemOut": "Item",
    "ExperimentOut": "Experiment",
}


@pytest.mark.parametrize("described", SHAPES)
def test_the_shapes_are_those_of_the_api(site: Site, described: str):
    schema = site.app.openapi()["components"]["schemas"][described]
    assert set(getattr(shapes, SHAPES[described]).model_fields) == set(schema["properties"])


def test_what_is_remembered_is_recalled_and_forgotten(user: Platform):
    kept = user.memory.remember("My order number is 4711.", kind="fact")
    assert user.memory.remember("My order number is 4711.", kind="fact").id == kept.id
    (best, *_) = user.memory.recall("what is the order number")
    assert (best.id, best.kind) == (kept.id, "fact")
    assert best.score is not None
    assert [memory.id for memory in user.memory] == [kept.id]
    user.memory.forget(kept.id)
    assert list(user.memory) == []
    user.tasks.run("Say hello", agent="data_agent", session_id="a talk", wait_s=30)
    assert [talk.session_id for talk in user.memory.conversations()] == ["a talk"]
    said_there = user.memory.conversation("a talk")
    assert [entry["type"] for entry in said_there.entries or []] == ["human", "ai"]
    user.memory.forget_conversation("a talk")
    with pytest.raises(NotFoundError):
        user.memory.conversation("a talk")


def test_tools_are_listed_and_called(user: Platform):
    tools = {tool.name: tool for tool in user.tools}
    assert tools["files"].available
    assert tools["http"].reason
    assert not user.tools.run("files", {"action": "write", "path": "a.txt", "content": "x"}).is_error
    assert user.tools.run("files", {"action": "read", "path": "a.txt"}).text == "x"
    assert user.tools.run("files", {"action": "read", "path": "b.txt"}).is_error
    with pytest.raises(PlatformError) as caught:
        user.tools.run("http", {"url": "http://example.com"})
    assert caught.value.code == "TOOL_UNAVAILABLE"
    with pytest.raises(NotFoundError):
        user.tools.run("none", {})
