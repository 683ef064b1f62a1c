"""The build is reproducible, and the model that ships loads and speaks the format."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from agentlightning.nano import grade, make_tasks, model_path
from agentlightning.nano.pretrain import NanoConfig, build
from agentlightning.nano.questions import KINDS
from agentlightning.nano.tokens import load_tokenizer, render

TINY = NanoConfig(
    hidden_size=16,
    layers=1,
    heads=2,
    intermediate_size=32,
    vocabulary=400,
    tokenizer_conversations=60,
    batch_size=4,
    pool_batches=2,
)
MAX_MODEL_BYTES = 4 * 1024 * 1024


def test_build_when_repeated_gives_the_same_weights(tmp_path: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    reports: list[tuple[float, dict[str, float]]] = []
    one = build(tmp_path / "one", 3, 1, lambda share, numbers: reports.append((share, numbers)), 5, TINY)
    two = build(tmp_path / "two", 3, 1, None, 5, TINY)
    other = build(tmp_path / "other", 4, 1, None, 5, TINY)
    assert torch.get_num_threads() == threads
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"} <= set(names)
    assert [_digest(one / name) for name in names] == [_digest(two / name) for name in names]
    assert _digest(one / "model.safetensors") != _digest(other / "model.safetensors")
    assert [share for share, _ in reports] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(numbers["loss"] > 0 for _, numbers in reports)


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(model_path()), AutoTokenizer.from_pretrained(model_path())


def test_shipped_model_when_weighed_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in model_path().iterdir()}
    assert sum(sizes.values()) <= MAX_MODEL_BYTES, sizes
    recipe = json.loads((model_path() / "build.json").read_text())
    assert {key: recipe[key] for key in ("hidden_size", "layers", "skill_steps", "habit_steps")} == {
        key: getattr(NanoConfig(), key) for key in ("hidden_size", "layers", "skill_steps", "habit_steps")
    }


def test_shipped_model_when_loaded_is_a_plain_llama(shipped: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = shipped
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert 500_000 < model.num_parameters() < 1_100_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert load_tokenizer(model_path()).chat_template == tokenizer.chat_template


def test_shipped_model_when_asked_calls_the_tool_and_is_mediocre(
    shipped: tuple[Any, Any], database_dir: Path, stack: ExitStack
) -> None:
    """Greedy, first turn only: nearly always a call that parses, and far from always the right one."""
    import sqlite3

    import torch

    from agentlightning.nano import chat

    model, tokenizer = shipped
    tokenizer.padding_side = "left"
    tasks = make_tasks("test", 72, 0, database_dir)
    connections = [stack.enter_context(closing(sqlite3.connect(task["database"]))) for task in tasks]
    prompts = [
        render(chat.first_messages(task["question"], chat.read_schema(connection))) + "<|assistant|>"
        for task, connection in zip(tasks, connections, strict=True)
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, temperature=None, max_new_tokens=48)
    texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    calls, right = 0, 0.0
    for task, connection, text in zip(tasks, connections, texts, strict=True):
        if not text.startswith("<tool_call>"):
            continue
        call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        assert call["name"] == "sql"
        calls += 1
        right += grade(task, chat.run_query(call["arguments"]["query"], connection)[1])
    assert calls >= 0.95 * len(tasks)
    assert 0 < right <= 0.6 * len(tasks)
    assert {task["kind"] for task in tasks} == set(KINDS)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
