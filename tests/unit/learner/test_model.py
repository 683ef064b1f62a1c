"""Every way a model cannot be loaded is a `ModelError` or `ConfigError` that says what to do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, T5Config

from agentlightning.kit.errors import ConfigError, MissingExtraError, ModelError
from agentlightning.learner.model import load_model
from tests.unit.learner.tiny import CONTEXT, make_tokenizer


@pytest.fixture
def copy(llama_dir, tmp_path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "model"))


def test_a_loaded_model_describes_itself(llama_dir):
    info = load_model(str(llama_dir)).describe("v3")
    assert info.model == str(llama_dir)
    assert info.model_version == "v3"
    assert (info.vocab_size, info.max_context, info.device, info.dtype) == (320, CONTEXT, "cpu", "float32")
    assert info.parameters > 10_000
    assert info.has_chat_template


def test_all_end_tokens_of_the_generation_config_count(copy):
    GenerationConfig(eos_token_id=[7, 9]).save_pretrained(copy)
    assert load_model(str(copy)).eos_ids == {2, 7, 9}


def test_the_context_falls_back_to_the_tokenizer(copy, llama_dir):
    from agentlightning.learner.model import _max_context

    class Bare:
        pass

    tokenizer = make_tokenizer()
    assert _max_context(Bare(), tokenizer) == 2048
    tokenizer.model_max_length = 77
    assert _max_context(Bare(), tokenizer) == 77


@pytest.mark.parametrize("name", ["/no/such/place", "./nothing", "a/b/c"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ModelError, match="no model directory") as caught:
        load_model(name)
    assert caught.value.hint


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_a_hub_id_that_cannot_be_had(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="Cannot get configuration of no-such/model-anywhere") as caught:
        load_model("no-such/model-anywhere")
    assert "network" in caught.value.hint


def test_not_a_causal_model(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_model(str(tmp_path))
    config = {"model_type": "vit"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="not a causal language model"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage"])
def test_broken_weights(copy, damage):
    file = copy / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match="weights") as caught:
        load_model(str(copy))
    assert "incomplete or broken" in caught.value.hint


def test_a_broken_configuration(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="configuration"):
        load_model(str(copy))


def test_no_tokenizer(copy):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (copy / file).unlink()
    with pytest.raises(ModelError, match="tokenizer") as caught:
        load_model(str(copy))
    assert "tokenizer" in caught.value.hint


def test_unknown_devices_and_dtypes(llama_dir):
    with pytest.raises(ConfigError, match="Unknown device"):
        load_model(str(llama_dir), device="toaster")
    with pytest.raises(ConfigError, match="Unknown dtype"):
        load_model(str(llama_dir), dtype="int3")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            load_model(str(llama_dir), device="cuda:0")


def test_lora_without_peft_names_the_package(llama_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="peft"):
        load_model(str(llama_dir), lora={})
