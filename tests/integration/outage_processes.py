"""Processes that the outage tests kill; run as `python -m tests.integration.outage_processes ROLE ARGUMENTS`.

Each prints `ready PORT` when it accepts connections.
"""

from __future__ import annotations

import asyncio
import sys

from agentlightning.gateway import EngineUpstream, Gateway
from agentlightning.store import LightningStoreClient, LightningStoreServer, SqlLightningStore
from tests.unit.gateway.scripted import ScriptedEngine


async def store(path: str, port: str) -> None:
    server = LightningStoreServer(SqlLightningStore(path), port=int(port), launch_mode="asyncio")
    await server.start()
    print("ready", server.endpoint.rsplit(":", 1)[1], flush=True)
    await asyncio.Event().wait()


async def gateway(store_url: str, spool: str) -> None:
    client = LightningStoreClient(store_url)
    async with Gateway(client, [EngineUpstream(ScriptedEngine())], spool=spool) as started:
        print("ready", started.url.rsplit(":", 1)[1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run({"store": store, "gateway": gateway}[sys.argv[1]](*sys.argv[2:]))
