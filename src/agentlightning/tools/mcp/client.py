"""Tools of other MCP servers as ours: `mcp:SERVER:TOOL`. Servers are those in the settings on disk, no others.

Each server's connection lives in a task of its own (the protocol's library wants it opened and closed in one place); a
server that ended is started again by the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, ClassVar, TextIO, cast

from pydantic import BaseModel, ConfigDict

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, MissingExtraError
from agentlightning.kit.redaction import Redaction
from agentlightning.tools.base import Tool, ToolContext, ToolError, ToolResult, ToolUnavailableError
from agentlightning.tools.settings import McpSettings

log = logging.getLogger(__name__)

_DESCRIPTION_CHARS = 2_000
_REASON_CHARS = 500
_HIDDEN = "[hidden]"
_SHORTEST_KEY = 8
"""Shorter values of variables are rather words than keys."""
_LINE_BYTES = 16_384
_LAST_WORDS_S = 2.0
_START_S = 30.0
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


class _AnyArguments(BaseModel):
    """The server itself checks them by its schema."""

    model_config = ConfigDict(extra="allow", frozen=True)


class McpTool(Tool):
    """One tool of a server."""

    Arguments: ClassVar[type[BaseModel]] = _AnyArguments

    def __init__(self, link: _Link, name: str, description: str, schema: dict[str, Any]) -> None:
        self._link = link
        self._remote = name
        self._schema = schema
        self.name = f"mcp:{link.name}:{name}"
        self.description = (description or name)[:_DESCRIPTION_CHARS]
        self.permission = link.settings.permission

    def parameters(self) -> dict[str, Any]:
        return self._schema

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        result = await self._link.call(self._remote, arguments.model_dump())
        parts = [one.text if one.type == "text" else f"[{one.type}]" for one in result.content]
        hidden = self._link.redaction.text
        text = hidden("\n".join(parts)) or "(nothing)"
        return ToolResult(text, _each_text(result.structured_content, hidden), is_error=bool(result.is_error))


class McpMissing(Tool):
    """Stands for all tools of a server that cannot be used, as `mcp:SERVER`, and says why."""

    Arguments: ClassVar[type[BaseModel]] = _AnyArguments

    def __init__(self, server: str, settings: McpSettings, reason: str) -> None:
        self.name = f"mcp:{server}"
        self.description = f"The tools of the MCP server {server}."
        self.permission = settings.permission
        self.unavailable = reason

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        raise ToolUnavailableError(self.unavailable)


class McpServers:
    """The configured servers. Use as a context manager, or call `open` and `close`.

    Args:
        settings: By name, from `ToolSettings.mcp`.
    """

    def __init__(self, settings: Mapping[str, McpSettings]) -> None:
        self._links = {name: _Link(name, one) for name, one in settings.items()}
        self.reasons: dict[str, str] = {}
        """Why a server's tools are not there, by its name."""

    def missing(self, reason: str = "") -> dict[str, Tool]:
        """What stands for servers whose tools are not there, by its name: with that reason all of them."""
        reasons = dict.fromkeys(self._links, reason) if reason else self.reasons
        return {f"mcp:{name}": McpMissing(name, self._links[name].settings, why) for name, why in reasons.items()}

    async def __aenter__(self) -> dict[str, Tool]:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> dict[str, Tool]:
        """Start all servers and ask for their tools; one that fails is left out and noted in `reasons`."""
        found: dict[str, Tool] = {}
        results = await asyncio.gather(*(link.tools() for link in self._links.values()), return_exceptions=True)
        for name, result in zip(self._links, results, strict=True):
            if isinstance(result, AgentLightningError):
                self.reasons[name] = str(result)
            elif isinstance(result, Exception):  # what it answers is not of the protocol
                why = self._links[name].redaction.text(f"{type(result).__name__}: {result}")[:_REASON_CHARS]
                self.reasons[name] = f"The MCP server {name} cannot be used: {why}"
            elif isinstance(result, BaseException):
                raise result
            else:
                found.update({tool.name: tool for tool in result})
        return found

    async def close(self) -> None:
        """End all connections, and the servers that were started for them."""
        await asyncio.gather(*(link.close() for link in self._links.values()))


