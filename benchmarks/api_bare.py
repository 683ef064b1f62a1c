"""The bare endpoints beside which `benchmarks/api.py` measures: FastAPI, the same reads, the same answers, no checks.

    python benchmarks/api_bare.py direct|orm DATABASE_URL

`direct` is as little as there can be between FastAPI and the database: one SQL statement, on SQLite by the driver in
the event loop itself, and a dict. `orm` is written as most applications are: a session for each request, objects, and
a response model. Both run in the server and event loop that `agl up` runs in.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Any

import orjson
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import Response
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.bridge import run_sync
from agentlightning.kit.http import HttpServer
from agentlightning.kit.signals import stop_requests
from agentlightning.platform.agents.models import Agent
from agentlightning.platform.agents.schemas import AgentsPage, AgentSummary
from agentlightning.platform.database import Database
from agentlightning.platform.envelope import Success
from agentlightning.platform.knowledge.models import KnowledgeItem
from agentlightning.platform.knowledge.schemas import ItemOut
from agentlightning.platform.tasks.models import Task
from agentlightning.platform.tasks.schemas import TaskOut

Fetch = Callable[[str, dict[str, Any]], Awaitable[list[Any]]]

TASK = """SELECT t.id, t.status, t.task_description, t.agent_id, a.name, t.agent_version, t.priority, t.urgency,
    t.context, t.session_id, t.attempts, t.created_at, t.started_at, t.completed_at, t.execution_time_ms, t.result,
    t.rollout_id, t.owner_id FROM tasks t JOIN agents a ON a.id = t.agent_id WHERE t.id = :id"""
ITEM = """SELECT id, title, content, category, tags, metadata, source, version, created_at, updated_at, created_by
    FROM knowledge_items WHERE id = :id"""
AGENTS = """SELECT id, name, type, description, status, version, {fields}, builtin, created_at, updated_at,
    last_activity FROM agents WHERE id > 0 AND status != 'deleted' ORDER BY id LIMIT 101"""
FIELDS = ("role", "capabilities", "tools", "model")


def envelope(data: Any) -> Response:
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    body = {
        "success": True,
        "data": data,
        "message": "",
        "timestamp": now,
        "request_id": "req_0123456789abcdef01234567",
    }
    return Response(orjson.dumps(body), media_type="application/json")


def value(found: Any) -> Any:
    """Of a JSON column."""
    return json.loads(found) if isinstance(found, str) else found


def moment(found: Any) -> Any:
    if isinstance(found, str):
        return found[:23].replace(" ", "T") + "Z"
    return None if found is None else found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def whole(found: Any) -> Any:
    if isinstance(found, str):
        return found.replace(" ", "T") + "Z"
    return None if found is None else found.isoformat().replace("+00:00", "Z")


def seconds(found: Any) -> float:
    return datetime.fromisoformat(found + "+00:00").timestamp() if isinstance(found, str) else found.timestamp()


def direct(fetch: Fetch, *, is_sqlite: bool) -> FastAPI:
    app = FastAPI()
    way = "json_extract(config, '$.{0}')" if is_sqlite else "config -> '{0}'"
    agents = AGENTS.format(fields=", ".join(way.format(name) for name in FIELDS))

    def part(found: Any, default: Any) -> Any:
        return default if found is None else value(found)

    @app.get("/api/v2/tasks/{task_id}")
    async def one_task(task_id: int) -> Response:
        rows = await fetch(TASK, {"id": task_id})
        if not rows:
            raise HTTPException(404)
        t = rows[0]
        data = {
            "task_id": t[0],
            "status": t[1],
            "task": t[2],
            "agent_id": t[3],
            "agent": t[4],
            "agent_version": t[5],
            "priority": t[6],
            "urgency": t[7],
            "context": value(t[8]),
            "session_id": t[9],
            "attempts": t[10],
            "created_at": moment(t[11]),
            "started_at": moment(t[12]),
            "completed_at": moment(t[13]),
            "execution_time_ms": t[14],
            "result": value(t[15]),
            "error": None,
            "rollout_id": t[16],
            "owner_id": f"user_{t[17]}",
        }
        return envelope(data)

    @app.get("/api/v2/knowledge/{item_id}")
    async def one_item(item_id: int) -> Response:
        rows = await fetch(ITEM, {"id": item_id})
        if not rows:
            raise HTTPException(404)
        i = rows[0]
        data = {
            "id": i[0],
            "title": i[1],
            "content": i[2],
            "truncated": False,
            "category": i[3],
            "tags": value(i[4]),
            "metadata": value(i[5]),
            "source": i[6],
            "version": i[7],
            "created_at": seconds(i[8]),
            "updated_at": seconds(i[9]),
            "created_by": i[10],
        }
        return envelope(data)

    @app.get("/api/v2/agents")
    async def all_agents() -> Response:
        found = [
            {
                "id": a[0],
                "name": a[1],
                "type": a[2],
                "description": a[3],
                "status": a[4],
                "version": a[5],
                "role": a[6] or "",
                "capabilities": part(a[7], []),
                "tools": part(a[8], []),
                "model": a[9],
                "shipped": a[10] is not None,
                "created_at": whole(a[11]),
                "updated_at": whole(a[12]),
                "last_activity": whole(a[13]),
            }
            for a in await fetch(agents, {})
        ]
        return envelope({"agents": found, "next": None})

    return app


def orm(database: Database) -> FastAPI:
    app = FastAPI()

    async def session() -> AsyncGenerator[AsyncSession]:
        async with database.read() as opened:
            yield opened

    opens: Any = Depends(session)

    def success(data: Any) -> dict[str, Any]:
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        return {"data": data, "message": "", "timestamp": now, "request_id": "req_0123456789abcdef01234567"}

    @app.get("/api/v2/tasks/{task_id}", response_model=Success[TaskOut])
    async def one_task(task_id: int, opened: AsyncSession = opens) -> Any:
        found = (
            await opened.execute(
                select(Task, Agent.name).join(Agent, Agent.id == Task.agent_id).where(Task.id == task_id)
            )
        ).one_or_none()
        if found is None:
            raise HTTPException(404)
        task, agent = found
        taken = ("status", "agent_id", "agent_version", "priority", "urgency", "context", "session_id", "attempts",
                 "execution_time_ms", "result", "rollout_id")  # fmt: skip
        times = {name: moment(getattr(task, name)) for name in ("created_at", "started_at", "completed_at")}
        more = {"task_id": task.id, "task": task.task_description, "agent": agent, "error": None}
        return success({**{n: getattr(task, n) for n in taken}, **times, **more, "owner_id": f"user_{task.owner_id}"})

    @app.get("/api/v2/knowledge/{item_id}", response_model=Success[ItemOut])
    async def one_item(item_id: int, opened: AsyncSession = opens) -> Any:
        item = await opened.get(KnowledgeItem, item_id)
        if item is None:
            raise HTTPException(404)
        taken = ("id", "title", "content", "category", "tags", "source", "version", "created_by")
        times = {name: getattr(item, name).timestamp() for name in ("created_at", "updated_at")}
        return success({**{n: getattr(item, n) for n in taken}, **times, "metadata": item.about, "truncated": False})

    @app.get("/api/v2/agents", response_model=Success[AgentsPage])
    async def all_agents(opened: AsyncSession = opens) -> Any:
        plain = (Agent.id, Agent.name, Agent.type, Agent.description, Agent.status, Agent.version, Agent.builtin,
                 Agent.created_at, Agent.updated_at, Agent.last_activity)  # fmt: skip
        query = select(*plain, *(Agent.config[name].label(name) for name in FIELDS))
        rows = (await opened.execute(query.where(Agent.status != "deleted").order_by(Agent.id).limit(101))).mappings()
        found = [
            AgentSummary(
                **{
                    **row,
                    "role": row["role"] or "",
                    "capabilities": row["capabilities"] or [],
                    "tools": row["tools"] or [],
                },
                shipped=row["builtin"] is not None,
            )
            for row in rows
        ]
        return success({"agents": found, "next": None})

    return app


def fetcher(database: Database) -> Fetch:
    if database.file is None:

        async def ask(query: str, values: dict[str, Any]) -> list[Any]:
            async with database.engine.connect() as connection:
                return list((await connection.execute(text(query), values)).fetchall())

        return ask
    opened = sqlite3.connect(database.file, isolation_level=None)
    opened.execute("PRAGMA query_only=ON")

    async def read(query: str, values: dict[str, Any]) -> list[Any]:
        return opened.execute(query, values).fetchall()

    return read


async def main(kind: str, url: str) -> None:
    database = Database(url)
    app = direct(fetcher(database), is_sqlite=database.is_sqlite) if kind == "direct" else orm(database)
    stopped = asyncio.Event()
    with stop_requests(lambda number: stopped.set()):
        async with HttpServer(app) as server:
            print(f"listening on {server.url}", flush=True)
            await stopped.wait()
    await database.close()


if __name__ == "__main__":
    run_sync(main(*sys.argv[1:]))
