"""Sampling speed on the embedded model's shape: our engine, `transformers.generate`, and the physical limit.

The limit is one plain forward pass over the same prompts and responses: the same multiplications, no sampling and no
second pass over anything. Times are CPU seconds of this process (other work on the machine counts little),
the best of several repetitions, which alternate between the three. Wall times are in the table beside them.

    python benchmarks/engine.py [--rows 64 128 256] [--repeat 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentlightning.learner.engine import Engine
from agentlightning.learner.model import LoadedModel, load_model
from agentlightning.schemas.generation import GenerateRequest, SamplingParams

VOCAB = 768
GROUP = 8


class Case:
    """Prompts of 40 to 60 tokens and how long each response is."""

    def __init__(self, rows: int, *, ragged: bool, grouped: bool) -> None:
        rng = np.random.default_rng(rows)
        distinct = rows // GROUP if grouped else rows
        prompts = [rng.integers(3, VOCAB, rng.integers(40, 61)).tolist() for _ in range(distinct)]
        self.prompts = [prompts[i % distinct] for i in range(rows)]
        self.lengths = rng.integers(12, 28, rows).tolist() if ragged else [20] * rows
        self.tokens = sum(self.lengths)
        self.name = f"{rows} rows, {'12-27' if ragged else '20'} tokens" + (f", groups of {GROUP}" if grouped else "")


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


def sample_ours(engine: Engine, case: Case) -> None:
    for i, (prompt, length) in enumerate(zip(case.prompts, case.lengths, strict=True)):
        params = SamplingParams(max_tokens=length)
        engine.submit(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
    tokens = 0
    while engine.busy:
        tokens += sum(len(e.choices[0].token_ids) for e in engine.step() if e.choices)  # type: ignore[union-attr]
    engine.weights_changed()  # the next repetition must not find these prompts computed
    assert tokens == case.tokens, (tokens, case.tokens)


@torch.inference_mode()
def sample_transformers(loaded: LoadedModel, case: Case) -> None:
    width = max(len(p) for p in case.prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in case.prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in case.prompts])
    loaded.model.generate(
        ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=max(case.lengths), pad_token_id=0
    )


@torch.inference_mode()
def plain_forward(loaded: LoadedModel, case: Case) -> None:
    width = max(len(p) + n for p, n in zip(case.prompts, case.lengths, strict=True))
    ids = torch.randint(3, VOCAB, (len(case.prompts), width))
    loaded.model(input_ids=ids, use_cache=False)


def best(calls: dict[str, Callable[[], None]], repeat: int) -> dict[str, tuple[float, float]]:
    """Least CPU and wall seconds of each, after one call to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for i in range(repeat + 1):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            if i:
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: (min(c for c, _ in seen), min(w for _, w in seen)) for name, seen in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        build_model(Path(directory))
        loaded = load_model(directory)
        engine = Engine(loaded, max_batch=max(arguments.rows))
        cases = [Case(n, ragged=True, grouped=False) for n in arguments.rows]
        middle = arguments.rows[len(arguments.rows) // 2]
        cases += [Case(middle, ragged=False, grouped=False), Case(middle, ragged=True, grouped=True)]
        ratios: dict[str, dict[str, float]] = {}
        print(f"{'case':42} {'':14} {'CPU s':>8} {'wall s':>8} {'tokens/CPU-s':>13}")
        for case in cases:
            calls = {
                "ours": lambda case=case: sample_ours(engine, case),
                "transformers": lambda case=case: sample_transformers(loaded, case),
                "one forward": lambda case=case: plain_forward(loaded, case),
            }
            seconds = best(calls, arguments.repeat)
            for name, (cpu, wall) in seconds.items():
                print(f"{case.name:42} {name:14} {cpu:8.3f} {wall:8.3f} {case.tokens / cpu:13.0f}")
            ours = seconds["ours"][0]
            ratios[case.name] = {
                "tokens_per_cpu_s": round(case.tokens / ours, 1),
                "times_faster_than_transformers": round(seconds["transformers"][0] / ours, 3),
                "share_of_limit": round(seconds["one forward"][0] / ours, 3),
            }
    print(json.dumps({"benchmark": "engine", "threads": arguments.threads, "ratios": ratios}))


if __name__ == "__main__":
    main()
