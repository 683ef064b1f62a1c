"""Training events as Server-Sent Events, over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from agentlightning.store import LightningStoreServer, SqlLightningStore

SOON_S = 100.0


@pytest.fixture
async def url(sql_store: SqlLightningStore) -> AsyncIterator[str]:
    server = LightningStoreServer(sql_store, port=0, launch_mode="asyncio")
    await server.start()
    yield f"{server.endpoint}/v1/agl/events"
    await server.stop()


async def messages(reply: aiohttp.ClientResponse, count: int) -> list[dict[str, Any]]:
    """The next messages, by field."""
    found: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    async with asyncio.timeout(SOON_S):
        while len(found) < count:
            line = (await reply.content.readline()).decode().rstrip("\n")
            name, _, value = line.partition(": ")
            if line and name:
                fields[name] = value
            elif not line:
                if "data" in fields:
                    found.append({**fields, "data": json.loads(fields["data"])})
                fields = {}
    return found


async def test_a_stream_carries_what_was_and_what_comes(sql_store: SqlLightningStore, url: str) -> None:
    first = await sql_store.enqueue_rollout("a")
    async with aiohttp.ClientSession() as session, session.get(f"{url}/stream") as reply:
        assert reply.content_type == "text/event-stream"
        (was,) = await messages(reply, 1)
        assert (was["event"], was["data"]["rollout_id"]) == ("rollout.enqueued", first.rollout_id)
        assert was["data"]["data"]["input"] == "a"
        await sql_store.update_rollout(first.rollout_id, status="cancelled")
        (comes,) = await messages(reply, 1)
        assert (comes["event"], int(comes["id"])) == ("rollout.completed", comes["data"]["no"])
        assert int(comes["id"]) > int(was["id"])


async def test_a_client_that_connects_again_misses_nothing(sql_store: SqlLightningStore, url: str) -> None:
    for i in range(4):
        await sql_store.enqueue_rollout(i)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/stream") as reply:
            seen = await messages(reply, 2)
        headers = {"Last-Event-ID": seen[-1]["id"]}
        async with session.get(f"{url}/stream?after=0", headers=headers) as reply:
            rest = await messages(reply, 2)
        assert [m["data"]["data"]["input"] for m in seen + rest] == [0, 1, 2, 3]
        await sql_store.add_resources({})
        async with session.get(f"{url}/stream?kind_in=resource.added&kind_in=resource.updated") as reply:
            assert [m["event"] for m in await messages(reply, 1)] == ["resource.added"]


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?after=-1", {}),
        ("?after=x", {}),
        ("?kind_in=no.such", {}),
        ("?limit=5", {}),
        ("?timeout=5", {}),
        ("", {"Last-Event-ID": "x"}),
    ],
)
async def test_bad_parameters_are_no_stream(url: str, query: str, headers: dict[str, str]) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/stream{query}", headers=headers) as reply:
        assert (reply.status, (await reply.json())["code"]) == (422, "BAD_INPUT")


async def test_the_stream_says_why_it_ends(sql_store: SqlLightningStore, url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/stream") as reply:
        assert await reply.content.readline() == b": connected\n"
        await asyncio.sleep(0.1)
        await sql_store.close()
        (last,) = await messages(reply, 1)
        assert (last["event"], last["data"]["code"]) == ("error", "STORAGE_FAILED")
        assert await asyncio.wait_for(reply.read(), SOON_S) == b""


async def test_the_route_without_a_stream(sql_store: SqlLightningStore, url: str) -> None:
    await sql_store.enqueue_rollout("a")
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}?limit=1&kind_in=rollout.enqueued") as reply:
            page = await reply.json()
        assert [item["kind"] for item in page["items"]] == ["rollout.enqueued"]
        assert page["last"] == page["items"][0]["no"]
        waiting = asyncio.create_task(session.get(f"{url}?after={page['last']}&timeout=10"))
        await asyncio.sleep(0.1)
        await sql_store.add_resources({})
        async with await asyncio.wait_for(waiting, SOON_S) as reply:
            assert [item["kind"] for item in (await reply.json())["items"]] == ["resource.added"]
