"""The worker process through `EngineClient`: every command, and every way either side can end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import AutoModelForCausalLM

from agentlightning.kit.errors import (
    AgentLightningError,
    BadInputError,
    ConfigError,
    ConflictError,
    ModelError,
    UpstreamError,
)
from agentlightning.learner import EngineClient, FitConfig, StepConfig, protocol
from agentlightning.schemas.call import TrainSample
from agentlightning.schemas.example import Dialogue, TokenPair
from agentlightning.schemas.generation import GenerateRequest, GenerateResult, SamplingParams
from tests.unit.learner.tiny import CONTEXT

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO = [{"role": "user", "content": "hello world"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _client(llama_dir):
    async with await EngineClient.start(str(llama_dir), threads=1, seed=3) as client:
        yield client


@pytest.fixture
def client(_client) -> EngineClient:
    return _client


def chat(**params) -> GenerateRequest:
    return GenerateRequest(messages=HELLO, params=SamplingParams(**{"max_tokens": 12, **params}))


def as_samples(results: list[GenerateResult]) -> list[TrainSample]:
    samples = []
    for i, result in enumerate(results):
        choice, before = result.choices[0], len(result.prompt_token_ids)
        samples.append(
            TrainSample(
                token_ids=result.prompt_token_ids + choice.token_ids,
                loss_mask=[0] * before + [1] * len(choice.token_ids),
                logprobs=[0.0] * before + choice.logprobs,
                advantage=(-1.0) ** i,
            )
        )
    return samples


async def test_a_started_client_knows_its_model(client, llama_dir):
    assert client.info.model == str(llama_dir)
    assert client.info.max_context == CONTEXT
    assert client.info.has_chat_template
    assert client.info.device == "cpu"


async def test_generate_answers_chats_texts_and_tokens(client, llama_dir):
    first = await client.generate(chat(seed=1))
    assert first.model == str(llama_dir)
    assert len(first.choices[0].logprobs) == len(first.choices[0].token_ids) == 12
    same = GenerateRequest(prompt_token_ids=first.prompt_token_ids, params=SamplingParams(seed=1, max_tokens=12))
    assert (await client.generate(same)).choices[0].token_ids == first.choices[0].token_ids
    several = await client.generate(GenerateRequest(prompt="hello", params=SamplingParams(n=3, max_tokens=2)))
    assert [c.index for c in several.choices] == [0, 1, 2]


async def test_many_callers_at_once(client):
    requests = [
        GenerateRequest(prompt="hello " * (i % 7 + 1), params=SamplingParams(max_tokens=i % 20 + 1)) for i in range(150)
    ]
    results = await asyncio.gather(*(client.generate(r) for r in requests))
    assert [r.request_id for r in results] == [r.request_id for r in requests]
    assert [len(r.choices[0].token_ids) for r in results] <= [i % 20 + 1 for i in range(150)]
    assert len({r.request_id for r in requests}) == 150


async def test_a_stream_ends_with_the_result(client):
    deltas = [delta async for delta in client.stream(chat(seed=2, max_tokens=30))]
    result = deltas[-1].result
    assert "".join(d.text for d in deltas) == result.choices[0].text
    assert len(deltas) > 5
    assert (await client.generate(chat(seed=2, max_tokens=30))).choices[0].token_ids == result.choices[0].token_ids


async def test_leaving_a_stream_and_cancelling_a_call_free_the_engine(client):
    stream = client.stream(chat(max_tokens=140))
    await anext(stream)
    await stream.aclose()
    task = asyncio.create_task(client.generate(chat(max_tokens=140, n=8)))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not client._streams
    assert not client._pending
    async with asyncio.timeout(100):  # nothing waits for what was cancelled
        await client.train(as_samples([await client.generate(chat())] * 2), StepConfig(lr=0.0, threads=1))


async def test_errors_keep_their_type_and_hint(client):
    with pytest.raises(BadInputError, match="context holds 160") as caught:
        await client.generate(GenerateRequest(prompt="hello " * 500))
    assert caught.value.details["max_context"] == CONTEXT
    assert caught.value.hint
    with pytest.raises(BadInputError, match="exactly one"):
        async for _ in client.stream(GenerateRequest()):
            pass
    with pytest.raises(BadInputError, match="No sample"):
        await client.train([], StepConfig())
    with pytest.raises(AgentLightningError) as caught:
        raise protocol.to_error(protocol.Failed("x", "SOMETHING_NEW", "message", status=418))
    assert (caught.value.code, caught.value.status) == ("SOMETHING_NEW", 418)


async def test_training_waits_for_what_came_before_and_holds_what_comes_after(client):
    samples = as_samples([await client.generate(chat(seed=i)) for i in range(4)])
    await client.set_version("before")
    order: list[str] = []

    async def note(name: str, awaitable):
        result = await awaitable
        order.append(name)
        return result

    early = asyncio.create_task(note("early", client.generate(chat(seed=5, max_tokens=140))))
    await asyncio.sleep(0)
    train = asyncio.create_task(note("train", client.train(samples, StepConfig(lr=1e-2, threads=1))))
    await asyncio.sleep(0)
    name = asyncio.create_task(client.set_version("after"))
    await asyncio.sleep(0)
    late = asyncio.create_task(note("late", client.generate(chat(seed=5, max_tokens=140))))
    metrics = await train
    assert order == ["early", "train"]
    assert metrics["optimizer_steps"] == 2
    assert (await early).model_version == "before"
    assert (await late).model_version == "after"
    await name
    assert client.info.model_version == "after"
    assert (await early).choices[0].logprobs[:3] != (await late).choices[0].logprobs[:3]


async def test_a_waiting_request_can_be_cancelled_behind_a_training(client):
    samples = as_samples([await client.generate(chat(seed=i)) for i in range(2)])
    running = asyncio.create_task(client.generate(chat(max_tokens=140)))
    await asyncio.sleep(0)
    train = asyncio.create_task(client.train(samples, StepConfig(lr=0.0, threads=1)))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(client.generate(chat(max_tokens=140)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(running, train)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await client.generate(chat())).choices


async def test_checkpoints_bring_weights_and_meta_back(client, tmp_path):
    assert await client.load_checkpoint(tmp_path) is None
    path = await client.save_checkpoint(tmp_path, meta={"step": 4, "note": "x"})
    assert path.parent == tmp_path
    before = await client.generate(chat(seed=9, temperature=0.5))
    samples = as_samples([await client.generate(chat(seed=i)) for i in range(4)])
    await client.train(samples, StepConfig(lr=3e-2, threads=1))
    changed = await client.generate(chat(seed=9, temperature=0.5))
    assert changed.choices[0].logprobs != before.choices[0].logprobs
    assert await client.load_checkpoint(tmp_path) == {"step": 4, "note": "x"}
    restored = await client.generate(chat(seed=9, temperature=0.5))
    assert restored.choices[0].logprobs == pytest.approx(before.choices[0].logprobs, abs=1e-5)


async def test_the_model_is_saved_for_transformers(client, tmp_path):
    path = await client.save_model(tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(path).config.vocab_size == client.info.vocab_size
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConflictError):
        await client.save_model(tmp_path)


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        ("/no/such/model", {}, ModelError),
        ("", {"device": "toaster"}, ConfigError),
        ("", {"lora": {"rank": 2}}, ConfigError),
    ],
)
async def test_a_failed_start_says_why_and_leaves_no_process(llama_dir, model, options, error):
    with pytest.raises(error) as caught:
        await EngineClient.start(model or str(llama_dir), **options)
    assert caught.value.hint


async def test_a_start_that_takes_too_long_is_given_up(llama_dir):
    with pytest.raises(ModelError, match="longer than"):
        await EngineClient.start(str(llama_dir), startup_timeout_s=0.01)


@pytest.mark.slow
async def test_a_worker_that_dies_fails_every_call_with_its_log(llama_dir, tmp_path):
    client = await EngineClient.start(str(llama_dir), threads=1, log_path=tmp_path / "logs" / "worker.log")
    calls = [asyncio.create_task(client.generate(chat(max_tokens=140, n=4))) for _ in range(5)]
    calls.append(asyncio.create_task(anext(client.stream(chat(max_tokens=140)))))
    await asyncio.sleep(0.02)
    os.kill(client._process.pid, signal.SIGKILL)
    failures = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 100)
    assert any(isinstance(f, UpstreamError) for f in failures)
    for failure in failures:
        if isinstance(failure, UpstreamError):
            assert "exit status -9" in failure.message
            assert "loaded in" in failure.message, "the end of the log is quoted"
    with pytest.raises(UpstreamError, match="died"):
        await client.generate(chat())
    with pytest.raises(UpstreamError, match="died"):
        await anext(client.stream(chat()))
    await client.close()
    await client.close()
    assert (tmp_path / "logs" / "worker.log").exists()


@pytest.mark.slow
async def test_closing_fails_what_is_pending(llama_dir):
    client = await EngineClient.start(str(llama_dir), threads=1)
    call = asyncio.create_task(client.generate(chat(max_tokens=140, n=200)))
    await asyncio.sleep(0.01)
    await client.close()
    assert client._process.returncode == 0
    with pytest.raises(UpstreamError, match="closed"):
        await call


ORPHAN = """
import asyncio, os, sys
from agentlightning.learner import EngineClient
async def main():
    client = await EngineClient.start(sys.argv[1], threads=1)
    print(client._process.pid, flush=True)
    os._exit(9)
