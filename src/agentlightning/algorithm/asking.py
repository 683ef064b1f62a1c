"""Models that write prompts and judge outputs, behind any OpenAI-compatible address. Knows nothing of what is asked."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from agentlightning.kit.errors import UpstreamError
from agentlightning.schemas import LLM, NamedResources

Message = dict[str, Any]
DEFAULT_MODEL = "gpt-4.1-mini"
_TRANSIENT = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_MAX_WAIT_S = 20.0


@dataclass(frozen=True)
class Reply:
    """What a model answered, and what that took."""

    text: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0


class Proposer(Protocol):
    """A model that can be asked."""

    model: str | None
    """Used when a question names none."""

    async def ask(self, messages: Sequence[Message], *, model: str, temperature: float) -> Reply:
        """One completion.

        Raises:
            UpstreamError: There is no answer.
        """
        ...


class HttpProposer:
    """An OpenAI-compatible server.

    Args:
        base_url: With `/v1`.
        model: Its name there.
        api_key: Sent as bearer token.
        timeout_s: Longest time for one answer.
        max_attempts: Tries in all, when the server is busy or away.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 180.0,
        max_attempts: int = 4,
    ) -> None:
        self.model: str | None = model
        self.base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._verify: ssl.SSLContext | bool | None = None

    async def ask(self, messages: Sequence[Message], *, model: str, temperature: float) -> Reply:
        """See `Proposer`."""
        body = {"model": model, "messages": list(messages), "temperature": temperature}
        # Made once: reading the certificates takes longer than many a call.
        if self._verify is None:
            self._verify = httpx.create_ssl_context() if self.base_url.startswith("https:") else False
        async with httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s, verify=self._verify) as client:
            attempt = 1
            while not isinstance(answer := await self._try(client, body), Reply):
                status, told = answer
                if attempt == self._max_attempts or (status is not None and status not in _TRANSIENT):
                    break
                await asyncio.sleep(random.uniform(0.1, min(_MAX_WAIT_S, 0.5 * 2**attempt)))
                attempt += 1
            else:
                return answer
        raise UpstreamError(
            f"The proposer {model!r} at {self.base_url} does not answer: {told}",
            hint="Check the address, the model's name and OPENAI_API_KEY.",
        )

    async def _try(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Reply | tuple[int | None, str]:
        try:
            response = await client.post(f"{self.base_url}/chat/completions", json=body)
        except httpx.HTTPError as error:
            return None, f"{type(error).__name__}: {error}".rstrip(": ")
        if response.status_code >= 400:
            return response.status_code, f"HTTP {response.status_code}: {response.text[:300]}"
        try:
            return reply_of(response.json(), body["model"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return 502, f"its answer is no chat completion: {response.text[:200]}"


class ClientProposer:
    """An `openai.AsyncOpenAI` client, or anything of its shape; it does its own retries."""

    def __init__(self, client: Any, model: str | None = None) -> None:
        self.model = model
        self._client = client

    async def ask(self, messages: Sequence[Message], *, model: str, temperature: float) -> Reply:
        """See `Proposer`."""
        try:
            answer = await self._client.chat.completions.create(
                model=model, messages=list(messages), temperature=temperature
            )
        except Exception as error:  # whatever the client's library raises is the same to us: no answer
            raise UpstreamError(f"The proposer {model!r} does not answer: {type(error).__name__}: {error}") from error
        return reply_of(answer if isinstance(answer, dict) else answer.model_dump(), model)


def reply_of(answer: dict[str, Any], model: str) -> Reply:
    """The first choice of a chat completion; a missing text is an empty one."""
    usage = answer.get("usage") or {}
    return Reply(
        text=answer["choices"][0]["message"].get("content") or "",
        model=model,
        input_tokens=usage.get("prompt_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or 0,
    )


def resource_proposer(resources: NamedResources | None, model: str | None = None) -> Proposer | None:
    """The agent's own model server, if there is one among its resources."""
    for resource in (resources or {}).values():
        if isinstance(resource, LLM):
            key = resource.api_key or os.environ.get("OPENAI_API_KEY")
            return HttpProposer(resource.endpoint, model or resource.model, key)
    return None


def environment_proposer(model: str | None = None) -> Proposer | None:
    """The server that `OPENAI_BASE_URL`, `OPENAI_API_KEY` and `OPENAI_MODEL` name, if they do."""
    address, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not (address or key):
        return None
    named = model or os.environ.get("OPENAI_MODEL") or DEFAULT_MODEL
    return HttpProposer(address or "https://api.openai.com/v1", named, key)
