"""Gives every item its vector, in the background. What is done is in the database, so it goes on where it was stopped.

An item counts as done under the name of the embedder: another embedder, and all are done again, while searches by words
go on as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.database import Database, is_unavailable
from agentlightning.platform.embedding.base import Embedder
from agentlightning.platform.knowledge import repository
from agentlightning.platform.knowledge.pgvectors import PgVectors

if TYPE_CHECKING:
    from agentlightning.platform.knowledge.meaning import Meaning

log = logging.getLogger(__name__)

_BATCH = 128
_LOOK_S = 5.0  # for items that other processes have written
_AGAIN_S = 30.0
_TEXT = 4_000  # characters of an item that its vector stands for


class Indexer:
    """Runs from `start` to `close`; `drain` does all that waits, at once."""

    def __init__(self, database: Database, embedder: Embedder, meaning: Meaning) -> None:
        self._database = database
        self._embedder = embedder
        self._meaning = meaning
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.error = ""
        """Why it does not get on; empty when it does."""

    def start(self) -> None:
        """Begin."""
        self._task = self._task or asyncio.create_task(self._run(), name="agl-knowledge-indexer")

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def drain(self, report: Callable[[int], None] | None = None) -> int:
        """Give vectors to all that wait; answers how many.

        Args:
            report: Is told how many are done, now and then.
        """
        done = 0
        while count := await self.step():
            done += count
            if report is not None:
                report(done)
        return done

    async def step(self) -> int:
        """One batch; answers how many items it had."""
        name = self._embedder.name
        async with self._database.read() as session:
            waiting = await repository.pending(session, name, _BATCH)
        if not waiting:
            return 0
        index = await self._meaning.index()
        vectors = await self._embedder.embed([entry.text[:_TEXT] for entry in waiting], bulk=True)
        raw = [vector.astype("<f2").tobytes() for vector in vectors]
        async with self._database.write() as session:
            kept = await repository.keep_vectors(session, name, waiting, raw)
            if isinstance(index, PgVectors):
                place = {entry.id: number for number, entry in enumerate(waiting)}
                await index.keep(session, kept, [vectors[place[number]] for number in kept])
        return len(waiting)

    async def close(self) -> None:
        """Stop; what is half done is done again."""
        task, self._task = self._task, None
        await cancelled(task)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause = _LOOK_S
            try:
                await self.drain()
                self.error = ""
            except Exception as error:  # it must not end: it is looked at in /api/v2/health
                if not isinstance(error, (AgentLightningError, OSError)) and not is_unavailable(error):
                    log.exception("items wait for their vectors")
                if not self.error:
                    log.warning("items wait for their vectors: %s", error)
                self.error = orjson.dumps(str(error)[:200]).decode().strip('"')
                pause = _AGAIN_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for of Python 3.11 may swallow the cancellation
                    await self._wake.wait()
            if self.error:
                await asyncio.sleep(1)
