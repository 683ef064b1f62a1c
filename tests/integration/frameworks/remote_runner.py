"""A runner in an interpreter of its own, as an agent's own environment has it: no torch, other versions of things.

python remote_runner.py STORE_URL agent.py:function score.py:function N_ROLLOUTS
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import agentlightning as agl
from agentlightning.store import LightningStoreClient


async def main(store_url: str, agent: str, evaluator: str, n_rollouts: int) -> None:
    store = LightningStoreClient(store_url)
    runner: Any = agl.LitAgentRunner(
        max_rollouts=n_rollouts, max_concurrency=n_rollouts, evaluator=evaluator, gateway_url=store_url
    )
    try:
        with runner.run_context(agent=agent, store=store):
            await runner.iter()
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
