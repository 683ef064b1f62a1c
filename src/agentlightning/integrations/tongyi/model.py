"""One model behind an OpenAI-compatible address, asked with the official client. Knows nothing of research."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentlightning.kit.errors import ConfigError, MissingExtraError, UpstreamError
from agentlightning.schemas import LLM

Message = dict[str, Any]
_OPENAI = "https://api.openai.com/v1"
CALL_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class ToolCall:
    """What the model wants to use."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """One message of the model."""

    text: str
    calls: tuple[ToolCall, ...] = ()

    def as_message(self) -> Message:
        """For the next question."""
        message: Message = {"role": "assistant", "content": self.text or None}
        if self.calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.calls
            ]
        return message


class Model:
    """A model that can be asked; use it as an async context manager."""

    def __init__(self, llm: LLM) -> None:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise MissingExtraError("No module named 'openai'", hint="pip install 'agentlightning[tongyi]'") from error
        self._llm = llm
        self._client = AsyncOpenAI(
            base_url=llm.endpoint,
            api_key=llm.api_key or os.environ.get("OPENAI_API_KEY") or "unused",
            timeout=CALL_TIMEOUT_S,
            max_retries=2,
        )
        self.calls = 0

    async def __aenter__(self) -> Model:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.close()

    async def ask(self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] = ()) -> Reply:
        """One answer.

        Raises:
            UpstreamError: There is none.
        """
        from openai import OpenAIError

        options: dict[str, Any] = {**self._llm.sampling_parameters}
        if tools:
            options["tools"] = list(tools)
        self.calls += 1
        try:
            create: Any = self._client.chat.completions.create  # its overloads are for literal arguments
            answer = await create(model=self._llm.model, messages=list(messages), **options)
        except (OpenAIError, ValueError) as error:
            raise UpstreamError(
                f"The model {self._llm.model!r} at {self._llm.endpoint} does not answer: {_short(error)}",
                hint="Check --base-url (OPENAI_BASE_URL), --model and OPENAI_API_KEY.",
            ) from error
        choices: Any = getattr(answer, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise UpstreamError(
                f"What {self._llm.endpoint} answers is no chat completion.", hint="Its address ends in /v1, mostly."
            )
        message = choices[0].message
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments or "")
            for call in message.tool_calls or ()
            if getattr(call, "function", None) is not None
        )
        return Reply(message.content or "", calls)


async def find_llm(base_url: str | None, model: str | None) -> LLM:
    """The model to use: what was said, else `OPENAI_BASE_URL` and `OPENAI_MODEL`, else the server's only model.

    Raises:
        ConfigError: There is no server, or the server has several models and none was named.
        UpstreamError: The server does not say what it has.
    """
    key = os.environ.get("OPENAI_API_KEY")
    endpoint = base_url or os.environ.get("OPENAI_BASE_URL") or (_OPENAI if key else None)
    if endpoint is None:
        raise ConfigError(
            "There is no model to do research with.",
            hint="Give --base-url URL (any OpenAI-compatible server, such as one of `agl serve`), or set "
            "OPENAI_BASE_URL or OPENAI_API_KEY.",
        )
    named = model or os.environ.get("OPENAI_MODEL")
    return LLM(endpoint=endpoint, model=named or await _only_model(endpoint, key), api_key=key)


async def _only_model(endpoint: str, key: str | None) -> str:
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=15, headers=headers) as client:
            answer = await client.get(f"{endpoint.rstrip('/')}/models")
            answer.raise_for_status()
            names = [str(entry["id"]) for entry in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise UpstreamError(
            f"The server {endpoint} does not say which models it has: {_short(error)}",
            hint="Check --base-url, or name the model with --model.",
        ) from error
    if len(names) != 1:
        shown = ", ".join(names[:8]) or "none"
        raise ConfigError(f"The server {endpoint} has {len(names)} models.", hint=f"Say --model; there are: {shown}.")
    return names[0]


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
