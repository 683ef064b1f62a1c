"""How an engine loads models: adapters, settings, progress, new weights in place, and what it tells of itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from agentlightning.kit.errors import BadInputError, ConfigError, ModelError, UpstreamError
from agentlightning.learner.client import EngineClient
from agentlightning.learner.model import load_model, take_weights
from agentlightning.schemas.generation import GenerateRequest, SamplingParams
from tests.unit.learner.tiny import CONTEXT, save_model

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def ask(**params: Any) -> GenerateRequest:
    params = {"max_tokens": 12, "seed": 3, **params}
    return GenerateRequest(prompt_token_ids=[5, 6, 7, 8], params=SamplingParams(**params))


@pytest.fixture(scope="module")
def adapter_dir(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama_dir), LoraConfig(r=4, target_modules="all-linear")
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(path)
    return path


def test_an_adapter_is_merged_and_an_adapter_directory_stands_for_its_base(llama_dir: Path, adapter_dir: Path) -> None:
    plain, merged = load_model(str(llama_dir)), load_model(str(llama_dir), adapter=str(adapter_dir))
    alone = load_model(str(adapter_dir))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = [loaded.model(ids).logits for loaded in (plain, merged, alone)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert torch.equal(logits[1], logits[2])
    assert not merged.lora
    with pytest.raises(ConfigError, match="is an adapter itself"):
        load_model(str(adapter_dir), adapter=str(adapter_dir))


def test_adapters_that_do_not_fit_are_refused(llama_dir: Path, adapter_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be put on this model"):
        load_model(str(llama_dir), adapter=str(tmp_path))
    other = save_model(tmp_path / "neox", "gpt_neox")
    with pytest.raises(ModelError, match="cannot be put on this model"):
        load_model(str(other), adapter=str(adapter_dir))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(tmp_path))


@pytest.mark.slow
async def test_settings_progress_and_stats(llama_dir: Path) -> None:
    stages: list[tuple[str, float]] = []
    engine = await EngineClient.start(
        llama_dir, threads=1, name="mine", max_context=40, memory_bytes=1 << 20,
        on_progress=lambda stage, done: stages.append((stage, done)),
    )  # fmt: skip
    async with engine:
        assert (engine.info.model, engine.info.max_context) == ("mine", 40 if CONTEXT > 40 else CONTEXT)
        assert [stage for stage, _ in stages] == ["libraries", "configuration", "weights", "device", "check"]
        assert [done for _, done in stages] == sorted(done for _, done in stages)
        result = await engine.generate(ask(max_tokens=None))
        assert result.model == "mine"
        assert len(result.choices[0].token_ids) <= 36
        with pytest.raises(BadInputError, match="context"):
            await engine.generate(GenerateRequest(prompt_token_ids=[5] * 40))
        stats = await engine.stats()
        assert (stats.requests, stats.prompt_tokens) == (2 - 1, 4)
        assert stats.generated_tokens == len(result.choices[0].token_ids)
        assert stats.memory_bytes > 50 << 20
        assert 0 < stats.cache_bytes < 1 << 20


@pytest.mark.slow
async def test_weights_are_taken_between_requests_and_named(llama_dir: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=7)
    async with await EngineClient.start(other, threads=1) as second:
        expected = await second.generate(ask())
    async with await EngineClient.start(llama_dir, threads=1) as engine:
        await engine.set_version("v1")
        alone = await engine.generate(ask(max_tokens=150))
        before = [asyncio.create_task(engine.generate(ask(max_tokens=150))) for _ in range(4)]
        await asyncio.sleep(0)
        swap = asyncio.create_task(engine.load_weights(other, version="v2"))
        await asyncio.sleep(0)
        after = [asyncio.create_task(engine.generate(ask())) for _ in range(4)]
        await swap
        for task in before:
            result = await task
            assert result.model_version == "v1"
            assert result.choices[0].token_ids == alone.choices[0].token_ids
        for task in after:
            result = await task
            assert result.model_version == "v2"
            assert result.choices[0].token_ids == expected.choices[0].token_ids
        with pytest.raises(ModelError, match="another architecture"):
            await engine.load_weights(save_model(tmp_path / "neox", "gpt_neox"), version="v3")
        assert (await engine.generate(ask())).model_version == "v2"
        assert engine.info.model_version == "v2"


def test_weights_of_a_model_with_an_adapter_in_training_stay(llama_dir: Path) -> None:
    loaded = load_model(str(llama_dir), lora={"r": 2})
    with pytest.raises(ConfigError, match="LoRA"):
        take_weights(loaded, str(llama_dir))


async def test_a_killed_worker_is_noticed_at_once(llama_dir: Path) -> None:
    async with await EngineClient.start(llama_dir, threads=1) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        error = await asyncio.wait_for(engine.wait_dead(), 60)
        assert isinstance(error, UpstreamError)
        assert "died" in error.message
