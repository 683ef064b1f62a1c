"""`agl store replay`: what it builds, what it says, what it refuses, and that it leaves nothing half."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.schemas import EnqueueRolloutRequest
from agentlightning.store import SqlLightningStore
from tests.unit.cli.test_store import agl, content_of, fill


def files(folder: Path, name: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{name}*"))


def history_of(location: str) -> dict[str, Any]:
    """What is stored, without signs of life, which are no history."""
    found: dict[str, Any] = asyncio.run(content_of(location))
    del found["workers"]
    for rollout in found["rollouts"]:
        if rollout.get("attempt"):
            del rollout["attempt"]["last_heartbeat_time"]
    return found


def test_a_store_again_in_either_database(tmp_path: Path, fresh_postgres_url: str) -> None:
    first = str(tmp_path / "first.db")
    asyncio.run(fill(first))
    expected = history_of(first)
    for target in (str(tmp_path / "again.db"), fresh_postgres_url):
        done = json.loads(agl("replay", first, target, "--json").stdout)
        assert (done["rows"]["rollouts"], done["rows"]["spans"], done["without_history"]) == (31, 60, 0)
        assert done["events"] == done["last"] == done["rows"]["events"]
        assert history_of(target) == expected


def test_as_it_was(tmp_path: Path) -> None:
    first = str(tmp_path / "first.db")
    asyncio.run(fill(first))
    told = [json.loads(line) for line in agl("events", first, "--json").stdout.splitlines()]
    said = agl("replay", first, str(tmp_path / "one.db"), "--until-event", str(told[1]["no"])).stdout
    assert said.startswith("replayed 2 events up to number 2, 20")
    assert "1 rollouts" in said
    moment = datetime.fromtimestamp(told[9]["time"] + 1e-5, UTC).isoformat()
    done = json.loads(agl("replay", first, str(tmp_path / "ten.db"), "--until-time", moment, "--json").stdout)
    assert done["last"] >= 10
    assert done["last_time"] <= told[9]["time"] + 1e-5
    assert "0 events: nothing" in agl("replay", first, str(tmp_path / "none.db"), "--until-event", "0").stdout


def test_what_is_refused(tmp_path: Path) -> None:
    first, new = str(tmp_path / "first.db"), str(tmp_path / "new.db")
    asyncio.run(fill(first))
    with pytest.raises(ConflictError, match="not empty"):
        agl("replay", first, _filled(tmp_path))
    with pytest.raises(NotFoundError, match="There is no event 9999; the last one is"):
        agl("replay", first, new, "--until-event", "9999")
    with pytest.raises(BadInputError, match="until-time"):
        agl("replay", first, new, "--until-time", "yesterday")
    with pytest.raises(NotFoundError, match=r"nowhere\.db"):
        agl("replay", str(tmp_path / "nowhere.db"), new)
    assert files(tmp_path, "new.db") == []


def _filled(folder: Path) -> str:
    asyncio.run(fill(f"{folder}/filled.db"))
    return f"{folder}/filled.db"


def test_rollouts_without_events_are_counted(tmp_path: Path) -> None:
    first = tmp_path / "first.db"

    async def forget() -> None:
        await fill(str(first))
        store = SqlLightningStore(first)
        await store._database.write(lambda db: db.run("DELETE FROM events", {}))  # pyright: ignore[reportPrivateUsage]
        await store.close()

    asyncio.run(forget())
    result = agl("replay", str(first), str(tmp_path / "new.db"))
    assert "31 rollouts have no events" in result.stderr


def test_ctrl_c_leaves_nothing_and_the_same_command_begins_again(tmp_path: Path) -> None:
    first, new = tmp_path / "first.db", tmp_path / "new.db"

    async def enqueue() -> None:
        store = SqlLightningStore(first)
        for _ in range(20):
            await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=n) for n in range(1000)])
        await store.close()

    asyncio.run(enqueue())
    command = [sys.executable, "-m", "agentlightning.cli.main", "store", "replay", str(first), str(new)]
    environment = {**os.environ, "AGL_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as replaying:
        deadline = time.monotonic() + 120
        while not (tmp_path / ".new.db.replaying").exists():
            assert replaying.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)  # until it has begun
        replaying.send_signal(signal.SIGINT)
        _, said = replaying.communicate(timeout=60)
    assert replaying.returncode == 130
    assert "is as it was; the same command begins again" in said
    assert files(tmp_path, "new.db") == []
    assert json.loads(agl("replay", str(first), str(new), "--json").stdout)["rows"]["rollouts"] == 20_000
