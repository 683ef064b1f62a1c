"""The file that `agl store preferences --as jsonl` writes is what TRL trains on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agentlightning.store import SqlLightningStore
from tests.unit.agent.builders import model_call
from tests.unit.cli.test_store import agl
from tests.unit.learner.tiny import save_model

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("trl", reason="trl is in the dev extra")

USER = {"role": "user", "content": "how many rows"}
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}]


def asks(where: str) -> dict[str, Any]:
    function = {"name": "count", "arguments": json.dumps({"from": where})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


async def fill(path: Path) -> None:
    store = SqlLightningStore(path)
    await store.create_lineage_session(session_id="s")
    for position, where in enumerate(("there", "here", "it")):
        name = f"r{position}"
        rollout = await store.start_rollout({"question": "rows"}, rollout_id=name)
        seen = {"role": "tool", "tool_call_id": "1", "content": "3"}
        turns = [([USER], asks(where)), ([USER, asks(where), seen], {"role": "assistant", "content": f"3 {where}"})]
        for number, (messages, output) in enumerate(turns, start=1):
            span = model_call([1], [2], messages=messages, output=output, tools=TOOLS, sequence_id=number)
            await store.add_span(span.model_copy(update={"rollout_id": name, "attempt_id": rollout.attempt.attempt_id}))
        await store.add_to_lineage(f"s.{position}", name)
    await store.lock_lineage("s.1")
    await store.close()


def test_dpo_trainer_takes_a_step_on_the_file(tmp_path: Path) -> None:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer
    from trl.data_utils import apply_chat_template, is_conversational

    torch.set_num_threads(1)
    asyncio.run(fill(tmp_path / "s.db"))
    pairs = tmp_path / "pairs.jsonl"
    agl("preferences", "--as", "jsonl", "-o", str(pairs), "--store", str(tmp_path / "s.db"))

    dataset = load_dataset("json", data_files=str(pairs), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == 2
    assert all(is_conversational(row) for row in dataset)
    model_dir = save_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    row = dataset[0]
    text = apply_chat_template({name: row[name] for name in ("prompt", "chosen", "rejected")}, tokenizer)
    assert text["prompt"].endswith("how many rows<|im_end|>\n<|im_start|>assistant\n")
    assert '"arguments": {"from": "here"}' in text["chosen"]
    assert text["chosen"].endswith("3 here<|im_end|>\n")
    assert '"arguments": {"from": "there"}' in text["rejected"]

    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=DPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=2,
            max_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    result = trainer.train()
    assert result.training_loss == pytest.approx(0.6931, abs=1e-3)  # before any step both are equally likely
