"""Binding model calls to rollouts, with the real `openai` client."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from agentlightning.agent import OtelTracer, instrument
from agentlightning.agent.scope import GatewayAddress, RolloutScope, enter_scope, unattributed
from tests.unit.agent.echo_server import EchoServer

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
async def closed_connections():
    yield
    await instrument.close_connections()


@pytest.fixture
def server():
    instrument.uninstall()
    unattributed.clear()
    with EchoServer() as server:
        yield server
    instrument.uninstall()
    unattributed.clear()


def scope(server: EchoServer, i: int = 1, prefix: str = "") -> RolloutScope:
    gateway = GatewayAddress.parse(f"{server.url}{prefix}/v1")
    return RolloutScope(f"r{i}", f"a{i}", gateways=frozenset({gateway}))


def bound(i: int = 1, prefix: str = "") -> str:
    return f"{prefix}/rollout/r{i}/attempt/a{i}/v1/chat/completions"


async def test_one_async_client_serves_many_rollouts_at_once(server):
    instrument.install()
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:

        async def rollout(i: int) -> list[str]:
            with enter_scope(scope(server, i)):
                paths = []
                for _ in range(2):
                    answer = await client.chat.completions.create(model="m", messages=MESSAGES)
                    paths.append(answer.choices[0].message.content)
                    await asyncio.sleep(0)
                return paths

        answers = await asyncio.gather(*(rollout(i) for i in range(30)))
    assert answers == [[bound(i), bound(i)] for i in range(30)]


async def test_streams_are_bound(server):
    instrument.install()
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        with enter_scope(scope(server)):
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == [bound()]


def test_sync_client_is_bound_in_threads_of_all_kinds(server):
    instrument.install()
    with OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client, ThreadPoolExecutor(2) as pool:

        def ask() -> str:
            return client.chat.completions.create(model="m", messages=MESSAGES).choices[0].message.content

        pool.submit(lambda: None).result()  # a thread of the pool that is older than any rollout
        other = scope(server, 2)
        with enter_scope(other):  # two rollouts are open, so nothing can be guessed
            contextvars.copy_context().run(_ask_in_scope, scope(server, 1), ask, pool)
            assert pool.submit(ask).result() == bound(2)
        streamed = None
        with enter_scope(scope(server)):
            streamed = [
                c.choices[0].delta.content
                for c in client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            ]
        assert streamed == [bound()]


def _ask_in_scope(mine, ask, pool):
    with enter_scope(mine):
        got = []
        thread = threading.Thread(target=lambda: got.append(ask()))
        thread.start()
        thread.join()
        assert got == [bound(1)]
        assert pool.submit(ask).result() == bound(1)
        assert list(pool.map(lambda _: ask(), range(2))) == [bound(1)] * 2


async def test_only_calls_to_the_gateway_inside_a_rollout_are_touched(server):
    instrument.install()
    instrument.install(frozenset({GatewayAddress.parse(f"{server.url}/v1")}))
    async with httpx.AsyncClient() as client:
        url = f"{server.url}/v1/chat/completions"
        await client.post(url, json={})
        assert unattributed.snapshot() == {"model call": 1}
        await client.post(url, json={})
        assert unattributed.snapshot() == {"model call": 2}
        with enter_scope(RolloutScope("r1", "a1")):
            await client.post(url, json={})
            await client.post(url.replace("127.0.0.1", "localhost"), json={}, headers={"traceparent": "own"})
            await client.post(f"{server.url}{bound(9)}", json={})
        with EchoServer() as elsewhere, enter_scope(RolloutScope("r1", "a1")):
            await client.post(f"{elsewhere.url}/v1/chat/completions", json={})
            assert elsewhere.requests[0][0] == "/v1/chat/completions"
    paths = [path for path, _, _ in server.requests]
    plain = "/v1/chat/completions"
    assert paths == [plain, plain, bound(), bound(), bound(9)]
    assert "traceparent" not in server.requests[0][1]
    assert server.requests[3][1]["traceparent"] == "own"


async def test_prefix_of_the_gateway_stays_in_front_and_queries_survive(server):
    instrument.install()
    async with httpx.AsyncClient() as client:
        with enter_scope(scope(server, prefix="/behind")):
            await client.post(f"{server.url}/behind/v1/chat/completions?a=1%2F2", json={})
            await client.post(f"{server.url}/other/v1/chat/completions", json={})
    assert [path for path, _, _ in server.requests] == [
        bound(prefix="/behind") + "?a=1%2F2",
        "/other/v1/chat/completions",
    ]


async def test_trace_context_names_the_rollouts_trace_and_the_innermost_span(server):
    instrument.install()
    tracer, mine = OtelTracer(), scope(server)
    async with httpx.AsyncClient() as client:
        with enter_scope(mine):
            async with tracer.trace_context(rollout_id="r1", attempt_id="a1"):
                with tracer.operation_context("op"):
                    await client.post(f"{server.url}/v1/chat/completions", json={})
    (span,) = mine.drain()
    assert server.requests[0][1]["traceparent"] == f"00-{span.trace_id}-{span.span_id}-01"
    assert mine.traceparent() == f"00-{span.trace_id}-{mine.root_span_id:016x}-01"


async def test_retries_of_the_client_are_bound_again(server):
    instrument.install()
    server.status = 503
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=1) as client:
        with enter_scope(scope(server)), pytest.raises(Exception, match="503"):
            await client.chat.completions.create(model="m", messages=MESSAGES)
    assert [path for path, _, _ in server.requests] == [bound(), bound()]


def test_installing_twice_and_uninstalling_leaves_no_trace():
    instrument.uninstall()
    before = (httpx.AsyncClient.send, httpx.Client.send, threading.Thread.start, ThreadPoolExecutor.submit)
    instrument.install()
    once = (httpx.AsyncClient.send, httpx.Client.send, threading.Thread.start, ThreadPoolExecutor.submit)
    instrument.install()
    assert once == (httpx.AsyncClient.send, httpx.Client.send, threading.Thread.start, ThreadPoolExecutor.submit)
    assert all(a is not b for a, b in zip(before, once, strict=True))
    instrument.uninstall()
    assert before == (httpx.AsyncClient.send, httpx.Client.send, threading.Thread.start, ThreadPoolExecutor.submit)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/v1", ("127.0.0.1", 8000, "")),
        ("http://[::1]:8000/v1/", ("127.0.0.1", 8000, "")),
        ("https://Gate.example/a/b/v1", ("gate.example", 443, "/a/b")),
        ("http://gate.example", ("gate.example", 80, "")),
    ],
)
def test_addresses(url, expected):
    assert GatewayAddress.parse(url)[:3] == expected


def test_address_without_a_host_is_refused():
    with pytest.raises(ValueError, match="no URL"):
        GatewayAddress.parse("/v1")


async def test_the_gateways_key_replaces_what_stands_in_the_agents_code(server, monkeypatch):
    monkeypatch.setenv("AGL_GATEWAY_URL", f"{server.url}/v1")
    monkeypatch.setenv("AGL_GATEWAY_KEY", "the-runs-key")
    instrument.install()
    sent = []
    for headers in ({"authorization": "Bearer x"}, {"x-api-key": "x"}, {"x-api-key": "x", "authorization": "y"}, {}):
        request = httpx.Request("POST", f"{server.url}/v1/chat/completions", headers=headers)
        with enter_scope(scope(server)):
            instrument.bind_request(request)
        sent.append({name: request.headers[name] for name in ("authorization", "x-api-key") if name in request.headers})
    bearer = "Bearer the-runs-key"
    both = {"authorization": bearer, "x-api-key": "the-runs-key"}
    assert sent == [{"authorization": bearer}, {"x-api-key": "the-runs-key"}, both, {"authorization": bearer}]


async def test_the_gateways_key_goes_nowhere_else(server, monkeypatch):
    monkeypatch.setenv("AGL_GATEWAY_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("AGL_GATEWAY_KEY", "the-runs-key")
    instrument.install()
    for url in (f"{server.url}/v1/chat/completions", "https://example.com/v1/chat/completions"):
        request = httpx.Request("POST", url, headers={"authorization": "Bearer own"})
        with enter_scope(scope(server)):
            instrument.bind_request(request)
        assert request.headers["authorization"] == "Bearer own"


async def test_a_key_that_came_with_the_resources_is_used(server):
    instrument.install()
    keyless = GatewayAddress.parse(f"{server.url}/v1")
    keyed = GatewayAddress.parse(f"{server.url}/v1", "of-the-resource")
    assert "of-the-resource" not in repr(keyed)
    request = httpx.Request("POST", f"{server.url}/v1/chat/completions", headers={"authorization": "Bearer unused"})
    with enter_scope(RolloutScope("r1", "a1", gateways=frozenset({keyless, keyed}))):
        instrument.bind_request(request)
    assert request.headers["authorization"] == "Bearer of-the-resource"
