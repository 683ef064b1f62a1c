"""Two hundred rollouts at once in one process: every span, reward and model call lands where it belongs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import AsyncOpenAI, OpenAI
from opentelemetry import trace

import agentlightning as agl
from agentlightning.agent import instrument
from agentlightning.schemas import EnqueueRolloutRequest
from tests.unit.agent.echo_server import EchoServer

N = 200
POOL = ThreadPoolExecutor(8)
TRACER = trace.get_tracer("some.library")


@pytest.fixture
def gateway():
    with EchoServer() as server:
        yield server
    instrument.uninstall()


def note(question: str) -> None:
    with TRACER.start_as_current_span(f"thread {question}"):
        agl.emit_message(question)


async def ask(client: AsyncOpenAI, question: str) -> str:
    with TRACER.start_as_current_span(f"ask {question}"):
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": question}])
    return answer.choices[0].message.content or ""


async def run(store, agent, tasks, gateway) -> dict[str, agl.Rollout]:
    llm = agl.ProxyLLM(endpoint=f"{gateway.url}/v1", model="m")
    await store.add_resources({"main": llm})
    requests = [EnqueueRolloutRequest(input=task) for task in tasks]
    ids = [r.rollout_id for r in await store.enqueue_many_rollouts(requests)]
    TRACER.start_span("of an earlier time").end()  # no rollout's, and not this runner's to report
    runner = agl.LitAgentRunner(max_concurrency=N, max_rollouts=len(ids))
    with runner.run_context(agent=agent, store=store):
        await asyncio.wait_for(runner.iter(), 90)
        assert runner.stats() == {"running": 0, "finished": len(ids), "abandoned": 0, "unattributed": {}}
    return {r.rollout_id: r for r in await store.query_rollouts(rollout_id_in=ids)}


def expected_path(rollout: agl.AttemptedRollout) -> str:
    return f"/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1/chat/completions"


async def test_async_agents_with_one_global_client(gateway):
    store = agl.InMemoryLightningStore()
    gathered = asyncio.Event()
    present = 0

    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client:

        async def agent(task: dict[str, str]) -> float:
            nonlocal present
            present += 1
            if present == N:
                gathered.set()
            await gathered.wait()  # all of them are here
            question = task["question"]
            path = await ask(client, question)
            await asyncio.gather(
                ask(client, question), asyncio.get_running_loop().run_in_executor(POOL, note, question)
            )
            agl.emit_reward({"score": float(question[1:]), "other": 1}, primary_key="score")
            assert path.startswith("/rollout/")
            return float(question[1:])

        rollouts = await run(store, agent, [{"question": f"q{i}"} for i in range(N)], gateway)
    assert {r.status for r in rollouts.values()} == {"succeeded"}
    calls: dict[str, list[str]] = {}
    for path, headers, body in gateway.requests:
        calls.setdefault(path, []).append(body["messages"][0]["content"])
        assert headers["traceparent"].split("-")[0] == "00"
    assert calls == {expected_path(r): [r.input["question"]] * 2 for r in rollouts.values()}
    spans = await store.query_many_spans(list(rollouts))
    for rollout_id, rollout in rollouts.items():
        question = rollout.input["question"]
        names = sorted(s.name for s in spans[rollout_id])
        annotation = "agentlightning.annotation"
        assert names == sorted(
            [f"ask {question}"] * 2 + [f"thread {question}", "agentlightning.message", annotation, annotation]
        )
        assert len({s.trace_id for s in spans[rollout_id]}) <= 2  # a plain pool's thread starts a trace of its own
        assert agl.find_final_reward(spans[rollout_id]) == float(question[1:])
    await store.close()


async def test_sync_agents_with_one_global_client(gateway):
    store = agl.InMemoryLightningStore()
    barrier = threading.Barrier(N, timeout=60)

    with OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client:

        @agl.rollout
        def agent(task: str, main: agl.LLM) -> float:
            barrier.wait()
            answer = client.chat.completions.create(model=main.model, messages=[{"role": "user", "content": task}])
            note(task)
            return float((answer.choices[0].message.content or "") in f"{main.endpoint}/chat/completions")

        rollouts = await run(store, agent, [f"q{i}" for i in range(N)], gateway)
    spans = await store.query_many_spans(list(rollouts))
    assert [agl.find_final_reward(spans[i]) for i in rollouts] == [1.0] * N
    assert {path: body["messages"][0]["content"] for path, _, body in gateway.requests} == {
        expected_path(r): r.input for r in rollouts.values()
    }
    for rollout_id, rollout in rollouts.items():
        assert {agl.get_message_value(s) for s in spans[rollout_id]} - {None} == {rollout.input}
    await store.close()


async def test_a_thousand_rollouts_end_exactly_once():
    store = agl.InMemoryLightningStore()

    async def agent(task: int) -> float:
        await asyncio.sleep(0)
        return 1.0

    ids = [
        r.rollout_id for r in await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=i) for i in range(1000)])
    ]
    runner = agl.LitAgentRunner(max_rollouts=len(ids))
    with runner.run_context(agent=agent, store=store):
        await runner.iter()
    ended = await store.query_rollouts(rollout_id_in=ids)
    assert [r.status for r in ended] == ["succeeded"] * len(ids)
    assert (await store.statistics())["total_attempts"] == len(ids)
    await store.close()
