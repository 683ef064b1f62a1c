"""The REST routes of feedback, preferences and lineages, and of large values, in raw JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from agentlightning.schemas import Span
from agentlightning.store import InMemoryLightningStore, create_store_app
from tests.contract.conftest import make_span

API = "/v1/agl"


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    store = InMemoryLightningStore(max_value_bytes=50_000)
    transport = httpx.ASGITransport(app=create_store_app(store))
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:
        for name in "ab":
            await store.start_rollout("x", rollout_id=name)
        yield client
    await store.close()


async def test_feedback_routes(http: httpx.AsyncClient) -> None:
    given = await http.post(f"{API}/feedback", json={"rollout_id": "a", "score": 7, "author": "ada"})
    assert given.status_code == 201
    assert given.json()["score_max"] == 10.0
    await http.post(f"{API}/feedback", json={"rollout_id": "b", "thumb": "up"})
    found = (await http.get(f"{API}/feedback", params={"has_score": "true", "limit": "5"})).json()
    assert (found["items"], found["total"]) == ([given.json()], 1)
    by_id = await http.get(f"{API}/feedback", params={"rollout_id_in": ["a", "b"]})
    assert by_id.json()["total"] == 2
    searched = await http.post(f"{API}/feedback/search", json={"thumb": "up"})
    assert [item["rollout_id"] for item in searched.json()["items"]] == ["b"]
    for body, status in (
        ({"rollout_id": "a", "score": 11}, 422),
        ({"rollout_id": "a", "thumb": "sideways"}, 422),
        ({"rollout_id": "x", "thumb": "up"}, 404),
        ({"thumb": "up"}, 422),
    ):
        refused = await http.post(f"{API}/feedback", json=body)
        assert refused.status_code == status
        assert refused.json()["code"] in ("BAD_INPUT", "NOT_FOUND")


async def test_preference_routes(http: httpx.AsyncClient) -> None:
    body = {"chosen_rollout_id": "a", "rejected_rollout_id": "b", "preference_id": "p"}
    made = await http.post(f"{API}/preferences", json=body)
    assert (made.status_code, made.json()["source"]) == (201, "person")
    assert (await http.post(f"{API}/preferences", json=body)).json() == made.json()
    assert (await http.post(f"{API}/preferences", json={**body, "source": "judge"})).status_code == 409
    found = await http.get(f"{API}/preferences", params={"source_in": "person", "sort_by": "weight"})
    assert found.json()["items"] == [made.json()]
    assert (await http.post(f"{API}/preferences/search", json={"cycle": 3})).json()["total"] == 0


async def test_lineage_routes(http: httpx.AsyncClient) -> None:
    made = await http.post(f"{API}/lineage_sessions", json={"session_id": "s", "lineages": 2})
    assert (made.status_code, len(made.json()["lineages"])) == (201, 2)
    for position, name in enumerate("ab"):
        added = await http.post(f"{API}/lineages/s.{position}/rollouts", json={"rollout_id": name})
        assert (added.status_code, added.json()["cycle"]) == (201, 1)
    assert (await http.post(f"{API}/lineages/s.0/lock", json={"author": "ada"})).json()["locked"] is True
    session = (await http.get(f"{API}/lineage_sessions/s")).json()
    assert [lineage["locked"] for lineage in session["lineages"]] == [True, False]
    history = (await http.get(f"{API}/lineage_sessions/s/history", params={"kind": "locked"})).json()
    assert [step["author"] for step in history["items"]] == ["ada"]
    assert (await http.get(f"{API}/preferences", params={"session_id": "s"})).json()["total"] == 1
    assert (await http.post(f"{API}/lineages/s.0/unlock")).json()["locked"] is False
    assert (await http.get(f"{API}/lineage_sessions")).json()["total"] == 1
    assert (await http.post(f"{API}/lineage_sessions/search", json={"name": "x"})).json()["total"] == 0
    missing = await http.get(f"{API}/lineage_sessions/x")
    assert (missing.status_code, missing.json()["message"]) == (404, "There is no session 'x'.")


async def test_large_values_over_rest(http: httpx.AsyncClient) -> None:
    large = {"context": "x" * 20_000, "ids": list(range(5000))}
    made = await http.post(f"{API}/rollouts", json={"input": large, "rollout_id": "large"})
    attempt_id = made.json()["attempt"]["attempt_id"]
    span = make_span("large", attempt_id, attributes=large)
    await http.post(f"{API}/spans", json=span.model_dump())
    assert (await http.get(f"{API}/rollouts/large")).json()["input"] == large
    found = (await http.get(f"{API}/spans", params={"rollout_id": "large"})).json()["items"]
    assert Span.model_validate(found[0]).attributes == large
    refused = await http.post(f"{API}/rollouts", json={"input": "x" * 50_001})
    assert (refused.status_code, refused.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert refused.json()["details"] == {"bytes": 50_004, "limit": 50_000}
