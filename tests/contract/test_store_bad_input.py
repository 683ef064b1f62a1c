"""Bad input, from outside: every implementation answers with an error that says what to do, and nothing changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from agentlightning.kit.errors import AgentLightningError
from agentlightning.schemas import AttemptedRollout, EnqueueRolloutRequest, Span
from agentlightning.store import LightningStore, SqlLightningStore, create_store_app
from tests.contract.conftest import make_span

API = "/v1/agl"
Call = Callable[[LightningStore, AttemptedRollout], Awaitable[Any]]

CALLS: dict[str, Call] = {
    # spans
    "span of an unknown rollout": lambda s, r: s.add_span(make_span("ro-none", r.attempt.attempt_id)),
    "span of an unknown attempt": lambda s, r: s.add_span(make_span(r.rollout_id, "at-none")),
    "span attribute that is no data": lambda s, r: s.add_span(_span(r, attributes={"x": object()})),
    "span attribute that contains itself": lambda s, r: s.add_span(_span(r, attributes={"x": _endless()})),
    "span with an integer beyond 64 bits": lambda s, r: s.add_span(_span(r, attributes={"x": 2**70})),
    "span sequence id beyond 64 bits": lambda s, r: s.add_span(_span(r, sequence_id=2**63)),
    "span name that is half a character": lambda s, r: s.add_span(_span(r, name="\ud800")),
    "span attribute that is half a character": lambda s, r: s.add_span(_span(r, attributes={"x": "\ud800"})),
    "one bad span among good ones": lambda s, r: s.add_many_spans([_span(r), make_span("ro-none", "at-none")]),
    "no span at all": lambda s, r: s.add_many_spans([{"name": "x"}]),  # type: ignore[list-item]
    "sequence id of an unknown attempt": lambda s, r: s.get_next_span_sequence_id(r.rollout_id, "at-none"),
    "spans by an unknown field": lambda s, r: s.query_spans(r.rollout_id, sort_by="colour"),  # type: ignore[arg-type]
    # rollouts
    "input that is no data": lambda s, r: s.enqueue_rollout(object()),
    "input with an integer beyond 64 bits": lambda s, r: s.enqueue_rollout({"n": 2**64}),
    "input that is half a character": lambda s, r: s.enqueue_rollout("\udfff"),
    "unknown mode": lambda s, r: s.enqueue_rollout("x", mode="training"),  # type: ignore[arg-type]
    "unknown resources": lambda s, r: s.enqueue_rollout("x", resources_id="rs-none"),
    "unknown resources at the start": lambda s, r: s.start_rollout("x", resources_id="rs-none"),
    "config of another kind": lambda s, r: s.enqueue_rollout("x", config="fast"),  # type: ignore[arg-type]
    "id that is taken by another input": lambda s, r: s.enqueue_rollout("other", rollout_id=r.rollout_id),
    "id that is half a character": lambda s, r: s.enqueue_rollout("x", rollout_id="\ud800"),
    "id that is a number": lambda s, r: s.enqueue_rollout("x", rollout_id=3),  # type: ignore[arg-type]
    "many of which one is bad": lambda s, r: s.enqueue_many_rollouts(
        [EnqueueRolloutRequest(input="x"), EnqueueRolloutRequest(input="x", resources_id="rs-none")]
    ),
    "many of which one is none": lambda s, r: s.enqueue_many_rollouts([{"inputs": 1}]),  # type: ignore[list-item]
    "attempt of an unknown rollout": lambda s, r: s.start_attempt("ro-none"),
    "update of an unknown rollout": lambda s, r: s.update_rollout("ro-none", status="failed"),
    "unknown status": lambda s, r: s.update_rollout(r.rollout_id, status="done"),  # type: ignore[arg-type]
    "metadata that is no data": lambda s, r: s.update_rollout(r.rollout_id, metadata={"x": object()}),
    "config without sense": lambda s, r: s.update_rollout(r.rollout_id, config={"max_attempts": "x"}),  # type: ignore[arg-type]
    "wait for an unknown rollout": lambda s, r: s.wait_for_rollouts(rollout_ids=["ro-none"], timeout=0),
    "rollouts by an unknown field": lambda s, r: s.query_rollouts(sort_by="colour"),
    "rollouts in an unknown order": lambda s, r: s.query_rollouts(sort_by="start_time", sort_order="up"),  # type: ignore[arg-type]
    "rollouts before the first": lambda s, r: s.query_rollouts(offset=-1),
    "rollouts, as many as text": lambda s, r: s.query_rollouts(limit="x"),  # type: ignore[arg-type]
    "rollouts beyond 64 bits": lambda s, r: s.query_rollouts(offset=2**64),
    "claim as many as text": lambda s, r: s.dequeue_many_rollouts(limit="x"),  # type: ignore[arg-type]
    "claim for a time that is text": lambda s, r: s.dequeue_many_rollouts(limit=1, timeout="x"),  # type: ignore[arg-type]
    # attempts
    "unknown attempt": lambda s, r: s.update_attempt(r.rollout_id, "at-none", status="failed"),
    "attempt of an unknown rollout is updated": lambda s, r: s.update_attempt("ro-none", "latest", status="failed"),
    "unknown status of an attempt": lambda s, r: s.update_attempt(r.rollout_id, "latest", status="done"),  # type: ignore[arg-type]
    "illegal change of an attempt": lambda s, r: s.update_attempt(r.rollout_id, "latest", status="preparing"),
    "heartbeat at a time that is text": lambda s, r: s.update_attempt(
        r.rollout_id,
        "latest",
        last_heartbeat_time="now",  # type: ignore[arg-type]
    ),
    # resources and workers
    "resources that are none": lambda s, r: s.add_resources({"x": 3}),  # type: ignore[dict-item]
    "update of unknown resources": lambda s, r: s.update_resources("rs-none", {}),
    "heartbeat that is no data": lambda s, r: s.update_worker("w", {"x": object()}),
    "worker's id that is half a character": lambda s, r: s.update_worker("\ud800", {}),
    "workers by an unknown field": lambda s, r: s.query_workers(sort_by="colour"),
    # reading
    "rollout of half a character": lambda s, r: s.get_rollout_by_id("\ud800"),
    "latest attempt of half a character": lambda s, r: s.get_latest_attempt("\ud800"),
    "resources of half a character": lambda s, r: s.get_resources_by_id("\ud800"),
    "worker of half a character": lambda s, r: s.get_worker_by_id("\ud800"),
    "spans of half a character": lambda s, r: s.query_spans("\ud800"),
    "waiting for half a character": lambda s, r: s.wait_for_rollouts(rollout_ids=["\ud800"], timeout=0),
    "claim by half a character": lambda s, r: s.dequeue_many_rollouts(limit=1, worker_id="\ud800"),
    "events after more than 64 bits": lambda s, r: s.query_events(2**64),
    "events of half a character": lambda s, r: s.query_events(rollout_id="\ud800"),
}


def _span(rollout: AttemptedRollout, **fields: Any) -> Span:
    return make_span(rollout.rollout_id, rollout.attempt.attempt_id, **fields)


def _endless() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


async def _state(store: LightningStore) -> Any:
    rollouts = await store.query_rollouts()
    statistics = await store.statistics()
    return {
        "rollouts": [r.model_dump() for r in rollouts],
        "attempts": [a.model_dump() for r in rollouts for a in await store.query_attempts(r.rollout_id)],
        "spans": [s.model_dump() for r in rollouts for s in await store.query_spans(r.rollout_id)],
        "resources": [r.model_dump() for r in await store.query_resources()],
        "workers": [w.model_dump() for w in await store.query_workers()],
        "counts": {key: value for key, value in statistics.items() if key.startswith("total")},
    }


@pytest.mark.parametrize("name", CALLS)
async def test_a_typed_error_and_nothing_changed(name: str, store: LightningStore) -> None:
    rollout = await store.start_rollout("x", worker_id="w")
    await store.add_span(_span(rollout))
    before = await _state(store)
    # What is no text or number where one is asked for may be called so in Python's own words.
    with pytest.raises((AgentLightningError, TypeError)) as caught:
        await CALLS[name](store, rollout)
    if isinstance(caught.value, TypeError):
        assert "text" in name
        return
    assert caught.value.code in ("BAD_INPUT", "NOT_FOUND", "CONFLICT"), caught.value
    assert len(caught.value.message) > 10
    assert "\n" not in caught.value.message
    assert await _state(store) == before
    await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")  # and it goes on


BODIES: dict[str, tuple[str, str, Any]] = {
    "no JSON": ("POST", "/rollouts", b"{"),
    "a list instead of an object": ("POST", "/rollouts", []),
    "nothing": ("POST", "/rollouts", b""),
    "wrong type": ("POST", "/queues/rollouts/dequeue", {"limit": "many"}),
    "half a character": ("POST", "/rollouts", b'{"input": "\xff"}'),
    "a lone surrogate": ("POST", "/rollouts", b'{"input": "\\ud800"}'),
    "deep nesting": ("POST", "/rollouts", b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a span that is none": ("POST", "/spans", {"rollout_id": "x"}),
    "a span of an unknown attempt": ("POST", "/spans", None),
    "unknown rollout": ("POST", "/rollouts/ro-none", {"status": "failed"}),
    "unknown status": ("POST", "/rollouts/ROLLOUT", {"status": "done"}),
    "illegal change": ("POST", "/rollouts/ROLLOUT/attempts/latest", {"status": "preparing"}),
    "unknown attempt": ("POST", "/rollouts/ROLLOUT/attempts/at-none", {"status": "failed"}),
    "unknown sort": ("GET", "/rollouts?sort_by=colour", None),
    "limit that is text": ("GET", "/rollouts?limit=many", None),
    "resources that are none": ("POST", "/resources", {"resources": {"x": 3}}),
    "unknown route": ("GET", "/colours", None),
    "unknown method": ("DELETE", "/rollouts", None),
}


@pytest.mark.parametrize("name", BODIES)
async def test_http_answers_with_a_code_and_nothing_changed(name: str, sql_store: SqlLightningStore) -> None:
    rollout = await sql_store.start_rollout("x")
    await sql_store.add_span(_span(rollout))
    before = await _state(sql_store)
    method, path, body = BODIES[name]
    if name == "a span of an unknown attempt":
        body = make_span(rollout.rollout_id, "at-none").model_dump(mode="json")
    content: dict[str, Any] = {}
    if body is not None:
        content = {"content" if isinstance(body, bytes) else "json": body}
    headers = {"content-type": "application/json"} if isinstance(body, bytes) else None
    transport = httpx.ASGITransport(app=create_store_app(sql_store))
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:
        url = API + path.replace("ROLLOUT", rollout.rollout_id)
        reply = await client.request(method, url, headers=headers, **content)
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:300])
    if name not in ("unknown route", "unknown method"):
        assert set(reply.json()) >= {"code", "message"}, reply.text
    assert "Traceback" not in reply.text
    assert await _state(sql_store) == before
