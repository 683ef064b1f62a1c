"""Attack case A25: what runs here opens no port that another machine could reach."""

from __future__ import annotations

from typing import Any

import psutil

from agentlightning import nano
from agentlightning.learner.client import EngineClient
from agentlightning.store import LightningStoreServer
from tests.integration import runner_agents
from tests.integration.runner_pools import enqueue, finished


def listening() -> list[str]:
    """Addresses at which this process and those below it take connections."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [each for process in family for each in process.net_connections("inet")]
    return [each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN]


async def test_a25_server_runners_and_engine_take_connections_of_this_machine_only(
    server: LightningStoreServer, start: Any
) -> None:
    async with await EngineClient.start(str(nano.model_path()), threads=1, device="cpu"):
        await start(runner_agents.decorated, n_runners=2)
        await finished(server, await enqueue(server, [1, 2]))
        addresses = listening()
    assert addresses, "the store's server is one"
    assert set(addresses) == {"127.0.0.1"}
