"""The tool: a name, a schema, a permission, and a call that ends in time. Knows no particular tool and no agent."""

from __future__ import annotations

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from agentlightning.kit.errors import AgentLightningError
from agentlightning.kit.grants import permits

MAX_TEXT_CHARS = 32_000
"""No result that a model reads is longer, whatever the tool."""
_MAX_ARGUMENT_CHARS = 4 * 2**20


class ToolError(AgentLightningError):
    """A tool cannot do what it was asked; the hint says what would work."""

    code = "TOOL_FAILED"
    status = 422


class ToolUnavailableError(ToolError):
    """The tool is off: not configured, or not possible on this machine. The message says why."""

    code = "TOOL_UNAVAILABLE"
    status = 503


class ToolDeniedError(ToolError):
    """The caller lacks the permission, or the settings do not allow it."""

    code = "TOOL_DENIED"
    status = 403


class ToolTimeoutError(ToolError):
    """The tool did not finish within its time."""

    code = "TOOL_TIMEOUT"
    status = 504


class ToolArguments(BaseModel):
    """Base of what a model may pass: unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ToolContext:
    """Who calls, from where, and with what. Made by the caller, never by the model."""

    workspace: Path | None = None
    """Folder of the `files` tool and of what `python` writes; without it the settings' own."""
    user: str = ""
    session: str = ""
    permissions: frozenset[str] = frozenset()
    """What the user and the agent may both do: `agent:assign`, `agent:*`, `*`."""
    deadline_s: float = 60.0
    services: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a tool needs of the program around it, e.g. `knowledge`."""


@dataclass(frozen=True)
class ToolResult:
    """What came out."""

    text: str
    """For the model to read; bounded."""
    data: Any = None
    """The same as JSON, for programs."""
    is_error: bool = False


class Tool(ABC):
    """One thing an agent can do.

    Attributes:
        name: As agents list it, e.g. `web_search` or `mcp:files:read`.
        description: For the model: what it does, when to use it, its limits.
        permission: What the caller has to be granted; `None` for nothing.
        unavailable: Why it cannot be used here; empty when it can.
    """

    name: str
    description: str
    Arguments: ClassVar[type[BaseModel]]
    permission: str | None = "agent:assign"
    unavailable: str = ""

    @abstractmethod
    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        """Do it. `arguments` is an instance of `Arguments`.

        Raises:
            AgentLightningError: It cannot be done; `run` tells the model.
        """

    async def start(self) -> None:  # noqa: B027  # most tools know at once
        """Find out whether it works here, and set `unavailable`."""

    async def close(self) -> None:  # noqa: B027  # most tools hold nothing
        """Let go of connections."""

    @property
    def function_name(self) -> str:
        """The name in the form that model servers take: letters, digits, `_` and `-`, at most 64."""
        return re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:64]

    def parameters(self) -> dict[str, Any]:
        """JSON schema of the arguments."""
        return self.Arguments.model_json_schema()

    def definition(self) -> dict[str, Any]:
        """As an OpenAI function."""
        return {
            "type": "function",
            "function": {
                "name": self.function_name,
                "description": self.description,
                "parameters": self.parameters(),
            },
        }

    def parse(self, raw: str | dict[str, Any]) -> BaseModel:
        """The arguments that a model wrote.

        Raises:
            ToolError: They are no JSON object or do not fit the schema; the message lists every fault.
        """
        values: Any = raw
        if isinstance(raw, str):
            if len(raw) > _MAX_ARGUMENT_CHARS:
                raise ToolError(f"The arguments are {len(raw)} characters long; {_MAX_ARGUMENT_CHARS} is the most.")
            try:
                values = json.loads(raw or "{}")
            except (ValueError, RecursionError) as error:
                raise ToolError(f"The arguments of {self.name} are no JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ToolError(f"The arguments of {self.name} have to be a JSON object.")
        try:
            return self.Arguments.model_validate(cast("dict[str, Any]", values))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, at['loc'])) or 'arguments'}: {at['msg']}" for at in error.errors())
            known = ", ".join(self.Arguments.model_fields)
            raise ToolError(f"The arguments of {self.name} are wrong: {faults}.", hint=f"Known: {known}.") from error

    def check(self, context: ToolContext) -> None:
        """Whether this caller may use it, here.

        Raises:
            ToolUnavailableError: It is off.
            ToolDeniedError: The permission is missing.
        """
        if self.unavailable:
            raise ToolUnavailableError(f"The tool {self.name} is not available: {self.unavailable}")
        if self.permission is not None and not permits(context.permissions, self.permission):
            raise ToolDeniedError(f"The tool {self.name} needs the permission {self.permission}.")

    async def run(self, raw: str | dict[str, Any], context: ToolContext) -> ToolResult:
        """Check, call, bound. What a model got wrong comes back as an error for it to read, never as an exception."""
        limit = asyncio.timeout(context.deadline_s)
        try:
            self.check(context)
            arguments = self.parse(raw)
            async with limit:
                return bounded(await self.call(arguments, context))
        except AgentLightningError as error:
            return failed(error)
        except TimeoutError:
            if not limit.expired():
                raise
            return failed(ToolTimeoutError(f"{self.name} did not finish within {context.deadline_s:g} s."))


def usable(names: Iterable[str], tools: Mapping[str, Tool]) -> list[Tool]:
    """Those that an agent lists and that work here, in that order; `mcp:SERVER` is all of that server's."""
    found: dict[str, Tool] = {}
    for name in names:
        if name in tools:
            found[name] = tools[name]
        elif name.startswith("mcp:"):
            found |= {key: tool for key, tool in tools.items() if key.startswith(f"{name}:")}
    return [tool for tool in found.values() if not tool.unavailable]


def failed(error: AgentLightningError) -> ToolResult:
    """An error as a result: its code, what it says, and the next step."""
    return bounded(ToolResult(f"Error {error.code}: {error}", error.as_dict(), is_error=True))


def bounded(result: ToolResult) -> ToolResult:
    """The result with a text that is not longer than `MAX_TEXT_CHARS`; what was cut is said."""
    return replace(result, text=cut(result.text, MAX_TEXT_CHARS)) if len(result.text) > MAX_TEXT_CHARS else result


def cut(text: str, chars: int) -> str:
    """The beginning and the end of `text`, `chars` in all, with what lies between counted."""
    if len(text) <= chars:
        return text
    mark = f"\n[... {len(text) - chars} characters left out ...]\n"
    room = max(chars - len(mark), 0)
    head = room - room // 3
    return text[:head] + mark + (text[-(room - head) :] if room > head else "")
