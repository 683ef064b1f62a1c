"""What runs here and how much there is. Reads; changes nothing."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Table, func, select

from agentlightning import __version__
from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.database import Base, Database

COUNTED = {
    "users": ("users", None),
    "agents": ("agents", "status"),
    "tasks": ("tasks", "status"),
    "knowledge_items": ("knowledge_items", None),
    "experiments": ("rl_experiments", "status"),
}
"""Name in the answer: table, and the column that the number is divided by."""

_started = time.time()


class Resources(BaseModel):
    """Of the machine, in percent, and of this process."""

    cpu_percent: float
    memory_percent: float
    disk_percent: float
    """Of the disk that holds the platform's folder."""
    process_memory_mb: float


class Process(BaseModel):
    """The worker that answers. Times are Unix seconds."""

    version: str
    python: str
    pid: int
    started_at: float
    uptime_s: float


class Counts(BaseModel):
    """How many there are, and of which state."""

    total: int
    by_status: dict[str, int] | None = None


def process() -> Process:
    """This one."""
    now = time.time()
    return Process(
        version=__version__,
        python=sys.version.split()[0],
        pid=os.getpid(),
        started_at=_started,
        uptime_s=now - _started,
    )


def resources(folder: str) -> Resources:
    """As they are now. The processor's share is since the last time it was asked for."""
    import psutil

    return Resources(
        cpu_percent=psutil.cpu_percent(interval=None),
        memory_percent=psutil.virtual_memory().percent,
        disk_percent=psutil.disk_usage(folder).percent,
        process_memory_mb=psutil.Process().memory_info().rss / 2**20,
    )


async def counts(database: Database) -> dict[str, Counts]:
    """Of each table in `COUNTED` that there is."""
    found: dict[str, Counts] = {}
    async with database.read() as session:
        for name, (table_name, column) in COUNTED.items():
            table: Table | None = Base.metadata.tables.get(table_name)
            if table is None:
                continue
            if column is None:
                total = (await session.execute(select(func.count()).select_from(table))).scalar_one()
                found[name] = Counts(total=total)
                continue
            rows = await session.execute(select(table.c[column], func.count()).group_by(table.c[column]))
            by_status = {str(status): int(count) for status, count in rows}
            found[name] = Counts(total=sum(by_status.values()), by_status=by_status)
    return found


async def store_counts(store: Any) -> dict[str, Any]:
    """What the store counts; why not, if it does not answer."""
    try:
        return {key: value for key, value in (await store.statistics()).items() if key != "name"}
    except AgentLightningError as error:
        return {"error": error.code}
