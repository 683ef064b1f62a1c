"""Optimizer steps through `PolicyTrainer.train`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agentlightning.algorithm.weights.advantage import group_advantages
from agentlightning.kit.errors import BadInputError, ConfigError
from agentlightning.learner.engine import Engine
from agentlightning.learner.model import load_model
from agentlightning.learner.packing import microbatches, minibatches
from agentlightning.learner.protocol import StepConfig
from agentlightning.learner.step import LogitsAt, PolicyTrainer, learning_rate
from agentlightning.schemas.call import TrainSample
from agentlightning.schemas.generation import GenerateRequest, GenerateResult, SamplingParams
from tests.unit.learner.tiny import save_model

# peft still reads a name that transformers 5 renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def sample_groups(engine: Engine, prompts: list[list[int]], size: int, length: int) -> list[GenerateResult]:
    for i, prompt in enumerate(prompts):
        params = SamplingParams(n=size, max_tokens=length)
        engine.submit(GenerateRequest(request_id=f"g{i}", prompt_token_ids=prompt, params=params))
    results = []
    while engine.busy:
        results += engine.step()
    return results


def as_samples(result: GenerateResult, rewards: list[float]) -> list[TrainSample]:
    before = len(result.prompt_token_ids)
    return [
        TrainSample(
            token_ids=result.prompt_token_ids + choice.token_ids,
            loss_mask=[0] * before + [1] * len(choice.token_ids),
            logprobs=[0.0] * before + choice.logprobs,
            advantage=advantage or 0.0,
        )
        for choice, advantage in zip(result.choices, group_advantages(rewards).advantages, strict=True)
    ]


def some_samples(vocab: int = 320, count: int = 6) -> list[TrainSample]:
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        size = 5 + i
        samples.append(
            TrainSample(
                token_ids=rng.integers(3, vocab, size).tolist(),
                loss_mask=[0, 0] + [1] * (size - 2),
                logprobs=[0.0, 0.0] + [-5.5] * (size - 2),
                advantage=(-1.0) ** i,
            )
        )
    return samples


@pytest.fixture
def loaded(llama_dir):
    return load_model(str(llama_dir))


@pytest.fixture
def trainer(loaded):
    return PolicyTrainer(loaded)


def test_grpo_learns_a_bandit(loaded, trainer):
    engine = Engine(loaded, max_batch=64)
    wanted = set(range(100, 140))
    shares = []
    for _ in range(12):
        results = sample_groups(engine, [[5, 6, 7], [9, 8]], 32, 2)
        rewards = [[sum(t in wanted for t in c.token_ids) / len(c.token_ids) for c in r.choices] for r in results]
        shares.append(float(np.mean(rewards)))
        batch = [s for r, given in zip(results, rewards, strict=True) for s in as_samples(r, given)]
        metrics = trainer.train(batch, StepConfig(lr=1e-2))
        engine.weights_changed()
    assert shares[0] < 0.3
    assert np.mean(shares[-3:]) > 0.8
    assert metrics["optimizer_steps"] == 2
    assert trainer.batches == 12


def test_fresh_samples_have_ratio_one(loaded, trainer):
    results = sample_groups(Engine(loaded), [[5, 6, 7]], 8, 12)
    metrics = trainer.train(as_samples(results[0], [float(i) for i in range(8)]), StepConfig(lr=0.0, minibatches=1))
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["clip_fraction"] == 0.0
    assert metrics["tokens"] == sum(len(c.token_ids) for c in results[0].choices)
    assert metrics["entropy"] > 1.0


def test_accumulation_over_microbatches_gives_the_same_step(llama_dir):
    after = []
    for budget in (8, 10_000):
        loaded = load_model(str(llama_dir))
        PolicyTrainer(loaded).train(some_samples(), StepConfig(lr=1e-2, minibatches=1, microbatch_tokens=budget))
        after.append([p.detach().clone() for p in loaded.model.parameters()])
    for one, other in zip(*after, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_samples_without_advantage_count_but_are_not_computed(llama_dir):
    gradients = []
    for computed in (True, False):
        loaded = load_model(str(llama_dir))
        trainer = PolicyTrainer(loaded)
        samples = some_samples()
        for sample in samples[:3]:
            sample.advantage = 1e-30 if computed else 0.0
        metrics = trainer.train(samples, StepConfig(lr=1.0, minibatches=1, max_grad_norm=0.0))
        gradients.append(metrics["grad_norm"])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)
    assert metrics["tokens"] == sum(sum(s.loss_mask) for s in samples[3:])


def test_a_batch_without_any_advantage_takes_no_step(loaded, trainer):
    before = [p.detach().clone() for p in loaded.model.parameters()]
    samples = some_samples()
    for sample in samples:
        sample.advantage = 0.0
    metrics = trainer.train(samples, StepConfig())
    assert metrics["optimizer_steps"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, loaded.model.parameters(), strict=True))


def test_a_step_that_is_not_finite_is_skipped_and_reported(loaded, trainer):
    before = [p.detach().clone() for p in loaded.model.parameters()]
    samples = some_samples()
    samples[0].logprobs[3] = -math.inf
    metrics = trainer.train(samples, StepConfig(minibatches=1))
    assert metrics["skipped_steps"] == 1
    assert metrics["optimizer_steps"] == 0
    assert "grad_norm" not in metrics
    assert all(torch.equal(a, b) for a, b in zip(before, loaded.model.parameters(), strict=True))
    assert trainer.train(some_samples(), StepConfig())["optimizer_steps"] == 2


def test_gradients_of_a_stopped_batch_are_not_used_later(llama_dir):
    def stop() -> None:
        raise RuntimeError("stop")

    fresh, stopped = (PolicyTrainer(load_model(str(llama_dir))) for _ in range(2))
    with pytest.raises(RuntimeError, match="stop"):
        stopped.train(some_samples(), StepConfig(), between=stop)
    expected = fresh.train(some_samples(), StepConfig())
    assert stopped.train(some_samples(), StepConfig())["grad_norm"] == pytest.approx(expected["grad_norm"])


def test_the_gradient_is_clipped(llama_dir):
    norms = []
    for limit in (0.0, 1e-3):
        trainer = PolicyTrainer(load_model(str(llama_dir)))
        trainer.train(some_samples(), StepConfig(minibatches=1, max_grad_norm=limit))
        norms.append(math.sqrt(sum(float(s["exp_avg"].pow(2).sum()) for s in trainer.optimizer.state.values())) / 0.1)
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_a_penalty_pulls_back_to_the_loaded_model(llama_dir):
    loaded = load_model(str(llama_dir))
    trainer = PolicyTrainer(loaded)
    for _ in range(4):
        trainer.train(some_samples(), StepConfig(lr=1e-2))
    samples = some_samples()
    for sample in samples:
        sample.advantage = 0.0
    config = StepConfig(lr=3e-3, beta=1.0, minibatches=1)
    away = [trainer.train(samples, config)["kl_reference"] for _ in range(20)]
    assert away[0] > 0.01
    assert away[-1] < away[0] / 5


def test_lora_trains_the_adapter_only_and_uses_the_base_as_reference(llama_dir):
    loaded = load_model(str(llama_dir), lora={"r": 4, "alpha": 8})
    frozen = {n: p.detach().clone() for n, p in loaded.model.named_parameters() if "lora" not in n}
    trainer = PolicyTrainer(loaded)
    assert trainer.parameters
    assert all("lora" in name for name in trainer.parameters)
    first = trainer.train(some_samples(), StepConfig(lr=1e-2, beta=0.1, minibatches=1))
    second = trainer.train(some_samples(), StepConfig(lr=1e-2, beta=0.1, minibatches=1))
    assert first["kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert second["kl_reference"] > 0
    assert all(torch.equal(frozen[n], p) for n, p in loaded.model.named_parameters() if n in frozen)


@pytest.mark.parametrize("lora", [{"rank": 3}, {"target_modules": ["no_such_layer"]}])
def test_wrong_lora_settings_are_named(llama_dir, lora):
    with pytest.raises(ConfigError, match="LoRA"):
        load_model(str(llama_dir), lora=lora)


def test_small_updates_of_bfloat16_weights_add_up(llama_dir):
    loaded = load_model(str(llama_dir), dtype="bfloat16")
    trainer = PolicyTrainer(loaded)
    name, parameter = next(iter(trainer.parameters.items()))
    assert parameter.dtype == torch.bfloat16
    assert trainer.masters[name].dtype == torch.float32
    before = trainer.masters[name].detach().clone()
    for _ in range(3):
        trainer.train(some_samples(), StepConfig(lr=1e-5))
    moved = (trainer.masters[name].detach() - before).abs().max()
    assert 1e-5 < float(moved) < 1e-4
    torch.testing.assert_close(parameter.float(), trainer.masters[name].data, atol=0.01, rtol=0.01)


def test_learning_rate_schedules():
    constant = StepConfig(lr=1.0, warmup_steps=2)
    assert [learning_rate(constant, i) for i in range(4)] == [0.5, 1.0, 1.0, 1.0]
    linear = StepConfig(lr=1.0, schedule="linear", warmup_steps=1, total_steps=5)
    assert [learning_rate(linear, i) for i in range(7)] == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    cosine = StepConfig(lr=1.0, schedule="cosine", total_steps=4)
    assert [learning_rate(cosine, i) for i in (0, 2, 4, 9)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert learning_rate(StepConfig(lr=1.0, schedule="linear"), 100) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_mask": [0] * 5}, "no token"),
        ({"loss_mask": [0, 1]}, "mask entries"),
        ({"logprobs": [0.0]}, "logprobs"),
        ({"loss_mask": [1] * 5}, "first token"),
        ({"token_ids": [5, 6, 7, 8, 320]}, "outside"),
        ({"advantage": math.nan}, "not finite"),
    ],
)
def test_samples_that_contradict_themselves_are_refused(trainer, change, message):
    sample = some_samples(count=1)[0]
    for name, value in change.items():
        setattr(sample, name, value)
    with pytest.raises(BadInputError, match=message.replace("no token", "No sample has a token")):
        trainer.train([sample], StepConfig())


def test_minibatches_deal_every_sample_once():
    samples = some_samples(count=7)
    parts = minibatches(samples, 3, np.random.default_rng(0))
    assert sorted(len(p) for p in parts) == [2, 2, 3]
    assert sorted(len(s.token_ids) for p in parts for s in p) == [len(s.token_ids) for s in samples]
    assert len(minibatches(samples, 20, np.random.default_rng(0))) == 7


def test_microbatches_keep_to_the_budget_and_place_the_targets():
    samples = some_samples(count=6)
    batches = list(microbatches(samples, 20, torch.device("cpu")))
    assert all(b.ids.numel() <= 20 for b in batches)
    assert sum(len(b.ids) for b in batches) == 6
    for batch in batches:
        assert torch.equal(batch.targets, batch.ids[batch.rows, batch.columns + 1])
    assert [b.ids.shape for b in microbatches(samples[-1:], 3, torch.device("cpu"))] == [(1, 10)]


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma2"])
def test_logits_at_sampled_tokens_equal_the_whole_forward(tmp_path, kind):
    loaded = load_model(str(save_model(tmp_path, kind)))
    logits_at = LogitsAt(loaded)
    assert (logits_at._decoder is None) == (kind == "gemma2"), "gemma2 caps its logits after the output layer"
    (batch,) = microbatches(some_samples(), 1000, loaded.device)
    with torch.no_grad():
        expected = loaded.model(input_ids=batch.ids).logits[batch.rows, batch.columns]
        torch.testing.assert_close(logits_at(batch), expected)
