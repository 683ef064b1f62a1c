"""Requests larger than the server takes: a typed error, whichever way they come, and what is smaller goes on."""

from __future__ import annotations

import gzip
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from agentlightning.store import InMemoryLightningStore, create_store_app
from agentlightning.store.http import largest_body

ENQUEUE = "/v1/agl/queues/rollouts/enqueue"
PROTOBUF = {"content-type": "application/x-protobuf"}
ONE_MIB = b" " * 2**20
TOO_MANY = 4
"""MiB; two values of the largest size and one more are taken."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AGL_MAX_VALUE_BYTES", str(2**20))
    largest_body.cache_clear()
    yield
    largest_body.cache_clear()


@pytest.fixture
async def http(small: None) -> AsyncIterator[httpx.AsyncClient]:
    store = InMemoryLightningStore()
    transport = httpx.ASGITransport(app=create_store_app(store))
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:
        yield client
    await store.close()


async def _in_pieces(mib: int, end: bytes = b"") -> AsyncIterator[bytes]:
    for _ in range(mib):
        yield ONE_MIB
    yield end


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: (ENQUEUE, {"content": TOO_MANY * ONE_MIB}),
        lambda: (ENQUEUE, {"content": _in_pieces(TOO_MANY)}),
        lambda: ("/v1/traces", {"content": TOO_MANY * ONE_MIB, "headers": PROTOBUF}),
        lambda: (
            "/v1/traces",
            {"content": gzip.compress(TOO_MANY * ONE_MIB), "headers": {**PROTOBUF, "content-encoding": "gzip"}},
        ),
    ],
    ids=["said", "in pieces", "otlp", "unpacked"],
)
async def test_too_large(http: httpx.AsyncClient, request_of: Any) -> None:
    path, arguments = request_of()
    answer = await http.post(path, **arguments)
    assert (answer.status_code, answer.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert "AGL_MAX_VALUE_BYTES" in answer.json()["hint"]
    assert (await http.get("/v1/agl/statistics")).json()["total_rollouts"] == 0


async def test_without_a_length_it_may_be_as_large_as_with_one(http: httpx.AsyncClient) -> None:
    answer = await http.post(ENQUEUE, content=_in_pieces(2, b'{"rollouts": [{"input": "x"}]}'))
    assert (answer.status_code, answer.json()[0]["input"]) == (201, "x")


async def test_json_that_is_too_deep_is_no_trace(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/traces", content=b"[" * 100_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "BAD_INPUT")


async def test_no_such_route(http: httpx.AsyncClient) -> None:
    for method, path, status in (("GET", "/v1/agl/nothing", 404), ("DELETE", "/v1/agl/rollouts", 405)):
        answer = await http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, "NOT_FOUND")
        assert path in answer.json()["message"]


async def test_a_client_that_leaves_in_the_middle_is_no_fault_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    store = InMemoryLightningStore()
    app = create_store_app(store)
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/agl/rollouts", "headers": [(b"content-length", b"100")]}
    await app({**scope, "query_string": b"", "http_version": "1.1", "root_path": ""}, receive, send)
    assert said[0]["status"] == 499
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await store.close()
