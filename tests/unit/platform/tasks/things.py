"""A platform with two agents and a scripted model server, and short ways to ask it for something."""

import asyncio
import threading
import time
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from agentlightning.modelservice.fronts import Fronts
from agentlightning.platform.mounts import ModelSetup
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.tools import Tool, ToolArguments, ToolContext, ToolResult
from tests.unit.gateway.scripted import completion, reply
from tests.unit.platform.site import Site

ENDED = ("completed", "failed", "cancelled")


def definition(name: str, **more: Any) -> AgentDefinition:
    given = {
        "name": name,
        "type": name.removesuffix("_agent"),
        "description": f"Does {name} things.",
        "role": "helper",
        "system_prompt": "Be brief. Keep {braces} as they are.",
        "capabilities": ["testing"],
        **more,
    }
    return AgentDefinition.model_validate(given)


def models(server: Any) -> ModelSetup:
    return ModelSetup(fronts=Fronts(base_url=server.base_url))


def add_agents(site: Site) -> None:
    """The shipped `data_agent` with a prompt for tests, and a poet."""

    async def add() -> None:
        agents = site.platform.agents
        await agents.change("data_agent", definition("data_agent", capabilities=["sales_analysis", "statistics"]))
        await agents.create(definition("poet_agent", capabilities=["poetry", "rhymes"]))

    site.run(add())


class Numbers(ToolArguments):
    a: int
    b: int


class Adding(Tool):
    name, description, Arguments = "python", "Adds.", Numbers

    async def call(self, arguments: Any, context: ToolContext) -> ToolResult:
        return ToolResult(str(arguments.a + arguments.b))


class Ruling(Tool):
    """What users may not do."""

    name, description, Arguments, permission = "files", "Rules.", Numbers, "user:write"

    async def call(self, arguments: Any, context: ToolContext) -> ToolResult:
        return ToolResult("done")


class Caller:
    """A user of the platform."""

    def __init__(self, site: Site, role: str = "user") -> None:
        self.site = site
        self.name = site.add_user(role)
        self.headers = {"Authorization": f"Bearer {site.login(self.name)['access_token']}"}

    def get(self, path: str, **more: Any) -> Any:
        return self.site.client.get(path, headers=self.headers, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return self.site.client.post(path, headers={**self.headers, **more.pop("headers", {})}, json=body, **more)

    def assign(self, task: str = "Say hello", **more: Any) -> int:
        answer = self.post("/api/v2/agents/assign", {"task": task, "agent": "data_agent", **more})
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["task_id"]

    def task(self, task_id: int) -> dict[str, Any]:
        return self.get(f"/api/v2/tasks/{task_id}").json()["data"]

    def until(self, task_id: int, *statuses: str, timeout_s: float = 120) -> dict[str, Any]:
        """The task when it has one of the statuses (by default: ended)."""
        end = time.monotonic() + timeout_s
        while (found := self.task(task_id))["status"] not in (statuses or ENDED):
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found


def said(text: str) -> Any:
    """A script entry: the model says this."""

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        found = completion(body)
        found["choices"][0]["message"]["content"] = text
        return reply(found)

    return answer


def asked(name: str, **arguments: Any) -> Any:
    """A script entry: the model asks for a tool."""

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        found = completion(body)
        function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
        call = {"id": "call_1", "type": "function", "function": function}
        found["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
        found["choices"][0]["finish_reason"] = "tool_calls"
        return reply(found)

    return answer


class Held:
    """A script entry: the model thinks until it is released, then answers."""

    def __init__(self) -> None:
        self._released = threading.Event()

    def release(self) -> None:
        self._released.set()

    async def __call__(self, request: Request, body: dict[str, Any]) -> Response:
        while not self._released.is_set():  # noqa: ASYNC110 - set in another thread
            await asyncio.sleep(0.01)
        return reply(completion(body))


def slow(seconds: float) -> Any:
    """A script entry: the model thinks for so long, then answers."""

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        await asyncio.sleep(seconds)
        return reply(completion(body))

    return answer
