"""Caps as clients meet them: the official clients' exceptions, streams, restarts, a killed gateway."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from agentlightning.gateway import (
    BudgetPolicy,
    Budgets,
    Caps,
    OpenAIUpstream,
    Price,
    PriceTable,
    RetryPolicy,
    load_routes,
)
from agentlightning.gateway.ledger import Ledger
from agentlightning.gateway.spans import ERROR_REASON
from tests.unit.gateway.hostile import HostileServer, begun, then_silence
from tests.unit.gateway.rig import USER, running_rig, until
from tests.unit.gateway.scripted import ScriptedOpenAIServer, always

PRICES = PriceTable({"m": Price(input=1000, output=10_000)})  # 0.003 + 0.02 USD for an answer of the scripted server
COST_USD = 3 * 1000e-6 + 2 * 10_000e-6
KEYS = {"alice": "secret-of-alice", "bob": "secret-of-bob"}


def key_of(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rollout_that_has_used_its_calls_gets_the_clients_own_rate_limit_error(stream: bool) -> None:
    budgets = Budgets(BudgetPolicy(per_rollout=Caps(max_calls=2)))
    async with running_rig(budgets=budgets) as rig:
        rollout, other = await rig.rollout(), await rig.rollout()
        async with rig.client(rollout, max_retries=2) as client:
            for _ in range(2):
                answer = await client.chat.completions.create(model="default", messages=USER, stream=stream)
                if stream:
                    assert [chunk async for chunk in answer]
            with pytest.raises(openai.RateLimitError, match=r"has used 2 of 2 calls \(max_calls\)") as caught:
                await client.chat.completions.create(model="default", messages=USER, stream=stream)
        assert (caught.value.code, caught.value.type, caught.value.param) == (
            "insufficient_quota",
            "insufficient_quota",
            "max_calls",
        )
        root = rig.base_url(rollout).removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=root, api_key="x", max_retries=2) as claude:
            with pytest.raises(anthropic.RateLimitError, match="has used 2 of 2 calls"):
                await claude.messages.create(model="default", max_tokens=5, messages=USER)  # pyright: ignore[reportArgumentType]
        async with rig.client(other) as client:
            await client.chat.completions.create(model="default", messages=USER)
        spans = await rig.spans(rollout)
        assert len(rig.engine.requests) == 3
    # The clients were told not to try again, so there is one record of each refusal.
    assert [span.attributes.get(ERROR_REASON) for span in spans] == [None, None, *["insufficient_quota"] * 2]


async def test_a37_calls_at_once_stop_at_the_cap() -> None:
    budgets = Budgets(BudgetPolicy(per_rollout=Caps(max_calls=10)))
    async with running_rig(budgets=budgets) as rig:
        rollout = await rig.rollout()
        rig.engine.gate.clear()
        async with rig.client(rollout) as client:
            calls = [client.chat.completions.create(model="default", messages=USER) for _ in range(30)]
            asking = asyncio.gather(*calls, return_exceptions=True)
            await until(lambda: rig.gateway.stats()["errors"] == 20)
            rig.engine.gate.set()
            results = await asking
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert len(refused) == 20
    assert {error.code for error in refused} == {"quota_reserved"}  # they may come again when those have ended
    assert {error.response.headers["retry-after"] for error in refused} == {"1"}
    assert len(rig.engine.requests) == 10


@pytest.mark.parametrize("stream", [False, True])
async def test_money_is_counted_per_key_shown_and_kept_across_restarts(tmp_path: Path, stream: bool) -> None:
    policy = BudgetPolicy(per_key=Caps(max_usd=2 * COST_USD))
    async with ScriptedOpenAIServer() as server:
        for number in (1, 2):
            budgets = Budgets(policy, prices=PRICES, ledger=tmp_path / "ledger.db")
            async with running_rig({"m": OpenAIUpstream(server.base_url)}, keys=KEYS, budgets=budgets) as rig:
                async with openai.AsyncOpenAI(base_url=rig.base_url(None), api_key=KEYS["alice"]) as client:
                    answer: Any = await client.chat.completions.create(
                        model="m",
                        messages=USER,
                        stream=stream,
                        max_tokens=2,  # pyright: ignore[reportArgumentType]
                    )
                    if stream:
                        assert [chunk async for chunk in answer]
                    if number == 2:
                        with pytest.raises(openai.RateLimitError, match=r"'alice' has used 0\.046 of 0\.046 USD"):
                            await client.chat.completions.create(model="m", messages=USER)  # pyright: ignore[reportArgumentType]
                async with httpx.AsyncClient(headers=key_of("bob")) as plain:
                    spending = (await plain.get(f"{rig.gateway.url}/health")).json()["spending"]
                    body = {"model": "m", "messages": USER}
                    assert (await plain.post(f"{rig.base_url(None)}/chat/completions", json=body)).status_code == 200
            assert spending["key:alice"]["usd"] == pytest.approx(number * COST_USD)
            assert spending["key:alice"]["output_tokens"] == number * 2


async def test_an_unknown_price_is_a_bad_request_that_says_what_is_missing() -> None:
    budgets = Budgets(BudgetPolicy(per_rollout=Caps(max_usd=1)), prices=PRICES)
    async with running_rig(budgets=budgets) as rig:
        rollout = await rig.rollout()
        async with rig.client(rollout) as client:
            with pytest.raises(openai.BadRequestError, match="price of this model is not known") as caught:
                await client.chat.completions.create(model="default", messages=USER)
        assert caught.value.code == "price_unknown"
        assert rig.engine.requests == []


async def test_rates_are_a_rate_limit_that_says_when_to_come_back() -> None:
    budgets = Budgets(BudgetPolicy(total=Caps(requests_per_minute=3)))
    async with running_rig(budgets=budgets) as rig, rig.client() as client:
        for _ in range(3):
            await client.chat.completions.create(model="default", messages=USER)
        with pytest.raises(
            openai.RateLimitError, match=r"3 of 3 requests per minute \(requests_per_minute\)"
        ) as caught:
            await client.chat.completions.create(model="default", messages=USER)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


async def test_a37_embeddings_and_counts_are_counted_too() -> None:
    budgets = Budgets(BudgetPolicy(total=Caps(max_calls=9)))
    vectors = {"object": "list", "data": [], "model": "e", "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    async with ScriptedOpenAIServer() as server:
        server.script = [always(vectors)]
        async with running_rig({"m": OpenAIUpstream(server.base_url)}, budgets=budgets) as rig, rig.client() as client:
            await client.embeddings.create(model="m", input="hi", encoding_format="float")
            assert budgets.states()["total"]["input_tokens"] == 7
            async with httpx.AsyncClient() as plain:
                url = f"{rig.gateway.url}/v1/messages/count_tokens"
                assert (await plain.post(url, json={"model": "m", "messages": USER})).json() == {"input_tokens": 3}
            assert budgets.states()["total"] | {"usd": 0} == {
                "calls": 2,
                "input_tokens": 10,
                "output_tokens": 0,
                "usd": 0,
                "unpriced_calls": 2,
            }


async def test_what_breaks_after_it_began_is_counted_as_reserved_and_what_failed_is_not(refusing_url: str) -> None:
    budgets = Budgets(BudgetPolicy(total=Caps(max_calls=99)))
    async with HostileServer(then_silence(*begun("openai"))) as server:
        upstream = OpenAIUpstream(f"{server.url}/v1", capture="none", idle_timeout_s=0.2)
        async with running_rig({"m": upstream}, budgets=budgets) as rig, rig.client() as client:
            stream = await client.chat.completions.create(model="m", messages=USER, stream=True, max_tokens=50)

            async def read() -> None:
                async for _ in stream:
                    pass

            with pytest.raises(openai.APIError):
                await read()
            assert budgets.states()["total"]["output_tokens"] == 50
    failing = Budgets(BudgetPolicy(total=Caps(max_calls=99)))
    down = OpenAIUpstream(f"{refusing_url}/v1", retry=RetryPolicy(max_attempts=1))
    async with running_rig({"m": down}, budgets=failing) as rig, rig.client() as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="m", messages=USER)
    assert (failing.states()["total"]["calls"], failing.states()["total"]["output_tokens"]) == (1, 0)


async def test_a_server_that_does_not_tell_usage_is_charged_what_was_reserved() -> None:
    budgets = Budgets(BudgetPolicy(total=Caps(max_calls=9)))
    async with ScriptedOpenAIServer() as server:
        upstream = OpenAIUpstream(server.base_url, capture="none", asks_usage=False)
        async with running_rig({"m": upstream}, budgets=budgets) as rig, rig.client() as client:
            stream = await client.chat.completions.create(model="m", messages=USER, stream=True, max_tokens=11)
            assert [chunk async for chunk in stream]
    assert budgets.states()["total"]["output_tokens"] == 11


GATEWAY = """
import asyncio, sys
from agentlightning.gateway import Gateway, load_routes
from agentlightning.store import InMemoryLightningStore

