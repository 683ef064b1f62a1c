"""The management API over HTTP, beside the clients' own routes on the same port."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentlightning.modelservice.operations import OPERATIONS
from tests.unit.modelservice.rig import Rig, register, running_service, until, weights


async def ok(response: httpx.Response, status: int = 200) -> Any:
    body = response.json()
    assert response.status_code == status, body
    assert body["success"] is True
    assert {"data", "message", "timestamp", "request_id"} <= body.keys()
    return body["data"]


async def test_a_model_through_the_api(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig, rig.http() as http:
        assert await ok(await http.get("/models")) == []
        spec = {"name": "org/mine", "source": str(weights(tmp_path / "w", "hi")), "engine": "vllm"}
        made = await ok(await http.post("/models?wait=true", json=spec), 201)
        assert (made["id"], made["state"], made["memory_mb"] > 1) == ("org/mine", "ready", True)
        assert await rig.ask("org/mine") == "hi hi hi hi "
        shown = await ok(await http.get("/models/org/mine"))
        assert (shown["calls"], shown["spec"]["engine"], shown["in_flight"]) == (1, "vllm", 0)
        assert (await ok(await http.post("/models/org/mine/unload")))["state"] == "unloaded"
        assert (await ok(await http.post("/models/org/mine/load"), 202))["state"] == "loading"
        await until(lambda: rig.service.get("org/mine").state == "ready")
        assert (await ok(await http.post("/models/org/mine/load?wait=true")))["state"] == "ready"
        await ok(await http.delete("/models/org/mine"))
        assert (await http.get("/models/org/mine")).status_code == 404


async def test_errors_are_in_the_envelope_and_say_what_to_do(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig, rig.http() as http:
        for response, status, code in (
            (await http.get("/models/nope"), 404, "NOT_FOUND"),
            (await http.post("/models/nope/load"), 404, "NOT_FOUND"),
            (await http.post("/models", json={"nome": "x"}), 400, "CONFIG_INVALID"),
            (await http.post("/models", json={"name": "x", "devise": "cpu"}), 400, "CONFIG_INVALID"),
            (await http.post("/models", content=b"{"), 422, "BAD_INPUT"),
            (await http.post("/models", json=[1]), 422, "BAD_INPUT"),
            (await http.post("/models", content=b" " * (2 << 20)), 422, "BAD_INPUT"),
            (await http.post("/registry/nope/rollback", json={}), 404, "NOT_FOUND"),
            (await http.post("/registry/nope/promote", json={"version": "../x"}), 400, "CONFIG_INVALID"),
            (await http.delete("/registry/nope/v1"), 404, "NOT_FOUND"),
        ):
            body = response.json()
            assert (response.status_code, body["success"], body["error"]["code"]) == (status, False, code), body
            assert body["error"]["message"]
        broken = {"name": "x", "source": str(weights(tmp_path / "w", "hi")), "engine": "vllm"}
        response = await http.post("/models?wait=true", json={**broken, "vllm_args": ["--fail-start"]})
        assert response.status_code == 400
        assert "out of memory" in response.json()["error"]["message"]
        again = await http.post("/models", json=broken)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "CONFLICT")


async def test_pages_of_other_sites_cannot_manage(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig, rig.http() as http:
        rig.service.add(rig.spec("mine", weights(tmp_path / "w", "hi")))
        for origin in ("https://evil.example", "null"):
            response = await http.post("/models/mine/load", headers={"Origin": origin})
            assert (response.status_code, response.json()["error"]["code"]) == (403, "FORBIDDEN")
        assert (await http.get("/models", headers={"Origin": rig.gateway.url})).status_code == 200


async def test_the_registry_through_the_api_and_a_model_that_follows_it(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig, rig.http() as http:
        register(rig.registry, "demo", 3)
        served = await rig.serve("demo")
        promoted = await ok(await http.post("/registry/demo/promote", json={"version": "v1", "reason": "first"}))
        assert (promoted["ref"], promoted["stage"]) == ("demo@v1", "production")
        await until(lambda: served.version == "demo@v1")
        await ok(await http.post("/registry/demo/promote", json={"version": "v2"}))
        await until(lambda: served.version == "demo@v2")
        assert (await ok(await http.post("/registry/demo/rollback", json={"reason": "worse"})))["ref"] == "demo@v1"
        await until(lambda: served.version == "demo@v1")
        shown = await ok(await http.get("/registry/demo"))
        assert shown["production"] == "v1"
        assert [change["reason"] for change in shown["history"]] == ["first", "", "worse"]
        assert [m["name"] for m in await ok(await http.get("/registry"))] == ["demo"]
        refused = await http.post("/registry/demo/archive", json={"version": "v1"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "CONFLICT")
        assert (await ok(await http.post("/registry/demo/archive", json={"version": "v3"})))["stage"] == "archived"
        await ok(await http.delete("/registry/demo/v3"))
        assert (await http.delete("/registry/demo/v1")).status_code == 409
        await ok(await http.delete("/registry/demo/v1?force=true"))
        assert served.version == "demo@v1"  # what is served stays until something takes its place


async def test_the_list_is_one_that_clients_read(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig, rig.http() as http:
        await rig.serve("mine", weights(tmp_path / "w", "hi"), aliases=["default"])
        body = (await http.get("/models")).json()
        assert (body["object"], body["data"][0]["id"], body["data"][0]["object"]) == ("list", "mine", "model")
        async with rig.client() as client:
            assert {model.id async for model in client.models.list()} == {"mine", "default"}
            assert (await client.models.retrieve("mine")).id == "mine"
        async with anthropic.AsyncAnthropic(base_url=rig.gateway.url, api_key="any") as client:
            assert {model.id async for model in client.models.list()} == {"mine", "default"}


async def test_health_metrics_and_docs(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig, rig.http() as http:
        await rig.serve("mine", weights(tmp_path / "w", "hi"))
        await rig.ask("mine")
        health = (await http.get("/health")).json()
        assert (health["status"], health["models"]) == ("ok", ["mine"])
        assert health["served"][0]["state"] == "ready"
        assert health["stats"]["calls"] == 1
        metrics = await http.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(metrics.text)
            for sample in family.samples
        }
        assert samples["agl_model_calls_total", (("model", "mine"),)] == 1
        assert samples["agl_model_state", (("model", "mine"), ("state", "ready"))] == 1
        assert samples["agl_gateway_calls_total", ()] == 1
        page = await http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        for operation in OPERATIONS:
            assert operation.path.replace(":path", "") in page.text
        rig.service.add(rig.spec("broken", weights(tmp_path / "b", "x"), vllm_args=["--fail-start"])).start_loading()
        await until(lambda: rig.service.get("broken").state == "failed")
        assert (await http.get("/health")).json()["status"] == "degraded"


async def test_the_description_is_valid_openapi_and_names_every_route(tmp_path: Path) -> None:
    async with running_service(tmp_path) as rig, rig.http() as http:
        described = (await http.get("/openapi.json")).json()
    assert described["openapi"].startswith("3.1")
    for operation in OPERATIONS:
        entry = described["paths"][operation.path.replace(":path", "")][operation.method.lower()]
        assert entry["operationId"]
        for name in re.findall(r"{(\w+)", operation.path):
            assert any(p["name"] == name and p["in"] == "path" for p in entry["parameters"])
        if operation.body is not None:
            reference = entry["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert reference.rpartition("/")[2] in described["components"]["schemas"]
    entries = [entry for path in described["paths"].values() for entry in path.values()]
    ids = [entry["operationId"] for entry in entries if "operationId" in entry]
    assert len(ids) == len(set(ids))


async def test_with_a_token_management_is_the_operators_alone(tmp_path: Path) -> None:
    token = "s3cret-token"
    async with running_service(tmp_path, token=token) as rig, rig.http() as http:
        await rig.serve("mine", weights(tmp_path / "w", "hi"))
        for method, path in (("POST", "/models"), ("POST", "/models/mine/unload"), ("DELETE", "/models/mine"),
                             ("GET", "/registry"), ("GET", "/metrics")):  # fmt: skip
            assert (await http.request(method, path)).status_code == 401
            assert (await http.request(method, path, headers={"Authorization": "Bearer wrong"})).status_code == 403
        assert "state" not in (await http.get("/models")).json()["data"][0]  # the clients' list
        assert "served" not in (await http.get("/health")).json()
        assert (await http.get("/docs")).status_code == 200
        assert await rig.ask("mine") == "hi hi hi hi "
        mine = {"Authorization": f"Bearer {token}"}
        assert (await http.get("/models", headers=mine)).json()["data"][0]["state"] == "ready"
        assert "served" in (await http.get("/health", headers=mine)).json()
        assert (await http.post("/models/mine/unload", headers=mine)).status_code == 200


async def test_with_keys_and_no_token_strangers_learn_only_whether_it_is_well(tmp_path: Path) -> None:
    async with running_service(tmp_path, keys={"alice": "a-secret-of-alice"}) as rig, rig.http() as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert (await http.get("/models")).status_code == 401
        for header in ({"x-api-key": "a-secret-of-alice"}, {"Authorization": "Bearer a-secret-of-alice"}):
            assert "served" in (await http.get("/health", headers=header)).json()
            assert (await http.get("/models", headers=header)).json()["data"] == []


@pytest.mark.parametrize("calls", [30])
async def test_management_and_calls_go_on_beside_each_other(tmp_path: Path, calls: int) -> None:
    async with running_service(tmp_path) as rig, rig.http() as http:
        register(rig.registry, "demo", 2)
        await rig.serve("demo")

        async def manage(rig: Rig) -> None:
            for version in ("v1", "v2", "v1"):
                await ok(await http.post("/registry/demo/promote", json={"version": version}))
                assert (await http.get("/models")).status_code == 200
                assert (await http.get("/metrics")).status_code == 200

        answers, _ = await asyncio.gather(asyncio.gather(*(rig.ask("demo") for _ in range(calls))), manage(rig))
        assert len(answers) == calls
