"""A store that a forked process has inherited: the server is reached over HTTP, a database has to be opened anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import asyncio, multiprocessing, sys
from agentlightning.kit.errors import StorageError
from agentlightning.store import InMemoryLightningStore, LightningStoreServer, SqlLightningStore


async def use(store):
    rollout = await store.enqueue_rollout("of the child")
    assert (await store.statistics())["total_rollouts"] == 2
    await store.close()
    return rollout.rollout_id


def child(server, opened, answers):
    answers.put(asyncio.run(use(server)))
    try:
        asyncio.run(use(opened))
    except StorageError as error:
        answers.put(str(error))
    asyncio.run(opened.close())


async def main():
    opened = SqlLightningStore(sys.argv[1])
    memory = InMemoryLightningStore()
    server = LightningStoreServer(memory, port=0, token="a-secret")
    await server.start()
    await server.enqueue_rollout("of the parent")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(server, opened, answers))
    process.start()
    rollout_id = await asyncio.to_thread(answers.get)
    message = await asyncio.to_thread(answers.get)
    await asyncio.to_thread(process.join)
    assert [r.rollout_id for r in await server.query_rollouts()][1] == rollout_id
    await opened.enqueue_rollout("goes on")
    await server.stop()
    await memory.close()
    await opened.close()
    print(message)


asyncio.run(main())
"""


def test_forked_processes(tmp_path: Path) -> None:
    # A program of its own, since the tests' process has threads of all kinds.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _PROGRAM, str(tmp_path / "store.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "forked from it" in done.stdout
    assert "LightningStoreServer" in done.stdout
