"""Client and server: restarts, lost answers, pickling, several event loops, taken ports."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agentlightning.kit.errors import (
    AgentLightningError,
    BadInputError,
    ConfigError,
    ForbiddenError,
    PortInUseError,
    StorageError,
    UnauthorizedError,
)
from agentlightning.kit.http import HttpServer
from agentlightning.schemas import EnqueueRolloutRequest
from agentlightning.store import (
    InMemoryLightningStore,
    LightningStoreClient,
    LightningStoreServer,
    SqlLightningStore,
)
from agentlightning.store.channel import _retry_after
from agentlightning.store.routes import create_store_app
from tests.contract.conftest import make_span

RETRIES: dict[str, Any] = {"retry_delays": (0.5, 0.5, 2.0, 2.0), "health_retry_delays": (0.05,) * 8}


@pytest.fixture
async def server(sql_store: SqlLightningStore) -> AsyncIterator[LightningStoreServer]:
    running = LightningStoreServer(sql_store, port=0)
    await running.start()
    yield running
    await running.close()


async def test_server_in_a_thread_is_a_store_itself(server: LightningStoreServer) -> None:
    queued = await server.enqueue_rollout("x")
    client = LightningStoreClient(server.endpoint)
    assert (await client.get_rollout_by_id(queued.rollout_id)) == queued
    assert (await server.statistics())["total_rollouts"] == 1
    assert server.otlp_traces_endpoint() == client.otlp_traces_endpoint()
    assert client.server_address == f"{server.endpoint}/v1/agl"
    assert server.capabilities["otlp_traces"]
    await server.start()  # again: harmless
    await client.close()
    await client.close()


async def test_server_pickled_becomes_a_client(server: LightningStoreServer) -> None:
    copy = pickle.loads(pickle.dumps(server))
    assert isinstance(copy, LightningStoreClient)
    queued = await copy.enqueue_rollout("x")
    again = pickle.loads(pickle.dumps(copy))
    assert await again.get_rollout_by_id(queued.rollout_id) == queued
    await copy.close()
    await again.close()


async def test_client_in_several_event_loops(server: LightningStoreServer) -> None:
    client = LightningStoreClient(server.endpoint)
    await client.enqueue_rollout("x")
    found: list[int] = []

    def elsewhere() -> None:
        async def main() -> None:
            found.append(len(await client.query_rollouts()))
            await client.close()

        asyncio.run(main())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert found == [1]
    assert len(await client.query_rollouts()) == 1
    await client.close()


async def test_many_concurrent_calls_share_requests_and_keep_their_answers(
    server: LightningStoreServer,
) -> None:
    client = LightningStoreClient(server.endpoint)
    queued = await asyncio.gather(*(client.enqueue_rollout(i) for i in range(600)))
    assert [r.input for r in queued] == list(range(600))
    results = await asyncio.gather(
        client.update_rollout("ro-none", status="failed"),
        client.get_rollout_by_id(queued[3].rollout_id),
        client.query_rollouts(sort_by="nothing"),
        client.enqueue_rollout(object()),
        return_exceptions=True,
    )
    assert [type(r).__name__ for r in results] == ["NotFoundError", "Rollout", "BadInputError", "BadInputError"]
    await client.close()


async def test_large_calls_are_split_over_requests(server: LightningStoreServer) -> None:
    client = LightningStoreClient(server.endpoint)
    started = await client.start_rollout("x")
    key = (started.rollout_id, started.attempt.attempt_id)
    blob = "x" * 1_500_000
    spans = [make_span(*key, i, attributes={"blob": blob}) for i in range(1, 6)]
    added = await asyncio.gather(*(client.add_span(span) for span in spans))
    assert sorted(s.sequence_id for s in added if s) == [1, 2, 3, 4, 5]
    assert len(await client.query_spans(started.rollout_id)) == 5
    await client.close()


async def test_calls_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    store = SqlLightningStore(tmp_path / "s.db")
    first = LightningStoreServer(store, port=0, launch_mode="asyncio")
    await first.start()
    port = int(first.endpoint.rsplit(":", 1)[1])
    client = LightningStoreClient(first.endpoint, **RETRIES)
    started = await client.start_rollout("x")
    key = (started.rollout_id, started.attempt.attempt_id)
    await first.stop()
    calls = [
        asyncio.create_task(client.add_many_spans([make_span(*key, i) for i in range(1, 4)])),
        asyncio.create_task(client.enqueue_rollout("y")),
        asyncio.create_task(client.update_attempt(*key, status="succeeded")),
        asyncio.create_task(client.dequeue_many_rollouts(timeout=8)),
    ]
    await asyncio.sleep(0.3)
    assert not any(call.done() for call in calls)
    second = LightningStoreServer(store, port=port, launch_mode="asyncio")
    await second.start()
    spans, queued, attempt, claimed = await asyncio.gather(*calls)
    assert (len(spans), attempt.status) == (3, "succeeded")  # type: ignore[arg-type, union-attr]
    assert [r.rollout_id for r in claimed] == [queued.rollout_id]  # type: ignore[union-attr]
    assert len(await client.query_rollouts()) == 2
    await client.close()
    await second.stop()
    await store.close()


class LosesAnswers:
    """An ASGI application that does what it is asked and then, now and then, breaks the connection."""

    def __init__(self, app: Any, lose: list[bool]) -> None:
        self._app = app
        self._lose = lose

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def swallow(message: Any) -> None:
            raise ConnectionResetError

        losing = scope["method"] == "POST" and self._lose and self._lose.pop(0)
        try:
            await self._app(scope, receive, swallow if losing else send)
        except ConnectionResetError:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})


async def test_repeating_after_a_lost_answer_does_nothing_twice(sql_store: SqlLightningStore) -> None:
    lose: list[bool] = []
    async with HttpServer(LosesAnswers(create_store_app(sql_store), lose)) as http:
        client = LightningStoreClient(http.url, retry_delays=(0.01, 0.01), health_retry_delays=())
        lose[:] = [True]
        await client.enqueue_many_rollouts([EnqueueRolloutRequest(input=i) for i in range(3)])
        assert len(await client.query_rollouts()) == 3
        lose[:] = [True]
        claimed = await client.dequeue_many_rollouts(limit=2)
        assert [(r.input, r.attempt.sequence_id) for r in claimed] == [(0, 1), (1, 1)]
        assert len(await client.query_rollouts(status_in=["queuing"])) == 1
        lose[:] = [True]
        started = await client.start_rollout("s")
        assert len(await client.query_rollouts()) == 4
        lose[:] = [True]
        again = await client.start_attempt(started.rollout_id)
        assert again.attempt.sequence_id == 2
        key = (started.rollout_id, again.attempt.attempt_id)
        lose[:] = [True]
        await client.add_span(make_span(*key, 1))
        assert len(await client.query_spans(started.rollout_id)) == 1
        lose[:] = [True]
        done = await client.update_attempt(*key, status="succeeded")
        assert done.status == "succeeded"
        await client.close()


async def test_server_that_never_answers_gives_a_clear_error(refusing_url: str) -> None:
    client = LightningStoreClient(refusing_url, retry_delays=(0.01,), health_retry_delays=())
    results = await asyncio.gather(
        *(client.enqueue_rollout(i) for i in range(3)), client.dequeue_rollout(), return_exceptions=True
    )
    for error in results:
        assert isinstance(error, StorageError)
        assert refusing_url in str(error)
        assert error.details["tries"] == 2
    await client.close()


async def test_server_that_hangs_runs_into_the_timeout() -> None:
    async def hang(_: Any) -> PlainTextResponse:
        await asyncio.sleep(30)
        return PlainTextResponse("late")

    async with HttpServer(
        Starlette(routes=[Route("/v1/agl/batch", hang, methods=["POST"])]), shutdown_grace_s=0.1
    ) as http:
        client = LightningStoreClient(http.url, retry_delays=(), request_timeout=0.2)
        before = time.monotonic()
        with pytest.raises(StorageError, match="does not answer"):
            await client.enqueue_rollout("x")
        assert time.monotonic() - before < 15  # half of how long the server hangs
        await client.close()


async def test_something_else_at_the_address() -> None:
    async def teapot(_: Any) -> PlainTextResponse:
        return PlainTextResponse("short and stout", 418)

    async def nonsense(_: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    routes = [
        Route("/v1/agl/batch", teapot, methods=["POST"]),
        Route("/nonsense/v1/agl/batch", nonsense, methods=["POST"]),
    ]
    async with HttpServer(Starlette(routes=routes)) as http:
        client = LightningStoreClient(http.url, retry_delays=())
        with pytest.raises(StorageError, match="418"):
            await client.enqueue_rollout("x")
        await client.close()
        client = LightningStoreClient(f"{http.url}/nonsense", retry_delays=())
        with pytest.raises(AgentLightningError, match="no store"):
            await client.enqueue_rollout("x")
        await client.close()


async def test_token(sql_store: SqlLightningStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server = LightningStoreServer(sql_store, port=0, token="s3cret", launch_mode="asyncio")
    await server.start()
    stranger = LightningStoreClient(server.endpoint)
    impostor = LightningStoreClient(server.endpoint, token="s3cres")
    for client, kind in ((stranger, UnauthorizedError), (impostor, ForbiddenError)):
        for call in (
            client.enqueue_rollout("x"),
            client.dequeue_many_rollouts(timeout=5),
            client.wait_for_rollouts(rollout_ids=["x"], timeout=5),
            client.statistics(),
        ):
            with pytest.raises(kind) as caught:
                await call
            assert "AGL_STORE_TOKEN" in caught.value.hint
            assert "s3cre" not in str(caught.value)
    friend = LightningStoreClient(server.endpoint, token="s3cret")
    await friend.enqueue_rollout("x")
    assert await friend.query_rollouts(status_in=["queuing"])
    copies = [pickle.loads(pickle.dumps(server)), pickle.loads(pickle.dumps(friend))]
    for copy in copies:
        assert len(await copy.query_rollouts()) == 1
    assert "s3cre" not in caplog.text + "".join(repr(vars(c)) + repr(c._settings) for c in (friend, impostor))
    for client in (stranger, impostor, friend, *copies):
        await client.close()
    await server.stop()


async def test_token_is_asked_for_on_every_route_but_health(sql_store: SqlLightningStore) -> None:
    app = create_store_app(sql_store, token="s3cret")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as http:
        assert (await http.get("/v1/agl/health")).status_code == 200
        protected = [r for r in app.routes if isinstance(r, Route) and "health" not in r.path]
        protected = [r for r in protected if not r.path.startswith(("/v1/metrics", "/v1/logs", "/v1/development"))]
        assert any(r.path == "/v1/traces" for r in protected)
        for route in protected:
            path = route.path.replace("{", "").replace("}", "")
            for method in (route.methods or set()) - {"HEAD"}:
                refused = await http.request(method, path)
                assert (refused.status_code, refused.json()["code"]) == (401, "UNAUTHORIZED")
                assert refused.headers["www-authenticate"] == "Bearer"
                wrong = await http.request(method, path, headers={"authorization": "Bearer s3cret2"})
                assert (wrong.status_code, wrong.json()["code"]) == (403, "FORBIDDEN")
        assert (await http.get("/v1/agl/rollouts", headers={"authorization": "bearer s3cret"})).status_code == 200


async def test_token_of_the_environment_serves_both_sides(
    sql_store: SqlLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_STORE_TOKEN", "from-outside")
    server = LightningStoreServer(sql_store, port=0, launch_mode="asyncio")
    await server.start()
    friend = LightningStoreClient(server.endpoint)
    await friend.enqueue_rollout("x")
    monkeypatch.delenv("AGL_STORE_TOKEN")
    stranger = LightningStoreClient(server.endpoint)
    with pytest.raises(UnauthorizedError):
        await stranger.enqueue_rollout("x")
    await friend.close()
    await stranger.close()
    await server.stop()


async def test_retry_after_is_waited_for(sql_store: SqlLightningStore) -> None:
    asked: list[float] = []
    app = create_store_app(sql_store)

    async def busy_once(scope: Any, receive: Any, send: Any) -> None:
        asked.append(time.monotonic())
        if len(asked) > 1:
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 429, "headers": [(b"retry-after", b"0.5")]})
        await send({"type": "http.response.body", "body": b""})

    async with HttpServer(busy_once) as http:
        client = LightningStoreClient(http.url, retry_delays=(0.01,), health_retry_delays=())
        await client.enqueue_rollout("x")
        await client.close()
    assert asked[1] - asked[0] >= 0.5


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 0), ("", 0), ("2", 2), ("1e9", 60), ("-1", 0), ("nan", 0), ("Fri, 31 Dec", 0)]
)
def test_what_counts_as_retry_after(header: str | None, seconds: float) -> None:
    assert _retry_after(header) == seconds


@pytest.mark.parametrize("mode", ["thread", "asyncio"])
async def test_port_taken(server: LightningStoreServer, mode: Any) -> None:
    port = int(server.endpoint.rsplit(":", 1)[1])
    store = InMemoryLightningStore()
    second = LightningStoreServer(store, port=port, launch_mode=mode)
    with pytest.raises(PortInUseError, match=str(port)):
        await second.start()
    await second.stop()
    await store.close()


async def test_unknown_launch_mode(sql_store: SqlLightningStore) -> None:
    with pytest.raises(ConfigError, match="mp"):
        LightningStoreServer(sql_store, launch_mode="mp")  # type: ignore[arg-type]


async def test_run_forever_until_cancelled(sql_store: SqlLightningStore) -> None:
    server = LightningStoreServer(sql_store, port=0, launch_mode="asyncio")
    running = asyncio.create_task(server.run_forever())
    await asyncio.sleep(0.1)
    client = LightningStoreClient(server.endpoint, retry_delays=())
    assert len(await client.query_rollouts()) == 0
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(StorageError):
        await client.query_rollouts()
    await client.close()


async def test_claimer_that_hangs_up_gets_nothing(server: LightningStoreServer) -> None:
    client = LightningStoreClient(server.endpoint)
    waiting = asyncio.create_task(client.dequeue_many_rollouts(timeout=10))
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await client.close()
    await asyncio.sleep(0.1)
    await server.enqueue_rollout("x")
    await asyncio.sleep(0.05)
    assert [r.status for r in await server.query_rollouts()] == ["queuing"]


async def test_input_that_cannot_be_sent(server: LightningStoreServer) -> None:
    client = LightningStoreClient(server.endpoint)
    with pytest.raises(BadInputError, match="object"):
        await client.update_worker("w", {"x": object()})
    await client.close()
