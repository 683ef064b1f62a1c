"""Who may call a gateway with keys: the official clients, plain HTTP, and the agents of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.config import Settings
from agentlightning.gateway.spans import KEY
from agentlightning.kit.bridge import run_sync
from agentlightning.schemas import Span
from agentlightning.store import SqlLightningStore
from tests.unit.gateway.rig import USER, Rig, running_rig
from tests.unit.gateway.scripted import ScriptedOpenAIServer

SECRET = "s3cret-of-alice"
KEYS = {"alice": SECRET}


async def ask_openai(rig: Rig, base_url: str, key: str) -> Any:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=2) as client:
        return await client.chat.completions.create(model="default", messages=USER)  # pyright: ignore[reportArgumentType]


async def test_the_right_key_opens_it_and_its_name_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_rig(keys=KEYS) as rig:
        rollout = await rig.rollout()
        await ask_openai(rig, rig.base_url(rollout), SECRET)
        root = rig.base_url(rollout).removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=root, api_key=SECRET, max_retries=0) as client:
            await client.messages.create(model="default", max_tokens=5, messages=USER)  # pyright: ignore[reportArgumentType]
            assert (await client.messages.count_tokens(model="default", messages=USER)).input_tokens  # pyright: ignore[reportArgumentType]
        await ask_openai(rig, rig.base_url(rollout), rig.gateway.llm().api_key or "")
        spans = await rig.spans(rollout)
        async with httpx.AsyncClient(base_url=rig.gateway.url, headers={"api-key": SECRET}) as plain:
            health = (await plain.get("/health")).text
            assert (await plain.post("/proxy/pause")).json()["paused"] is True
            assert (await plain.post("/proxy/resume")).json()["paused"] is False
    assert [span.attributes[KEY] for span in spans] == ["alice", "alice", "agl-run"]
    for secret in (SECRET, rig.gateway.api_key or "?"):
        assert secret not in health + caplog.text + "".join(span.model_dump_json() for span in spans)


async def test_a_wrong_key_raises_the_clients_own_authentication_error() -> None:
    async with running_rig(keys=KEYS) as rig:
        rollout = await rig.rollout()
        for base_url in (rig.base_url(None), rig.base_url(rollout)):
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key") as refused:
                await ask_openai(rig, base_url, "sk-wrong")
            assert refused.value.code == "invalid_api_key"
            async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-wrong", max_retries=0) as client:
                for request in (
                    client.chat.completions.create(model="default", messages=USER, stream=True),  # pyright: ignore[reportArgumentType]
                    client.responses.create(model="default", input="hi"),
                    client.embeddings.create(model="default", input="hi"),
                    client.models.list(),
                    client.models.retrieve("default"),
                ):
                    with pytest.raises(openai.AuthenticationError):
                        await request
            root = base_url.removesuffix("/v1")
            async with anthropic.AsyncAnthropic(base_url=root, api_key="sk-wrong", max_retries=0) as other:
                with pytest.raises(anthropic.AuthenticationError) as told:
                    await other.messages.create(model="default", max_tokens=5, messages=USER)  # pyright: ignore[reportArgumentType]
                with pytest.raises(anthropic.AuthenticationError):
                    await other.models.list()
            assert "authentication_error" in told.value.response.text
        assert len(await rig.spans(rollout)) == 0
        assert rig.engine.requests == []


async def test_without_a_key_only_the_health_is_told_and_nothing_is_changed() -> None:
    async with running_rig(keys=KEYS) as rig, httpx.AsyncClient(base_url=rig.gateway.url) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        for method, path in (("POST", "/proxy/pause"), ("POST", "/proxy/resume"), ("GET", "/proxy/state")):
            assert (await client.request(method, path)).status_code == 401
        assert rig.gateway.stats()["paused"] is False
        refused = await client.post("/v1/chat/completions", content=b"x" * 5_000_000)
        assert refused.status_code == 401
        assert "No API key provided" in refused.json()["error"]["message"]


@agl.rollout
async def hard_coded_agent(task: str, llm: agl.LLM) -> float:
    """Knows of no key: what stands in its code is replaced on the way to the gateway."""
    async with AsyncOpenAI(base_url=llm.endpoint, api_key="unused") as client:
        await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task}])
    return 1.0


@agl.rollout
async def resource_agent(task: str, llm: agl.LLM) -> float:
    """Takes key and address from the resource, over a client that is not ours to change."""
    import aiohttp

    headers = {"authorization": f"Bearer {llm.api_key}"}
    body = {"model": llm.model, "messages": [{"role": "user", "content": task}]}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{llm.endpoint}/chat/completions", json=body) as answer,
    ):
        answer.raise_for_status()
    return 1.0


SHELL = """
curl -sf "$ANTHROPIC_BASE_URL/v1/messages" -H "x-api-key: $ANTHROPIC_API_KEY" -H 'content-type: application/json' \
    -d '{"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}' > /dev/null || exit 1
test -z "$AGL_GATEWAY_KEYS" || exit 2
curl -sf "$OPENAI_BASE_URL/chat/completions" -H "authorization: Bearer $OPENAI_API_KEY" \
    -H 'content-type: application/json' -d '{"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}' \
    > /dev/null && echo '{"reward": 1}'
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["cs", "shm"])
@pytest.mark.parametrize("agent", ["hard-coded", "resource", "shell"])
def test_the_agents_of_a_run_get_a_key_that_works(
    agent: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_GATEWAY_KEYS", f"alice={SECRET}")
    agents: dict[str, Any] = {
        "hard-coded": hard_coded_agent,
        "resource": resource_agent,
        "shell": agl.CommandAgent(SHELL, shell=True),
    }
    if agent == "shell" and strategy == "shm":
        pytest.skip("the variable with all keys is the coordinator's own here")

    async def main() -> list[Span]:
        async with ScriptedOpenAIServer() as server:
            trainer = agl.Trainer(
                algorithm=agl.Baseline(),
                initial_resources={"llm": agl.LLM(endpoint=server.base_url, model="tiny")},
                settings=Settings(home=tmp_path / "home"),
                strategy=strategy,  # pyright: ignore[reportArgumentType]
                run_id="keyed",
            )
            await trainer.fit_async(agents[agent], ["one", "two"])
            assert all(SECRET not in str(headers) for headers in server.headers)
        kept = SqlLightningStore(tmp_path / "home" / "store.db")
        try:
            rollouts = await kept.query_rollouts()
            assert [rollout.status for rollout in rollouts] == ["succeeded"] * 2
            return [span for rollout in rollouts for span in await kept.query_spans(rollout.rollout_id)]
        finally:
            await kept.close()

    spans = run_sync(main())
    named = [span.attributes[KEY] for span in spans if KEY in span.attributes]
    assert set(named) == {"agl-run"}
    assert len(named) == (4 if agent == "shell" else 2)
