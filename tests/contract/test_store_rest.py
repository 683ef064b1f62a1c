"""The REST routes, spoken to in raw JSON and msgpack as any client would."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from agentlightning.schemas import LLM, AttemptedRollout, PaginatedResult, Rollout, Span
from agentlightning.store import LightningStore, SqlLightningStore, create_store_app
from tests.contract.conftest import make_span

API = "/v1/agl"


@pytest.fixture
async def http(sql_store: SqlLightningStore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_store_app(sql_store, cors_allow_origins="*"))
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:
        yield client


async def _started(http: httpx.AsyncClient, **fields: Any) -> AttemptedRollout:
    reply = await http.post(f"{API}/rollouts", json={"input": {"q": 1}, **fields})
    assert reply.status_code == 201
    return AttemptedRollout.model_validate(reply.json())


async def test_health(http: httpx.AsyncClient) -> None:
    reply = await http.get(f"{API}/health")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


async def test_queue_routes(http: httpx.AsyncClient) -> None:
    body = {"rollouts": [{"input": i, "mode": "train", "config": {"max_attempts": 2}} for i in range(3)]}
    reply = await http.post(f"{API}/queues/rollouts/enqueue", json=body)
    assert reply.status_code == 201
    queued = [Rollout.model_validate(r) for r in reply.json()]
    assert [(r.input, r.config.max_attempts, r.status) for r in queued] == [(i, 2, "queuing") for i in range(3)]
    one = (await http.post(f"{API}/queues/rollouts/dequeue")).json()
    assert [AttemptedRollout.model_validate(r).input for r in one] == [0]
    rest = await http.post(f"{API}/queues/rollouts/dequeue", json={"limit": 5, "worker_id": "w"})
    assert [r["attempt"]["worker_id"] for r in rest.json()] == ["w", "w"]
    none = await http.post(f"{API}/queues/rollouts/dequeue", json={"limit": 5, "timeout": 0.05})
    assert none.json() == []
    assert (await http.post(f"{API}/queues/rollouts/dequeue", json={"limit": 0})).json() == []


async def test_rollout_routes(http: httpx.AsyncClient) -> None:
    started = await _started(http, mode="val", metadata={"g": 1}, worker_id="w")
    path = f"{API}/rollouts/{started.rollout_id}"
    assert AttemptedRollout.model_validate((await http.get(path)).json()) == started
    missing = await http.get(f"{API}/rollouts/ro-none")
    assert (missing.status_code, missing.json()["code"]) == (404, "NOT_FOUND")
    updated = (await http.post(path, json={"mode": None, "config": {"max_attempts": 3}})).json()
    assert (updated["mode"], updated["config"]["max_attempts"], updated["metadata"]) == (None, 3, {"g": 1})
    ended = (await http.post(path, json={"status": "cancelled"})).json()
    assert ended["status"] == "cancelled"
    conflict = await http.post(path, json={"status": "running"})
    assert (conflict.status_code, conflict.json()["code"]) == (409, "CONFLICT")
    assert "may become" in conflict.json()["hint"]
    waited = await http.post(f"{API}/waits/rollouts", json={"rollout_ids": [started.rollout_id], "timeout": 1})
    assert [r["status"] for r in waited.json()] == ["cancelled"]


async def test_rollout_queries_by_get_and_by_search(http: httpx.AsyncClient) -> None:
    ids = [(await _started(http)).rollout_id for _ in range(3)]
    by_get = await http.get(
        f"{API}/rollouts",
        params=[("status_in", "preparing"), ("status_in", "running"), ("limit", "2"), ("offset", "1")],
    )
    by_search = await http.post(
        f"{API}/rollouts/search", json={"status_in": ["preparing", "running"], "limit": 2, "offset": 1}
    )
    assert by_get.json() == by_search.json()
    page = PaginatedResult[AttemptedRollout].model_validate(by_get.json())
    assert ([r.rollout_id for r in page], page.total, page.limit, page.offset) == (ids[1:], 3, 2, 1)


async def test_attempt_routes(http: httpx.AsyncClient) -> None:
    started = await _started(http)
    path = f"{API}/rollouts/{started.rollout_id}/attempts"
    again = await http.post(path, json={"worker_id": "w2"})
    assert (again.status_code, again.json()["attempt"]["sequence_id"]) == (201, 2)
    assert (await http.post(path)).json()["attempt"]["sequence_id"] == 3
    assert [a["sequence_id"] for a in (await http.get(path)).json()["items"]] == [1, 2, 3]
    newest = await http.post(f"{path}/search", json={"sort_order": "desc", "limit": 1})
    assert (newest.json()["items"][0]["sequence_id"], newest.json()["total"]) == (3, 3)
    assert (await http.get(f"{path}/latest")).json()["sequence_id"] == 3
    updated = await http.post(f"{path}/latest", json={"status": "running", "last_heartbeat_time": 5.5})
    assert (updated.json()["status"], updated.json()["last_heartbeat_time"]) == ("running", 5.5)
    null = await http.post(f"{path}/latest", json={"status": None})
    assert null.status_code == 422
    attempt_id = updated.json()["attempt_id"]
    bulk = await http.post(
        f"{API}/attempts/bulk",
        json={"updates": [{"rollout_id": started.rollout_id, "attempt_id": attempt_id, "status": "succeeded"}]},
    )
    assert [a["status"] for a in bulk.json()] == ["succeeded"]


async def test_worker_and_statistics_routes(http: httpx.AsyncClient) -> None:
    assert (await http.get(f"{API}/workers/w")).json() is None
    beat = await http.post(f"{API}/workers/w", json={"heartbeat_stats": {"cpu": 1}})
    assert beat.json()["heartbeat_stats"] == {"cpu": 1}
    assert (await http.post(f"{API}/workers/w")).json()["heartbeat_stats"] == {"cpu": 1}
    assert (await http.get(f"{API}/workers/w")).json()["worker_id"] == "w"
    assert (await http.get(f"{API}/workers", params={"worker_id_contains": "w"})).json()["total"] == 1
    assert (await http.post(f"{API}/workers/search", json={"status_in": ["busy"]})).json()["total"] == 0
    assert (await http.get(f"{API}/statistics")).json()["total_workers"] == 1


async def test_resource_routes(http: httpx.AsyncClient) -> None:
    assert (await http.get(f"{API}/resources/latest")).json() is None
    given = {"llm": LLM(endpoint="http://a", model="m").model_dump()}
    added = await http.post(f"{API}/resources", json=given)
    assert (added.status_code, added.json()["version"], added.json()["resources"]) == (201, 1, given)
    path = f"{API}/resources/{added.json()['resources_id']}"
    assert (await http.post(path, json=given)).json()["version"] == 2
    assert (await http.get(path)).json()["version"] == 2
    assert (await http.get(f"{API}/resources/latest")).json()["version"] == 2
    assert (await http.get(f"{API}/resources/rs-none")).json() is None
    assert (await http.get(f"{API}/resources", params={"limit": 1})).json()["total"] == 1
    bad = await http.post(f"{API}/resources", json={"llm": {"resource_type": "llm"}})
    assert (bad.status_code, bad.json()["code"]) == (422, "BAD_INPUT")


async def test_span_routes(http: httpx.AsyncClient) -> None:
    started = await _started(http)
    key = (started.rollout_id, started.attempt.attempt_id)
    number = await http.post(f"{API}/spans/next", json={"rollout_id": key[0], "attempt_id": key[1]})
    assert number.json() == {"sequence_id": 1}
    span = make_span(*key, 1)
    added = await http.post(f"{API}/spans", json={**span.model_dump(mode="json"), "own": 5})
    assert added.status_code == 201
    assert Span.model_validate(added.json()).own == 5  # type: ignore[attr-defined]
    assert (await http.post(f"{API}/spans", json=span.model_dump(mode="json"))).json() is None
    more = [make_span(*key, name=f"n{i}").model_dump(mode="json") for i in range(2)]
    bulk = await http.post(f"{API}/spans/bulk", json={"spans": more})
    assert [s["sequence_id"] for s in bulk.json()] == [2, 3]
    found = await http.get(f"{API}/spans", params={"rollout_id": key[0], "name_contains": "n"})
    assert [s["name"] for s in found.json()["items"]] == ["n0", "n1"]
    assert found.json()["total"] == 2
    searched = await http.post(f"{API}/spans/search", json={"rollout_id": key[0], "attempt_id": "latest"})
    assert [Span.model_validate(s).sequence_id for s in searched.json()["items"]] == [1, 2, 3]
    assert searched.json()["items"][0]["own"] == 5
    many = await http.post(f"{API}/spans/search_many", json={"rollout_ids": [key[0]], "name": "n1"})
    assert [s["name"] for s in many.json()[key[0]]] == ["n1"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rollouts", {}),
        ("/rollouts", {"input": 1, "mode": "fast"}),
        ("/rollouts", {"input": 1, "config": {"max_attempts": 0}}),
        ("/rollouts", {"input": 1, "config": {"retries": 1}}),
        ("/rollouts", [1]),
        ("/queues/rollouts/enqueue", {"rollouts": [{"mode": "train"}]}),
        ("/queues/rollouts/dequeue", {"limit": "x"}),
        ("/rollouts/search", {"limit": -5}),
        ("/rollouts/search", {"sort_by": "nothing"}),
        ("/rollouts/search", {"status_in": ["done"]}),
        ("/waits/rollouts", {}),
        ("/spans", {"rollout_id": "r"}),
        ("/spans/bulk", {"spans": 3}),
        ("/batch", {"verb": "nothing"}),
        ("/attempts/bulk", {"updates": [{"status": "failed"}]}),
    ],
)
async def test_bad_input_is_422_with_a_body_that_says_why(http: httpx.AsyncClient, path: str, body: Any) -> None:
    reply = await http.post(API + path, json=body)
    assert reply.status_code == 422
    assert set(reply.json()) == {"code", "message", "hint", "details"}
    assert reply.json()["code"] == "BAD_INPUT"


async def test_bodies_that_are_not_json(http: httpx.AsyncClient) -> None:
    for headers, content in (
        ({}, b"{"),
        ({}, b"\xff\xfe"),
        ({"content-type": "application/msgpack"}, b"\xc1"),
    ):
        reply = await http.post(f"{API}/rollouts", content=content, headers=headers)
        assert reply.status_code == 422
    bad_query = await http.get(f"{API}/rollouts", params={"limit": "many"})
    assert bad_query.status_code == 422
    assert (await http.get(f"{API}/nothing")).status_code == 404


async def test_msgpack_keeps_what_json_loses(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/msgpack", "accept": "application/msgpack"}
    body = msgspec.msgpack.encode({"input": {"x": math.inf, "b": b"\x01"}})
    reply = await http.post(f"{API}/rollouts", content=body, headers=headers)
    assert reply.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(reply.content)["input"] == {"x": math.inf, "b": b"\x01"}


async def test_batch_answers_every_verb_for_itself(http: httpx.AsyncClient) -> None:
    calls = [
        {"verb": "enqueue_many_rollouts", "rollouts": [{"input": 1}]},
        {"verb": "get_rollout_by_id", "rollout_id": "ro-none"},
        {"verb": "update_rollout", "rollout_id": "ro-none", "status": "failed"},
        {"verb": "get_latest_attempt"},
        {"verb": "add_many_spans", "spans": [["r", "a", 0, "s", "t", None, "n", None, None, "UNSET", "wQ=="]]},
    ]
    outcomes = (await http.post(f"{API}/batch", json=calls)).json()
    assert [o["value"][0]["input"] if "value" in o else o.get("error", {}).get("code") for o in outcomes] == [
        1,
        None,
        "NOT_FOUND",
        "BAD_INPUT",
        "BAD_INPUT",
    ]


async def test_program_fault_is_logged_and_answered_in_json(caplog: pytest.LogCaptureFixture) -> None:
    transport = httpx.ASGITransport(app=create_store_app(LightningStore()))  # implements nothing
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:
        with caplog.at_level(logging.ERROR):
            reply = await client.get(f"{API}/resources/latest")
            batch = await client.post(f"{API}/batch", json=[{"verb": "get_latest_resources"}])
    assert (reply.status_code, reply.json()["code"]) == (500, "INTERNAL_ERROR")
    assert batch.json()[0]["error"]["code"] == "INTERNAL_ERROR"
    assert "does not implement" in caplog.text
    assert "Traceback" not in reply.text


async def test_cors_header(http: httpx.AsyncClient) -> None:
    reply = await http.get(f"{API}/health", headers={"origin": "http://dashboard"})
    assert reply.headers["access-control-allow-origin"] == "*"
