"""A gateway in front of a scripted OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from agentlightning.gateway import OpenAIUpstream, RetryPolicy
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import ScriptedOpenAIServer


@asynccontextmanager
async def fronted(**options: Any) -> AsyncGenerator[tuple[Rig, ScriptedOpenAIServer]]:
    """By default as in front of a vLLM, without a second try."""
    options = {"capture": "vllm", "retry": RetryPolicy(max_attempts=1), **options}
    async with ScriptedOpenAIServer() as server, running_rig([OpenAIUpstream(server.base_url, **options)]) as rig:
        yield rig, server
