"""Imports asked for over HTTP: documents at once, packages in the background with a row that tells how far."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import select, update

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, ConflictError
from agentlightning.platform.columns import now
from agentlightning.platform.database import Database
from agentlightning.platform.knowledge import repository
from agentlightning.platform.knowledge.folders import drafts_of
from agentlightning.platform.knowledge.importing import Report, Source, import_sources
from agentlightning.platform.knowledge.models import KnowledgeImport
from agentlightning.platform.knowledge.packages import package_sources
from agentlightning.platform.knowledge.reading import UnreadableError, read_guarded
from agentlightning.platform.knowledge.repository import Draft

log = logging.getLogger(__name__)

_SILENT = timedelta(minutes=2)  # an import that has not been heard of for so long has been interrupted


class Imports:
    """Of one platform.

    Args:
        database: Where to.
        wake: Called when there are new items.
    """

    def __init__(self, database: Database, wake: Callable[[], None]) -> None:
        self._database = database
        self._wake = wake
        self._task: asyncio.Task[None] | None = None

    async def documents(
        self, documents: Sequence[tuple[str, bytes]], by: str, category: str | None, tags: Sequence[str]
    ) -> Report:
        """Import documents; each is read in a process with limits."""
        sources = [_source(name, raw, category, tags) for name, raw in documents]
        done = await import_sources(self._database, sources, by)
        self._wake()
        return done

    async def file(self, name: str, raw: bytes, by: str, category: str | None, tags: Sequence[str]) -> Report:
        """Import one file. Where it cannot be read, what came earlier from one of that name stays.

        Raises:
            UnreadableError: There is nothing in it that can be read; the message says why.
        """
        drafts = await _drafts(name, raw, category, tags)
        if not drafts:
            raise UnreadableError("There is no text in it besides headings.")
        source = replace(_source(name, raw, category, tags), load=lambda: drafts)
        done = await import_sources(self._database, [source], by)
        self._wake()
        return done

    async def start_packages(self, names: Sequence[str], by: str) -> int:
        """Begin to import the documentation of installed packages; answers the number of the import.

        Raises:
            NotFoundError: One of them is not installed.
            ConflictError: An import is running.
        """
        await asyncio.to_thread(lambda: next(iter(package_sources(names)), None))
        moment = now()
        async with self._database.write() as session:
            running = select(KnowledgeImport.id).where(KnowledgeImport.status == "running").with_for_update()
            stale = KnowledgeImport.updated_at < moment - _SILENT
            await session.execute(
                update(KnowledgeImport)
                .where(KnowledgeImport.status == "running", stale)
                .values(status="interrupted")
                .execution_options(synchronize_session=False)
            )
            other = (await session.execute(running.limit(1))).scalar()
            if other is not None:
                raise ConflictError(
                    "An import is running.", hint=f"GET /api/v2/knowledge/imports/{other}", details={"id": other}
                )
            row = KnowledgeImport(
                kind="packages", status="running", report={}, started_at=moment, updated_at=moment, created_by=by
            )
            session.add(row)
            await session.flush()
            number = row.id
        self._task = asyncio.create_task(self._run(number, names, by), name="agl-knowledge-import")
        return number

    async def get(self, number: int) -> KnowledgeImport:
        """An import.

        Raises:
            NotFoundError: There is none.
        """
        async with self._database.read() as session:
            found = await repository.import_of(session, number)
        if found.status == "running" and found.updated_at < now() - _SILENT:
            found.status = "interrupted"  # its process is gone; the next import goes on
        return found

    async def close(self) -> None:
        """Stop; the next import goes on where this one was."""
        task, self._task = self._task, None
        await cancelled(task)

    async def _run(self, number: int, names: Sequence[str], by: str) -> None:
        status, report = "interrupted", Report()

        async def tell(done: Report) -> None:
            nonlocal report
            report = done
            await self._note(number, "running", done)
            self._wake()

        try:
            report = await import_sources(self._database, package_sources(names), by, tell)
            status = "done"
        except AgentLightningError as error:
            status = "failed"
            report.problems.append(error.message[:300])
        except Exception as error:
            status = "failed"
            report.problems.append(f"It ended with an error of its own ({type(error).__name__}).")
            log.exception("import %d failed", number)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._note(number, status, report))
            self._wake()

    async def _note(self, number: int, status: str, report: Report) -> None:
        async with self._database.write() as session:
            row = await repository.import_of(session, number, lock=True)
            row.status, row.report, row.updated_at = status, report.as_dict(), now()


def _source(name: str, raw: bytes, category: str | None, tags: Sequence[str]) -> Source:
    about = f"{category}\0{sorted(tags)}".encode()

    async def load() -> list[Draft]:
        return await _drafts(name, raw, category, tags)

    return Source(_key(name), hashlib.sha256(raw + about).hexdigest(), load)


async def _drafts(name: str, raw: bytes, category: str | None, tags: Sequence[str]) -> list[Draft]:
    return drafts_of(await read_guarded(name, raw), name, _key(name), category, tags)


def _key(name: str) -> str:
    return f"upload:{name}"[:700]
