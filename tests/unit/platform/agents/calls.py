"""Every call about agents, once so that it works, and the doubles that stand where a model would."""

import json
import time
from typing import Any

from agentlightning.platform.agents.evaluations import Ran
from tests.unit.platform.agents.things import plain

AGENTS = "/api/v2/agents"

DRAFT = plain(
    "tide_agent",
    type="sea",
    description="Says when the tide is high.",
    role="harbour clerk",
    system_prompt="You read tide tables. " + "Look up the place, then the day, then the hour. " * 5 + "Answer: HH:MM",
    capabilities=["tides"],
    evaluator={"kind": "exact", "take": "label"},
    evaluation=[
        {"input": f"Tide {n}?", "expected": f"0{n}:00", "reference": f"Answer: 0{n}:00", "split": split}
        for n, split in enumerate(["train", "train", "held_out"])
    ],
)


class ScriptedChat:
    """A model that says what the test wants, in turn; the last thing again and again."""

    def __init__(self, *says: Any) -> None:
        self.says = list(says)
        self.asked: list[dict[str, Any]] = []

    async def complete(self, messages: list[dict[str, str]], **options: Any) -> str:
        self.asked.append({"messages": messages, **options})
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, str) else json.dumps(said)


class ScriptedExecutor:
    """Answers each case by `answer(input)`, and notes rewards."""

    def __init__(self, answer: Any, unready: Exception | None = None) -> None:
        self.answer, self.unready = answer, unready
        self.rewards: dict[str, float] = {}
        self.ran: list[dict[str, Any]] = []

    async def ready(self, definition: Any) -> None:
        if self.unready is not None:
            raise self.unready

    async def execute(self, who: Any, agent: Any, definition: Any, input: str, metadata: Any) -> Ran:
        self.ran.append({"who": who.username, "agent": agent.name, **metadata})
        found = self.answer(input)
        if isinstance(found, Exception):
            raise found
        if not isinstance(found, str):
            await found
            found = ""
        return Ran(found, ("python",), f"rollout-{metadata['case']}")

    async def score(self, rollout_id: str, value: float) -> None:
        self.rewards[rollout_id] = value


def ended(site: Any, headers: Any, path: str) -> dict[str, Any]:
    """The evaluation, once it does not run any more."""
    for _ in range(300):
        found = site.client.get(path, headers=headers).json()["data"]
        if found["status"] != "running":
            return found
        time.sleep(0.05)
    raise AssertionError("still running")


def agent_calls(site: Any, headers: Any) -> Any:
    get, post, one = site.client.get, site.client.post, AGENTS + "/{agent_id}"
    yield "GET", AGENTS, get(AGENTS, headers=headers)
    yield "GET", "/agents", get("/agents", headers=headers)
    yield "POST", AGENTS, post(AGENTS, headers=headers, json={"definition": plain("described_agent")})
    yield "GET", AGENTS + "/status", get(AGENTS + "/status", headers=headers)
    path = AGENTS + "/described_agent"
    yield "GET", one, get(path, headers=headers)
    change = {"changes": {"description": "Adds better."}, "version": 1}
    yield "PUT", one, site.client.put(path, headers=headers, json=change)
    yield "POST", one + "/restart", post(path + "/restart", headers=headers)
    yield "GET", one + "/versions", get(path + "/versions", headers=headers)
    yield "GET", one + "/versions/{version}", get(path + "/versions/1", headers=headers)
    yield "POST", one + "/rollback", post(path + "/rollback", headers=headers, json={"to": 1})
    before = site.platform.evaluations.executor
    site.platform.evaluations.executor = ScriptedExecutor(lambda _: "2")
    started = post(path + "/evaluate", headers=headers, json={})
    yield "POST", one + "/evaluate", started
    evaluation = f"{path}/evaluations/{started.json()['data']['id']}"
    ended(site, headers, evaluation)
    site.platform.evaluations.executor = before
    yield "GET", one + "/evaluations", get(path + "/evaluations", headers=headers)
    yield "GET", one + "/evaluations/{evaluation_id}", get(evaluation, headers=headers)
    yield "GET", one + "/metrics", get(path + "/metrics", headers=headers)
    chat, site.platform.designer._chat = site.platform.designer._chat, ScriptedChat(DRAFT)
    description = {"description": "An agent that reads tide tables."}
    yield "POST", AGENTS + "/design", post(AGENTS + "/design", headers=headers, json=description)
    site.platform.designer._chat = chat
    yield "DELETE", one, site.client.delete(path, headers=headers)