async def main():
    routes = load_routes(sys.argv[1], ledger=sys.argv[2])
    keys = {"alice": "secret-of-alice"}
    async with Gateway(InMemoryLightningStore(), routes.table, budgets=routes.budgets, keys=keys) as gateway:
        print(gateway.url, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_gateway_that_is_killed_remembers_what_it_has_answered(tmp_path: Path) -> None:
    async with ScriptedOpenAIServer() as server:
        (tmp_path / "routes.toml").write_text(
            f"[targets.t]\nbase_url = {json.dumps(server.base_url)}\n[routes.m]\ntargets = ['t']\n"
            "[prices]\nm = { input = 1000, output = 10000 }\n[limits.keys.alice]\nmax_usd = 100\n"
        )
        command = [sys.executable, "-c", GATEWAY, str(tmp_path / "routes.toml"), str(tmp_path / "ledger.db")]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            url = (await process.stdout.readline()).decode().strip()
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret-of-alice", max_retries=0) as client:
                request: Any = {"model": "m", "messages": USER, "max_tokens": 2}
                await asyncio.gather(*(client.chat.completions.create(**request) for _ in range(20)))
        finally:
            process.kill()
            await process.wait()
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.totals["key:alice"].calls == 20
    assert ledger.totals["key:alice"].usd == pytest.approx(20 * COST_USD)
    await ledger.close()


async def test_the_price_of_a_route_is_that_of_the_model_it_sends(tmp_path: Path) -> None:
    async with ScriptedOpenAIServer() as server:
        path = tmp_path / "routes.toml"
        path.write_text(
            "[targets.t]\n"
            f"base_url = {json.dumps(server.base_url)}\n"
            'model = "real"\n[routes.nick]\ntargets = ["t"]\n'
            "[prices]\nreal = { input = 0, output = 1e6 }\n[limits]\ntotal = { max_usd = 2 }\n"
        )
        routes = load_routes(path)
        async with running_rig(routes.table, budgets=routes.budgets) as rig, rig.client() as client:
            await client.chat.completions.create(model="nick", messages=USER)
            assert routes.budgets is not None
            assert routes.budgets.states()["total"]["usd"] == pytest.approx(2.0)
            with pytest.raises(openai.RateLimitError, match="This gateway has used 2 of 2 USD"):
                await client.chat.completions.create(model="nick", messages=USER)
