"""The learner on a CUDA device: the same numbers as on the CPU, and learning. Run with `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlightning import nano
from agentlightning.learner.client import EngineClient
from agentlightning.learner.protocol import StepConfig
from agentlightning.schemas import GenerateRequest, SamplingParams, TrainSample

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

DEVICE = "cuda"
MESSAGES = [{"role": "system", "content": "cars(model, origin, mpg)"}, {"role": "user", "content": "How many cars?"}]


def ask(seed: int) -> GenerateRequest:
    return GenerateRequest(messages=MESSAGES, params=SamplingParams(seed=seed, max_tokens=24))


async def test_sampling_on_cuda_equals_sampling_on_the_cpu() -> None:
    async with await EngineClient.start(str(nano.model_path()), device="cpu", dtype="float32") as cpu:
        expected = [await cpu.generate(ask(seed)) for seed in range(8)]
    async with await EngineClient.start(str(nano.model_path()), device=DEVICE, dtype="float32") as cuda:
        assert cuda.info.device.startswith("cuda")
        found = [await cuda.generate(ask(seed)) for seed in range(8)]
    same = 0
    for a, b in zip(expected, found, strict=True):
        if a.choices[0].token_ids == b.choices[0].token_ids:
            same += 1
            assert b.choices[0].logprobs == pytest.approx(a.choices[0].logprobs, abs=1e-3)
    assert same >= 7, "a sample may differ where a draw falls on an edge, not more often"


async def test_a_policy_learns_on_cuda(tmp_path: Path) -> None:
    async with await EngineClient.start(str(nano.model_path()), device=DEVICE, dtype="float32") as engine:
        first = (await engine.generate(ask(1))).choices[0]
        result = await engine.generate(ask(1))
        ids = result.prompt_token_ids + first.token_ids
        mask = [0] * len(result.prompt_token_ids) + [1] * len(first.token_ids)
        logprobs = [0.0] * len(result.prompt_token_ids) + first.logprobs
        sample = TrainSample(token_ids=ids, loss_mask=mask, logprobs=logprobs, advantage=1.0)
        for _ in range(3):
            metrics = await engine.train([sample], StepConfig(lr=1e-4, minibatches=1))
            assert metrics["grad_norm"] > 0
        again = await engine.generate(
            GenerateRequest(
                prompt_token_ids=result.prompt_token_ids, params=SamplingParams(temperature=0, max_tokens=24)
            )
        )
        assert again.choices[0].token_ids
        await engine.save_checkpoint(tmp_path, meta={"step": 3})
        assert await engine.load_checkpoint(tmp_path) == {"step": 3}
