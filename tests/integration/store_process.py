"""A store server as a process of its own, for tests that kill it: `python store_process.py PATH PORT`."""

from __future__ import annotations

import asyncio
import sys

from agentlightning.store import LightningStoreServer, SqlLightningStore


async def main(path: str, port: str) -> None:
    store = SqlLightningStore(path)
    server = LightningStoreServer(store, port=int(port), launch_mode="asyncio")
    await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
