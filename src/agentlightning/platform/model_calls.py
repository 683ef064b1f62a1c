"""Single calls of a configured model by the platform itself, through its own gateway and so within its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from agentlightning.gateway import Gateway
from agentlightning.kit.errors import UpstreamError
from agentlightning.platform.models_config import ModelNotConfiguredError

TIMEOUT_S = 120.0


class GatewayChat:
    """Asks a model through the gateway of this process.

    Args:
        gateway: Answers it; called for each question, because it is there only while the platform runs.
        model: Says which model; `None` when there is none.
    """

    def __init__(self, gateway: Callable[[], Gateway], model: Callable[[], Awaitable[str | None]]) -> None:
        self._gateway = gateway
        self._model = model

    async def complete(
        self,
        messages: list[dict[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        schema: dict[str, Any] | None = None,
    ) -> str:
        """What the model says; with `schema` it is asked for JSON of that form.

        Raises:
            ModelNotConfiguredError: There is no model.
            UpstreamError: It does not answer, or with an error.
        """
        model = await self._model()
        if model is None:
            raise ModelNotConfiguredError
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if schema is not None:
            named = {"name": "answer", "schema": schema, "strict": False}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        # Past the door: who may ask for this has been asked before.
        transport = httpx.ASGITransport(app=self._gateway().app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.internal") as client:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    answered = await client.post("/v1/chat/completions", json=body, timeout=None)
            except TimeoutError as error:
                raise UpstreamError(f"The model {model} did not answer within {TIMEOUT_S:.0f} s.") from error
        if answered.status_code != 200:
            raise UpstreamError(
                f"The model {model} answered {answered.status_code}.", details={"answer": answered.text[:500]}
            )
        try:
            said = answered.json()["choices"][0]["message"].get("content")
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise UpstreamError(f"The model {model} answered something that is no completion.") from error
        return str(said or "")
