"""The tool `http`: calls to the hosts and with the methods that the settings allow. Keys are added here, unseen."""

from __future__ import annotations

import json
import os
from typing import Any, Literal, cast

import httpx
from pydantic import BaseModel, Field

from agentlightning.kit.redaction import Redaction
from agentlightning.tools.base import Tool, ToolArguments, ToolContext, ToolResult, cut
from agentlightning.tools.settings import HttpSecret, ToolSettings, host_matches
from agentlightning.tools.web import GuardedClient, WebDeniedError, WebError

_SHOWN_CHARS = 16_000
_SHOWN_HEADERS = ("content-type", "location", "retry-after", "link", "etag", "last-modified")
_HIDDEN = "[hidden]"


class HttpArguments(ToolArguments):
    url: str = Field(max_length=8000, description="http or https; its host has to be an allowed one.")
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: dict[str, str] = Field(default_factory=dict[str, str], description="Keys are added by themselves.")
    body: str | dict[str, Any] | list[Any] | None = Field(default=None, description="Text, or JSON as it is.")


class HttpTool(Tool):
    """Call HTTP interfaces."""

    name = "http"
    Arguments = HttpArguments

    def __init__(self, settings: ToolSettings, client: GuardedClient) -> None:
        self._hosts = settings.http.hosts
        self._client = client
        self._secrets: list[tuple[HttpSecret, str]] = []
        missing: list[str] = []
        for secret in settings.http.secrets:
            value = os.environ.get(secret.value_env, "")
            missing += [] if value else [secret.value_env]
            self._secrets.append((secret, value))
        self._redaction = Redaction((value for _, value in self._secrets), _HIDDEN)
        if not self._hosts:
            self.unavailable = (
                'no host may be called. Write [http.hosts] into the tools\' settings: "api.example.com" = ["GET"].'
            )
        elif missing:
            self.unavailable = f"keys are missing. Set {', '.join(missing)}."
        allowed = "; ".join(f"{host} ({', '.join(methods)})" for host, methods in self._hosts.items())
        self.description = (
            f"Call an HTTP interface. Allowed: {allowed or 'nothing'}. Keys are added where they are configured."
        )

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        wanted = cast("HttpArguments", arguments)
        headers = dict(wanted.headers)
        body = wanted.body.encode() if isinstance(wanted.body, str) else None
        if wanted.body is not None and body is None:
            body = json.dumps(wanted.body).encode()
            headers.setdefault("content-type", "application/json")
        keys = self._keys_for(wanted.url)
        try:
            answer = await self._client.fetch(
                wanted.method,
                wanted.url,
                headers=headers,
                secret_headers=keys,
                body=body,
                permit=self._permit,
                cut=True,
            )
        except WebError as error:  # it may have been redirected to an address with what it was sent
            error.message = self._redaction.text(error.message)
            raise
        hidden = self._redaction.text  # an interface may repeat what it was sent
        text, url = hidden(answer.text), hidden(answer.url)
        shown = {name: hidden(answer.headers[name]) for name in _SHOWN_HEADERS if name in answer.headers}
        lines = [f"Status: {answer.status}", *(f"{name}: {value}" for name, value in shown.items())]
        note = "\n[the answer was longer and was cut]" if answer.truncated else ""
        data = {"status": answer.status, "headers": shown, "body": cut(text, _SHOWN_CHARS), "url": url}
        return ToolResult(
            "\n".join(lines) + "\n\n" + cut(text, _SHOWN_CHARS) + note, data, is_error=answer.status >= 400
        )

    def _permit(self, method: str, url: httpx.URL) -> None:
        port = _port(url)
        methods = [m for host, allowed in self._hosts.items() if host_matches(host, url.host, port) for m in allowed]
        if not methods:
            raise WebDeniedError(f"{url.host}:{port} is not among the hosts that may be called.")
        if method not in methods:
            raise WebDeniedError(f"{method} may not be sent to {url.host}.", hint=f"Allowed: {', '.join(methods)}.")

    def _keys_for(self, url: str) -> dict[str, str]:
        """The keys bound to the host; over plain http only to hosts of one's own networks."""
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            return {}  # refused by the client, with its reason
        port = _port(parsed)
        if parsed.scheme != "https" and f"{parsed.host}:{port}" not in self._client.trusted:
            return {}
        return {
            secret.header: secret.prefix + value
            for secret, value in self._secrets
            if host_matches(secret.host, parsed.host, port)
        }


def _port(url: httpx.URL) -> int:
    return url.port or {"https": 443}.get(url.scheme, 80)
