"""Loss and advantages equal TRL's, computed by TRL's own GRPOTrainer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentlightning.algorithm.weights.advantage import group_advantages
from agentlightning.learner.loss import Totals, policy_loss, token_logprobs
from agentlightning.learner.model import load_model
from agentlightning.learner.packing import microbatches
from agentlightning.learner.protocol import StepConfig
from agentlightning.learner.step import LogitsAt
from agentlightning.schemas.call import TrainSample

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("trl", reason="trl is in the dev extra")

GROUP = 4
REWARDS: list[float | None] = []


def scripted_reward(completions: list[Any], **_: Any) -> list[float | None]:
    return REWARDS[: len(completions)]


def make_trainer(model_dir: Path, output: Path, **settings: Any) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    loaded = load_model(str(model_dir))
    config = GRPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=2 * GROUP,
        gradient_accumulation_steps=1,
        num_generations=GROUP,
        max_completion_length=9,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )
    trainer = GRPOTrainer(
        model=loaded.model,
        reward_funcs=scripted_reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "hello"}, {"prompt": "how many"}]),
        processing_class=loaded.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def random_samples(vocab: int, rng: np.random.Generator) -> list[TrainSample]:
    """Multi-turn samples: after the first sampled token, some tokens are the environment's."""
    samples = []
    for _ in range(7):
        prompt, response = int(rng.integers(2, 8)), int(rng.integers(2, 9))
        mask = [0] * prompt + [1] + rng.integers(0, 2, response - 1).tolist()
        logprobs = [float(rng.normal(-5.5, 0.4)) * m for m in mask]
        tokens = rng.integers(3, vocab, prompt + response).tolist()
        samples.append(TrainSample(token_ids=tokens, loss_mask=mask, logprobs=logprobs, advantage=float(rng.normal())))
    return samples


def as_trl_inputs(samples: list[TrainSample], reference: dict[int, list[float]]) -> dict[str, Any]:
    """Left-padded prompts and right-padded completions, as GRPOTrainer takes them."""
    starts = [s.loss_mask.index(1) for s in samples]
    prompt_width = max(starts)
    width = max(len(s.token_ids) - start for s, start in zip(samples, starts, strict=True))
    shape = len(samples), width
    inputs: dict[str, Any] = {
        "prompt_ids": torch.zeros(len(samples), prompt_width, dtype=torch.long),
        "prompt_mask": torch.zeros(len(samples), prompt_width, dtype=torch.long),
        "completion_ids": torch.zeros(shape, dtype=torch.long),
        "completion_mask": torch.zeros(shape, dtype=torch.long),
        "tool_mask": torch.zeros(shape, dtype=torch.long),
        "old_per_token_logps": torch.zeros(shape),
        "ref_per_token_logps": torch.zeros(shape),
        "advantages": torch.tensor([s.advantage for s in samples]),
        "num_items_in_batch": torch.tensor(float(sum(sum(s.loss_mask) for s in samples))),
    }
    for i, (sample, start) in enumerate(zip(samples, starts, strict=True)):
        size = len(sample.token_ids) - start
        inputs["prompt_ids"][i, prompt_width - start :] = torch.tensor(sample.token_ids[:start])
        inputs["prompt_mask"][i, prompt_width - start :] = 1
        inputs["completion_ids"][i, :size] = torch.tensor(sample.token_ids[start:])
        inputs["completion_mask"][i, :size] = 1
        inputs["tool_mask"][i, :size] = torch.tensor(sample.loss_mask[start:])
        inputs["old_per_token_logps"][i, :size] = torch.tensor(sample.logprobs[start:])
        inputs["ref_per_token_logps"][i, :size] = torch.tensor(reference[id(sample)][start:])
    return inputs


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.04, 0.7)])
def test_loss_gradient_and_metrics_equal_trl(llama_dir, tmp_path, loss_type, beta, temperature):
    trainer = make_trainer(
        llama_dir,
        tmp_path,
        loss_type=loss_type,
        beta=beta,
        temperature=temperature,
        epsilon=0.2,
        epsilon_high=0.28,
        use_bias_correction_kl=False,
    )
    loaded = load_model(str(llama_dir))
    rng = np.random.default_rng(0)
    samples = random_samples(loaded.vocab_size, rng)
    reference = {id(s): (np.array(s.logprobs) + rng.normal(0, 0.3, len(s.logprobs))).tolist() for s in samples}

    trainer.model.train()
    expected = trainer._compute_loss(trainer.model, as_trl_inputs(samples, reference))
    expected.backward()

    config = StepConfig(loss_type=loss_type, beta=beta, temperature=temperature, clip_low=0.2, clip_high=0.28)
    totals = Totals(len(samples), sum(sum(s.loss_mask) for s in samples), 9)
    logits_at = LogitsAt(loaded)
    loss = 0.0
    sums: dict[str, float] = {}
    batches = list(microbatches(samples, 30, loaded.device))
    ordered = sorted(samples, key=lambda s: len(s.token_ids), reverse=True)
    assert len(batches) > 2
    for batch in batches:
        rows = [ordered.pop(0) for _ in range(len(batch.ids))]
        kept = [v for s in rows for v, m in zip(reference[id(s)], s.loss_mask, strict=True) if m]
        part, part_sums = policy_loss(logits_at(batch), batch, totals, config, torch.tensor(kept) if beta else None)
        part.backward()
        loss += float(part.detach())
        sums = {k: sums.get(k, 0.0) + float(v) for k, v in part_sums.items()}

    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    theirs = dict(trainer.model.named_parameters())
    for name, parameter in loaded.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4)
    metrics = trainer._metrics["train"]
    assert sums["entropy"] / totals.tokens == pytest.approx(metrics["entropy"][-1], abs=1e-4)
    assert sums["clip_fraction"] / totals.tokens == pytest.approx(metrics["clip_ratio/region_mean"][-1], abs=1e-6)
    assert metrics["clip_ratio/region_mean"][-1] > 0, "the inputs must reach the clip bounds"
    if beta:
        assert sums["kl_reference"] / totals.tokens == pytest.approx(metrics["kl"][-1], abs=1e-5)


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_equal_trl(llama_dir, tmp_path, scale):
    trainer = make_trainer(llama_dir, tmp_path, scale_rewards="group" if scale else "none", max_steps=1)
    rng = random.Random(5)
    trainer.model.train()
    for round_ in range(3):
        REWARDS[:] = [rng.choice([0.0, 1.0, rng.random()]) for _ in range(2 * GROUP)]
        if round_ == 1:
            REWARDS[1] = REWARDS[6] = None
        if round_ == 2:
            REWARDS[:GROUP] = [1.0] * GROUP
        inputs = [{"prompt": p} for p in ("hello", "how many") for _ in range(GROUP)]
        expected = trainer._generate_and_score_completions(inputs)["advantages"].tolist()
        ours = [
            0.0 if a is None else a
            for start in (0, GROUP)
            for a in group_advantages(REWARDS[start : start + GROUP], scale_by_std=scale).advantages
        ]
        assert ours == pytest.approx(expected, abs=1e-5)


def test_token_logprobs_equal_log_softmax():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 11) * 3, torch.tensor([0, 3, 10, 4, 4])
    expected = torch.log_softmax(logits / 0.7, -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(token_logprobs(logits, targets, 0.7), expected)
