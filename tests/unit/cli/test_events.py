"""`agl store events`: printing and following, as a person or a program reads it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.store import LightningStoreServer, SqlLightningStore
from tests.unit.cli.test_store import agl


@pytest.fixture
def path(tmp_path: Path) -> str:
    async def fill() -> None:
        store = SqlLightningStore(tmp_path / "store.db")
        for number in range(3):
            started = await store.start_rollout({"n": number, "text": "ä" * 300})
            await store.update_attempt(started.rollout_id, "latest", status="succeeded")
        await store.close()

    asyncio.run(fill())
    return str(tmp_path / "store.db")


def test_lines_for_people_are_short(path: str) -> None:
    lines = agl("events", path).stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["rollout.started", "attempt.completed", "rollout.completed"] * 3
    assert max(map(len, lines)) <= 200
    assert lines[0].endswith("…")


def test_json_lines_are_whole_events(path: str) -> None:
    events = [json.loads(line) for line in agl("events", path, "--json").stdout.splitlines()]
    assert [event["data"]["input"]["n"] for event in events[::3]] == [0, 1, 2]
    one = ["--rollout", events[3]["rollout_id"], "--kind", "rollout.started", "--kind", "rollout.completed"]
    chosen = [json.loads(line) for line in agl("events", path, "--json", *one).stdout.splitlines()]
    assert chosen == [events[3], events[5]]
    later = agl("events", path, "--json", "--after", str(events[-1]["no"] - 1)).stdout.splitlines()
    assert [json.loads(line) for line in later] == events[-1:]
    assert agl("events", path, "--after", "now").stdout == ""


def test_bad_input(path: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="position"):
        agl("events", path, "--after", "yesterday")
    with pytest.raises(BadInputError, match="position"):
        agl("events", path, "--after", "-3")
    with pytest.raises(BadInputError, match=r"no\.such"):
        agl("events", path, "--kind", "no.such")
    with pytest.raises(NotFoundError):
        agl("events", str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()


def test_following_prints_what_another_process_does_until_interrupted(path: str) -> None:
    code = "from agentlightning.cli.main import main; main()"
    command = [sys.executable, "-c", code, "store", "events", path, "-f", "--after", "now"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    async def go_on() -> None:
        store = SqlLightningStore(path)
        while process.poll() is None and not seen.done():
            await store.add_resources({})
            await asyncio.wait({seen}, timeout=0.2)
        await store.close()

    async def watch() -> str:
        nonlocal seen
        assert process.stdout is not None
        seen = asyncio.ensure_future(asyncio.to_thread(process.stdout.readline))
        await asyncio.wait_for(go_on(), 100)
        return await seen

    seen: asyncio.Future[str]
    line = asyncio.run(watch())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert line.split()[2] == "resource.added"
    assert process.returncode == 130


async def test_a_served_store_is_read_over_http(path: str) -> None:
    store = SqlLightningStore(path)
    server = LightningStoreServer(store, port=0)
    await server.start()
    result = await asyncio.to_thread(agl, "events", server.endpoint, "--kind", "rollout.completed")
    await server.stop()
    await store.close()
    assert len(result.stdout.splitlines()) == 3