class _Link:
    """The connection to one server."""

    def __init__(self, name: str, settings: McpSettings) -> None:
        self.name = name
        self.settings = settings
        self.redaction = Redaction(_keys(settings), _HIDDEN, shortest=_SHORTEST_KEY)
        self._task: asyncio.Task[None] | None = None
        self._client: Any = None
        self._over = asyncio.Event()

    async def tools(self) -> list[McpTool]:
        client = await self._connected()
        found: list[McpTool] = []
        cursor: str | None = None
        while True:
            page = await self._guarded(client.list_tools(cursor=cursor))
            for one in page.tools:
                if self.settings.tools is None or one.name in self.settings.tools:
                    found.append(McpTool(self, one.name, one.description or "", dict(one.input_schema)))
            cursor = page.next_cursor
            if not cursor or len(found) > 500:
                return found

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        client = await self._connected()
        return await self._guarded(client.call_tool(name, arguments))

    async def close(self) -> None:
        self._over.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=10)
            await cancelled(self._task)
            self._task = None

    async def _guarded(self, waiting: Any) -> Any:
        """The library's failures as ours. A connection that broke is given up; the next call makes another."""
        from mcp.shared.exceptions import MCPError

        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await waiting
        except MCPError as error:
            if "closed" in str(error).lower():
                await self._give_up()
            raise ToolError(f"The MCP server {self.name} says: {self.redaction.text(str(error))}.") from error
        except TimeoutError as error:
            raise ToolError(
                f"The MCP server {self.name} did not answer within {self.settings.timeout_s:g} s."
            ) from error
        except (OSError, RuntimeError) as error:
            await self._give_up()
            why = self.redaction.text(str(error))
            raise ToolUnavailableError(f"The MCP server {self.name} is gone: {why}.") from error

    async def _give_up(self) -> None:
        await self.close()
        self._client = None

    async def _connected(self) -> Any:
        if self._task is not None and not self._task.done():
            return self._client
        self._over = asyncio.Event()
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(ready))
        try:
            async with asyncio.timeout(_START_S):
                self._client = await ready
        except TimeoutError as error:
            await self.close()
            raise ToolUnavailableError(f"The MCP server {self.name} did not start within {_START_S:g} s.") from error
        return self._client

    async def _hold(self, ready: asyncio.Future[Any]) -> None:
        try:
            async with self._connection() as client:
                ready.set_result(client)
                await self._over.wait()
        except Exception as error:  # noqa: BLE001  # whatever a server's start raises, told to who waits for it
            if not ready.done():
                known = isinstance(error, AgentLightningError)
                why = self.redaction.text(str(_innermost(error)))
                reason = ToolUnavailableError(f"The MCP server {self.name} cannot be used: {why}.")
                ready.set_exception(error if known else reason)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Any]:
        try:
            import httpx2
            from mcp import Client, StdioServerParameters
            from mcp.client.stdio import stdio_client
            from mcp.client.streamable_http import streamable_http_client
        except ImportError as error:
            raise MissingExtraError(
                f"MCP needs the package {error.name}.", hint="Run: pip install 'agentlightning[tools]'"
            ) from error
        if self.settings.command:
            program, *arguments = self.settings.command
            server = StdioServerParameters(command=program, args=list(arguments), env=self._environment())
            async with self._told() as lines, Client(stdio_client(server, errlog=lines)) as client:
                yield client
            return
        headers = {name: self._variable(variable) for name, variable in self.settings.headers_env.items()}
        timeout = httpx2.Timeout(30.0, read=self.settings.timeout_s)
        async with (
            httpx2.AsyncClient(headers=headers, timeout=timeout, trust_env=False) as http,
            Client(streamable_http_client(cast("str", self.settings.url), http_client=http)) as client,
        ):
            yield client

    @contextlib.asynccontextmanager
    async def _told(self) -> AsyncGenerator[TextIO]:
        """A file for what a started server prints as errors: it is logged, line by line, without its keys."""
        reading, writing = os.pipe()
        lines = asyncio.StreamReader(limit=_LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(reading, "rb")
        )
        task = asyncio.create_task(self._log(lines))
        try:
            with os.fdopen(writing, "w") as errors:
                yield errors
            await asyncio.wait({task}, timeout=_LAST_WORDS_S)  # a child of the server may hold it open
        finally:
            await cancelled(task)
            transport.close()

    async def _log(self, lines: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await lines.readuntil()
            except asyncio.IncompleteReadError as error:
                line = error.partial
            except asyncio.LimitOverrunError as error:
                line = await lines.readexactly(error.consumed)
            if not line:
                return
            text = self.redaction.text(line.decode(errors="replace").rstrip())
            log.warning("The MCP server %s: %s", self.name, _HIDDEN if self.redaction.has_part(text) else text)

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return kept | {name: self._variable(name) for name in self.settings.env}

    def _variable(self, name: str) -> str:
        if name not in os.environ:
            raise ToolUnavailableError(
                f"The MCP server {self.name} needs a variable that is not set.", hint=f"Set {name}."
            )
        return os.environ[name]


def _keys(settings: McpSettings) -> list[str]:
    values = [os.environ.get(name, "") for name in (*settings.env, *settings.headers_env.values())]
    return [*values, *(value.rpartition(" ")[2] for value in values)]  # of "Bearer KEY" the key alone, too


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """JSON with its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _each_text(one, change) for name, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_each_text(one, change) for one in cast("list[Any]", value)]
    return value


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error
