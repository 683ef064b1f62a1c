"""One engine for a module's tests, and a gateway with a store in front of it for each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import pytest
import pytest_asyncio

from agentlightning import nano
from agentlightning.learner.client import EngineClient
from tests.integration.frameworks.lab import Lab, holding_clients, running_lab


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncGenerator[EngineClient]:
    async with await EngineClient.start(str(nano.model_path()), threads=1, device="cpu") as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def lab(engine: EngineClient) -> AsyncGenerator[Lab]:
    async with running_lab(engine) as lab:
        yield lab


@pytest.fixture(autouse=True)
def held_clients() -> Iterator[None]:
    with holding_clients():
        yield
