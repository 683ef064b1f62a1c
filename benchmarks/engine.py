"""Sampling speed on the embedded model's shape: our engine, `transformers.generate`, and the physical limit.

"main job" is what a training step of the demo samples: 32 questions, 8 answers each, real prompts, the
embedded model, up to its end token; both get the same batch. The other cases have random weights and given lengths: the
first ones are in lock-step from the start, which suits `generate` best.

The limit is one plain forward pass over the same prompts and responses: the same multiplications, no sampling and no
second pass over anything. Times are CPU seconds of this process (other work on the machine counts little),
the best of several repetitions, which alternate between the three. Wall times are in the table beside them.

    python benchmarks/engine.py [--rows 64 128 256] [--repeat 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentlightning.learner.engine import Engine
from agentlightning.learner.model import LoadedModel, load_model
from agentlightning.nano import Task, make_tasks, model_path
from agentlightning.nano.chat import Message, first_messages, read_schema
from agentlightning.nano.recipe import RECIPE
from agentlightning.schemas.generation import GenerateRequest, GenerateResult, SamplingParams

VOCAB = 768
GROUP = 8


class Case:
    """Prompts of 40 to 60 tokens and how long each response is."""

    ends = False
    """Whether the model ends its answers itself."""

    def __init__(self, rows: int, *, ragged: bool, grouped: bool) -> None:
        rng = np.random.default_rng(rows)
        distinct = rows // GROUP if grouped else rows
        prompts = [rng.integers(3, VOCAB, rng.integers(40, 61)).tolist() for _ in range(distinct)]
        self.prompts = [prompts[i % distinct] for i in range(rows)]
        self.limits = rng.integers(12, 28, rows).tolist() if ragged else [20] * rows
        self.name = f"{rows} rows, {'12-27' if ragged else '20'} tokens" + (f", groups of {GROUP}" if grouped else "")


class MainJob(Case):
    """A step of the demo: the first turn of its agent's conversations."""

    ends = True

    def __init__(self, engine: Engine, directory: Path) -> None:
        tasks = make_tasks("train", RECIPE["prompts_per_step"], 0, directory)
        rows = [task for task in tasks for _ in range(RECIPE["group_size"])]
        requests = [GenerateRequest(request_id=str(i), messages=first_turn(task)) for i, task in enumerate(rows)]
        self.prompts = [engine.chat.encode(request).token_ids for request in requests]
        self.limits = [RECIPE["max_tokens"]] * len(rows)
        self.name = f"main job: {len(rows)} rows, groups of {RECIPE['group_size']}"


def first_turn(task: Task) -> list[Message]:
    with closing(sqlite3.connect(task["database"])) as connection:
        return first_messages(task["question"], read_schema(connection))


def build_model(directory: Path) -> None:
    """The shape of the embedded model with random weights; no end token, so that lengths are given."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=344,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    backend = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t1"))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="t0").save_pretrained(directory)


def sample_ours(engine: Engine, case: Case) -> int:
    for i, (prompt, limit) in enumerate(zip(case.prompts, case.limits, strict=True)):
        params = SamplingParams(max_tokens=limit)
        engine.submit(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
    tokens = 0
    while engine.busy:
        tokens += sum(len(e.choices[0].token_ids) for e in engine.step() if isinstance(e, GenerateResult))
    engine.weights_changed()  # the next repetition must not find these prompts computed
    return tokens


@torch.inference_mode()
def sample_transformers(loaded: LoadedModel, case: Case) -> int:
    width = max(len(p) for p in case.prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in case.prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in case.prompts])
    ends = sorted(loaded.eos_ids) if case.ends else None
    new = loaded.model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=max(case.limits),
        eos_token_id=ends,
        pad_token_id=0,
    )[:, width:]
    if ends is None:
        return sum(case.limits)
    ended = torch.isin(new, torch.tensor(ends))
    return int(torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1]).sum())


@torch.inference_mode()
def plain_forward(loaded: LoadedModel, case: Case, new_tokens: int) -> int:
    """As many tokens as were sampled, spread evenly over the rows."""
    extra = -(-new_tokens // len(case.prompts))
    width = max(len(p) for p in case.prompts) + extra
    loaded.model(input_ids=torch.randint(3, VOCAB, (len(case.prompts), width)), use_cache=False)
    return extra * len(case.prompts)


@dataclass
class Best:
    """The repetition with the least CPU time for a token."""

    tokens: int
    cpu_s: float
    wall_s: float

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.tokens / self.cpu_s


def best_of(calls: dict[str, Callable[[], int]], repeat: int) -> dict[str, Best]:
    """After one call of each to warm up."""
    seen: dict[str, list[Best]] = {name: [] for name in calls}
    for i in range(repeat + 1):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            tokens = call()
            if i:
                seen[name].append(Best(tokens, time.process_time() - cpu, time.perf_counter() - wall))
    return {name: max(found, key=lambda best: best.tokens_per_cpu_s) for name, found in seen.items()}


def measure(case: Case, loaded: LoadedModel, engine: Engine, repeat: int) -> dict[str, float]:
    """Print the rows of a case; returns its ratios."""
    sampled = sample_ours(engine, case)
    found = best_of(
        {
            "ours": lambda: sample_ours(engine, case),
            "transformers": lambda: sample_transformers(loaded, case),
            "one forward": lambda: plain_forward(loaded, case, sampled),
        },
        repeat,
    )
    for name, best in found.items():
        print(
            f"{case.name:42} {name:14} {best.cpu_s:8.3f} {best.wall_s:8.3f} {best.tokens_per_cpu_s:13.0f}", flush=True
        )
    ours = found["ours"].tokens_per_cpu_s
    return {
        "tokens_per_cpu_s": round(ours, 1),
        "times_faster_than_transformers": round(ours / found["transformers"].tokens_per_cpu_s, 3),
        "share_of_limit": round(ours / found["one forward"].tokens_per_cpu_s, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(f"{'case':42} {'':14} {'CPU s':>8} {'wall s':>8} {'tokens/CPU-s':>13}")
    ratios: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        embedded = load_model(str(model_path()))
        engine = Engine(embedded, max_batch=256)
        job = MainJob(engine, Path(directory))
        ratios["main job"] = measure(job, embedded, engine, arguments.repeat)

        build_model(Path(directory))
        loaded = load_model(directory)
        engine = Engine(loaded, max_batch=max(arguments.rows))
        cases = [Case(n, ragged=True, grouped=False) for n in arguments.rows]
        middle = arguments.rows[len(arguments.rows) // 2]
        cases += [Case(middle, ragged=False, grouped=False), Case(middle, ragged=True, grouped=True)]
        for case in cases:
            ratios[case.name] = measure(case, loaded, engine, arguments.repeat)
    vs_transformers = ratios["main job"]["times_faster_than_transformers"]
    summary = {
        "benchmark": "engine",
        "threads": arguments.threads,
        "vs_transformers": vs_transformers,
        "ratios": ratios,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
