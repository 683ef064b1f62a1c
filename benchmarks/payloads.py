"""What storing large values in pieces costs and saves: bytes on disk, CPU to write, CPU to read.

Rollouts as training makes them: 8 calls each, prompts growing from about 2,000 to 8,000 tokens, four rollouts a task,
the same system prompt and tools in all. Text is the standard library's source; token ids come from a BPE tokenizer of
50,000 entries that is trained on it at the start (package `tokenizers`). CPU is that of the whole process, the writer's
thread included.

    python benchmarks/payloads.py [--tasks 6] [--rounds 3]

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agentlightning import Span, SqlLightningStore
from agentlightning.kit import zstd
from agentlightning.schemas import semconv
from agentlightning.store import maintenance, pieces
from agentlightning.store.ops import payloads

# name: values up to this stay in the row, piece, zstd level; all in bytes
CASES: dict[str, tuple[int, int, int]] = {
    "all in the row": (2**40, 4096, 1),
    "1 KiB, pieces of 4 KiB": (1024, 4096, 1),
    "2 KiB, pieces of 2 KiB": (2048, 2048, 1),
    "2 KiB, pieces of 4 KiB": (2048, 4096, 1),
    "2 KiB, pieces of 4 KiB, level 3": (2048, 4096, 3),
    "2 KiB, pieces of 8 KiB": (2048, 8192, 1),
    "2 KiB, in one piece": (2048, 2**40, 1),
    "4 KiB, pieces of 4 KiB": (4096, 4096, 1),
    "8 KiB, pieces of 8 KiB": (8192, 8192, 1),
}
CHOSEN = "2 KiB, pieces of 4 KiB"
TURNS = 8


class Text:
    """Source code in slices, and its tokens."""

    def __init__(self, seed: int) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        self._texts = [text for path in files if len(text := path.read_text(errors="replace")) > 20_000]
        self._tokenizer = Tokenizer(models.BPE())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.train_from_iterator(self._texts, trainers.BpeTrainer(vocab_size=50_000, show_progress=False))
        self._chance = random.Random(seed)

    def slice(self, tokens: int) -> str:
        text = self._chance.choice(self._texts)
        start = self._chance.randrange(len(text) - 4 * tokens)
        return text[start : start + 4 * tokens]

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def logprobs(self, count: int) -> list[float]:
        return [-self._chance.expovariate(2.0) for _ in range(count)]


def calls(text: Text, system: str, tools: str, task: str) -> Iterator[dict[str, Any]]:
    """Attributes of the calls of one rollout."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}, {"role": "user", "content": task}]
    prompt = text.ids(system + tools + task)
    for _ in range(TURNS):
        answer = text.slice(150)
        response = text.ids(answer)
        yield {
            semconv.REQUEST_MODEL: "model",
            semconv.CALL_INPUT_MESSAGES: json.dumps(messages),
            semconv.CALL_TOOLS: tools,
            semconv.CALL_OUTPUT_MESSAGES: json.dumps([{"role": "assistant", "content": answer}]),
            semconv.PROMPT_TOKEN_IDS: list(prompt),
            semconv.RESPONSE_TOKEN_IDS: response,
            semconv.RESPONSE_LOGPROBS: text.logprobs(len(response)),
        }
        seen = text.slice(600)
        messages += [{"role": "assistant", "content": answer}, {"role": "tool", "tool_call_id": "1", "content": seen}]
        prompt = prompt + response + text.ids(seen)


def workload(tasks: int) -> list[list[dict[str, Any]]]:
    text = Text(seed=1)
    system = text.slice(600)
    function = {"parameters": {"type": "object", "properties": {"x": {"description": text.slice(20)}}}}
    tools = json.dumps(
        [
            {"type": "function", "function": {"name": f"f{i}", "description": text.slice(60), **function}}
            for i in range(8)
        ]
    )
    return [
        list(calls(text, system, tools, task)) for task in (text.slice(300) for _ in range(tasks)) for _ in range(4)
    ]


async def measure(rollouts: list[list[dict[str, Any]]], folder: Path) -> dict[str, float]:
    path = folder / "store.db"
    store = SqlLightningStore(path)
    spans = sum(map(len, rollouts))
    keys: list[str] = []
    began = time.process_time()
    for attributes in rollouts:
        rollout = await store.start_rollout("task")
        keys.append(rollout.rollout_id)
        for values in attributes:
            await store.add_span(
                Span.from_attributes(
                    attributes=values,
                    rollout_id=rollout.rollout_id,
                    attempt_id=rollout.attempt.attempt_id,
                    name=semconv.MODEL_CALL,
                )
            )
    written = time.process_time() - began
    began = time.process_time()
    found = await store.query_many_spans(keys)
    read = time.process_time() - began
    assert [[span.attributes for span in found[key]] for key in keys] == rollouts
    await store.close()
    maintenance.vacuum(path)
    return {"bytes": path.stat().st_size / spans, "write_us": written / spans * 1e6, "read_us": read / spans * 1e6}


def set_case(case: tuple[int, int, int]) -> None:
    pieces.INLINE_BYTES, pieces.PIECE_BYTES, level = case
    pieces.REST_BYTES = max(16384, case[0])
    pieces.FAR_PIECE_BYTES = max(32768, pieces.PIECE_BYTES)
    payloads._LEVEL = level


def by_attribute(rollouts: list[list[dict[str, Any]]]) -> dict[str, tuple[float, float]]:
    """Mean size, and how well each compresses on its own."""
    sizes: dict[str, tuple[float, float]] = {}
    for name in rollouts[0][0]:
        values = [msgspec.msgpack.encode(call[name]) for rollout in rollouts for call in rollout]
        total = sum(map(len, values))
        sizes[name] = (total / len(values), total / sum(len(zstd.compress(value, 1)) for value in values))
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rollouts = workload(arguments.tasks)
    lengths = [len(call[semconv.PROMPT_TOKEN_IDS]) for rollout in rollouts for call in rollout]
    print(f"{len(lengths)} calls, prompts of {min(lengths):,} to {max(lengths):,} tokens")
    for name, (size, ratio) in by_attribute(rollouts).items():
        print(f"  {name:42} {size:8,.0f} bytes, zstd alone {ratio:.2f} x")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        for name, case in CASES.items():
            set_case(case)
            with tempfile.TemporaryDirectory() as folder:
                results[name].append(asyncio.run(measure(rollouts, Path(folder))))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    print(f"{'':34}{'bytes/call':>11}{'write us':>10}{'read us':>9}")
    for name, values in medians.items():
        print(f"{name:34}{values['bytes']:11,.0f}{values['write_us']:10,.0f}{values['read_us']:9,.0f}")
    plain, chosen = medians["all in the row"], medians[CHOSEN]
    print(json.dumps({"bytes_saved": 1 - chosen["bytes"] / plain["bytes"], **chosen, "plain": plain}))


if __name__ == "__main__":
    main()
