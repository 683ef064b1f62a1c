"""A gateway in front of a scripted OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from agentlightning.gateway import OpenAIUpstream, RetryPolicy
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import ScriptedOpenAIServer


@asynccontextmanager
async def fronted(
    gateway: dict[str, Any] | None = None, **options: Any
) -> AsyncGenerator[tuple[Rig, ScriptedOpenAIServer]]:
    """By default as in front of a vLLM, without a second try; `gateway` has options of the gateway."""
    options = {"capture": "vllm", "retry": RetryPolicy(max_attempts=1), **options}
    async with (
        ScriptedOpenAIServer() as server,
        running_rig([OpenAIUpstream(server.base_url, **options)], **(gateway or {})) as rig,
    ):
        yield rig, server