asyncio.run(main())
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()


@pytest.mark.slow
async def test_the_worker_ends_when_its_parent_dies(llama_dir):
    pid = int(await asyncio.to_thread(run_python, ORPHAN, str(llama_dir)))
    for _ in range(2000):
        if not is_running(pid):
            return
        await asyncio.sleep(0.05)
    pytest.fail("the worker outlives its parent")


async def test_the_client_is_free_of_torch():
    code = "import sys, agentlightning.learner.client; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert await asyncio.to_thread(run_python, code) == "set()"


async def test_dialogues_are_encoded_scored_and_learned(client):
    good, bad = await client.encode(
        [Dialogue(prompt=HELLO, completion="how many rows"), Dialogue(prompt=HELLO, completion="of it are there")]
    )
    [chosen], [rejected] = good.examples, bad.examples
    refused = await client.encode([Dialogue(prompt=[{"role": "nobody", "content": "?"}], completion="x")])
    assert [found.problem for found in refused] == ["template_refuses"]

    before = await client.score([chosen, rejected])
    assert all(value < 0 for value in before)
    metrics = await client.fit([chosen], FitConfig(lr=1e-2, threads=1))
    assert metrics["loss"] == pytest.approx(-before[0] / chosen.learned, abs=1e-4)
    after = await client.score([chosen, rejected], microbatch_tokens=1)
    assert after[0] > before[0]
    pair = TokenPair(chosen=chosen, rejected=rejected, reference_chosen=after[0], reference_rejected=after[1])
    metrics = await client.fit([pair], FitConfig(lr=1e-2, threads=1))
    assert metrics["margin"] == pytest.approx(0.0, abs=1e-3)
    last = await client.score([chosen, rejected])
    assert last[0] - last[1] > after[0] - after[1]
    with pytest.raises(BadInputError, match="nothing to learn"):
        await client.fit([], FitConfig())
