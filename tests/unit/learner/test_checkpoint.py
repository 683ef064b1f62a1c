"""Checkpoints and exported models: nothing but whole ones, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentlightning.kit.errors import ConflictError, ModelError, StorageError
from agentlightning.learner.checkpoint import load_checkpoint, save_checkpoint, save_model
from agentlightning.learner.model import load_model
from agentlightning.learner.protocol import StepConfig
from agentlightning.learner.step import PolicyTrainer
from tests.unit.learner.test_step import some_samples
from tests.unit.learner.tiny import save_model as save_tiny

# peft still reads a name that transformers 5 renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def make(model_dir: Path, **options) -> PolicyTrainer:
    return PolicyTrainer(load_model(str(model_dir), **options))


def save(directory: Path, trainer: PolicyTrainer, **options) -> Path:
    return save_checkpoint(directory, trainer, **{"meta": {}, "streams_used": 0, **options})


def weights(trainer: PolicyTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.masters.values()]


@pytest.mark.parametrize("options", [{}, {"lora": {"r": 2}}, {"dtype": "bfloat16"}], ids=str)
def test_training_continues_as_if_never_interrupted(llama_dir, tmp_path, options):
    def prepared() -> PolicyTrainer:
        torch.manual_seed(0)  # the adapter starts at random
        return make(llama_dir, **options)

    whole = prepared()
    for _ in range(4):
        whole.train(some_samples(), StepConfig(lr=1e-2, schedule="linear", total_steps=5))
    first = prepared()
    for _ in range(2):
        first.train(some_samples(), StepConfig(lr=1e-2, schedule="linear", total_steps=5))
    save(tmp_path, first, meta={"step": 2}, streams_used=17)
    resumed = make(llama_dir, **options)
    assert load_checkpoint(tmp_path, resumed) == ({"step": 2}, 17)
    assert resumed.batches == 2
    for _ in range(2):
        resumed.train(some_samples(), StepConfig(lr=1e-2, schedule="linear", total_steps=5))
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)
    for name, parameter in resumed.parameters.items():
        assert torch.equal(parameter.float(), resumed.masters[name].to(parameter.dtype).float())


def test_the_last_checkpoints_are_kept(llama_dir, tmp_path):
    trainer = make(llama_dir)
    for trainer.batches in range(1, 6):
        save(tmp_path, trainer, keep=2, meta={"n": trainer.batches})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000004", "step-000005"]
    again = save(tmp_path, trainer, keep=2, meta={"n": "again"})
    assert again.name == "step-000005-001"
    assert load_checkpoint(tmp_path, trainer) == ({"n": "again"}, 0)
    assert load_checkpoint(tmp_path / "step-000005", trainer) == ({"n": 5}, 0)


def test_no_checkpoint_is_none(llama_dir, tmp_path):
    assert load_checkpoint(tmp_path / "absent", make(llama_dir)) is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "header", "foreign"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(llama_dir, tmp_path, damage):
    trainer = make(llama_dir)
    trainer.batches = 1
    save(tmp_path, trainer, meta={"n": 1})
    trainer.batches = 2
    newest = save(tmp_path, trainer, meta={"n": 2})
    file = newest / "weights.safetensors"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (newest / "checkpoint.json").write_text("{")
    elif damage == "header":
        file.write_bytes(b"\xff" * file.stat().st_size)
    else:
        (newest / "checkpoint.json").write_text("{}")
    assert load_checkpoint(tmp_path, trainer) == ({"n": 1}, 0)
    assert trainer.batches == 1


def test_a_checkpoint_of_another_model_is_refused(llama_dir, tmp_path):
    save(tmp_path, make(llama_dir, lora={"r": 2}))
    with pytest.raises(ModelError, match="another model"):
        load_checkpoint(tmp_path, make(llama_dir))


def test_a_full_disk_leaves_the_older_checkpoint(llama_dir, tmp_path, monkeypatch):
    trainer = make(llama_dir)
    save(tmp_path, trainer, meta={"n": 0})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer.batches = 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            save(tmp_path, trainer, meta={"n": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000"]
    assert load_checkpoint(tmp_path, trainer) == ({"n": 0}, 0)


def test_a_place_that_cannot_be_written_is_named(llama_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        save(tmp_path / "file", make(llama_dir))


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from agentlightning.learner.checkpoint import save_checkpoint
from agentlightning.learner.model import load_model
from agentlightning.learner.step import PolicyTrainer
trainer = PolicyTrainer(load_model(sys.argv[1]))
while True:
    trainer.batches += 1
    with torch.no_grad():
        for parameter in trainer.masters.values():
            parameter.fill_(float(trainer.batches))
    save_checkpoint(Path(sys.argv[2]), trainer, meta={"n": trainer.batches}, streams_used=0, keep=2)
    print(trainer.batches, flush=True)
"""


def test_a_killed_process_leaves_a_whole_checkpoint(llama_dir, tmp_path):
    command = [sys.executable, "-c", KILLED, str(llama_dir), str(tmp_path / "checkpoints")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for _ in range(3):
            saved = int(process.stdout.readline())
        time.sleep(0.0173)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    saved = int(rest[-1]) if rest else saved
    trainer = make(llama_dir)
    meta, _ = load_checkpoint(tmp_path / "checkpoints", trainer)
    assert meta["n"] in (saved, saved + 1)
    assert all(bool((p == meta["n"]).all()) for p in trainer.masters.values())
    trainer.batches += 1
    save(tmp_path / "checkpoints", trainer, keep=1)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1, "what the killed process left is cleared away"


def test_a_saved_model_loads_with_transformers(llama_dir, tmp_path):
    trainer = make(llama_dir)
    trainer.train(some_samples(), StepConfig(lr=1e-2))
    target = save_model(tmp_path / "model", trainer._loaded)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = trainer._loaded.model(ids).logits
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(target)(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(target).chat_template
    save_model(target, load_model(str(llama_dir)))
    with torch.no_grad():
        assert not torch.equal(AutoModelForCausalLM.from_pretrained(target)(ids).logits, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_lora_model_is_saved_merged_or_as_adapter(llama_dir, tmp_path):
    trainer = make(llama_dir, lora={"r": 4})
    for _ in range(3):
        trainer.train(some_samples(), StepConfig(lr=1e-2))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = trainer._loaded.model(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "merged", trainer._loaded))
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(trainer._loaded.model(ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    adapter = save_model(tmp_path / "adapter", trainer._loaded, merge=False)
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 4
    assert not (adapter / "model.safetensors").exists()


def test_a_directory_with_other_things_is_not_replaced(llama_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    loaded = load_model(str(llama_dir))
    with pytest.raises(ConflictError, match="not a model directory"):
        save_model(tmp_path, loaded)
    with pytest.raises(ConflictError, match="not a model directory"):
        save_model(tmp_path / "thesis.txt", loaded)
    (tmp_path / "empty").mkdir()
    assert (save_model(tmp_path / "empty", loaded) / "config.json").exists()


def test_another_architecture_is_saved_and_loaded(tmp_path):
    source = save_tiny(tmp_path / "neox", "gpt_neox")
    trainer = make(source)
    trainer.train(some_samples(), StepConfig(lr=1e-2))
    save(tmp_path / "c", trainer)
    other = make(source)
    load_checkpoint(tmp_path / "c", other)
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer), weights(other), strict=True))
