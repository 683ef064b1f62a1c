"""Builds the embedded model from nothing: tokenizer, conversations, pre-training, files.

First the model learns the task well (`SKILLED`), then it is given the planted habits (`HABITUAL`), so that it
still can answer right but mostly does not. Counts steps, not time: the same seed, thread count and torch version
give the same weights. Knows nothing of reinforcement learning.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlightning.nano.chat import Message
from agentlightning.nano.conversations import HABITUAL, SKILLED, Mixture, conversations
from agentlightning.nano.tokens import END, PAD, encode, plain_texts, token_id, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Progress = Callable[[float, dict[str, float]], None]
Batch = list[tuple[list[int], list[bool]]]


@dataclass(frozen=True)
class NanoConfig:
    """Everything the build depends on beside the seed.

    Attributes:
        skill_steps: Steps of learning the task; the learning rate falls from `skill_lr`.
        habit_steps: Steps of learning the habits after that; it falls from `habit_lr`.
        tokens_per_trace: Constant divisor of the loss, so that short traces do not weigh more than long ones.
    """

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 344
    positions: int = 512
    vocabulary: int = 1024
    tokenizer_conversations: int = 6000
    skill_steps: int = 2800
    habit_steps: int = 700
    batch_size: int = 32
    pool_batches: int = 32
    skill_lr: float = 3e-3
    habit_lr: float = 2e-3
    warmup_steps: int = 60
    final_lr_share: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    tokens_per_trace: float = 24.0


def build(
    out: Path,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
    steps: int | None = None,
    config: NanoConfig | None = None,
) -> Path:
    """Pre-trains the model and writes its folder.

    Args:
        out: The folder to write.
        seed: Decides everything that is random.
        threads: How many threads torch may use; other numbers round differently.
        progress: Called with the done share and the current numbers.
        steps: Fewer (or more) optimizer steps than the configuration says, in the same proportion.
        config: Other sizes than those of the model that ships.
    """
    import torch

    config = config or NanoConfig()
    if steps is not None:
        skill_steps = round(steps * config.skill_steps / (config.skill_steps + config.habit_steps))
        config = replace(config, skill_steps=skill_steps, habit_steps=steps - skill_steps)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    try:
        with tempfile.TemporaryDirectory(prefix="nano-build-") as scratch:
            tokenizer = make_tokenizer(seed, config, Path(scratch))
            model = new_model(tokenizer, config)
            train(model, tokenizer, SKILLED, seed, config, Path(scratch), progress)
            train(model, tokenizer, HABITUAL, seed, config, Path(scratch), progress)
        save(model, tokenizer, out, {"seed": seed, "threads": threads, "torch": torch.__version__, **asdict(config)})
    finally:
        torch.set_num_threads(threads_before)
    return out


def make_tokenizer(seed: int, config: NanoConfig, scratch: Path) -> PreTrainedTokenizerFast:
    source = conversations(random.Random(f"tokenizer {seed}"), SKILLED, scratch)
    texts = itertools.chain.from_iterable(map(plain_texts, itertools.islice(source, config.tokenizer_conversations)))
    return train_tokenizer(list(texts), config.vocabulary)  # its threads must not touch our connections


def new_model(tokenizer: PreTrainedTokenizerFast, config: NanoConfig) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            pad_token_id=token_id(PAD, tokenizer),
            eos_token_id=token_id(END, tokenizer),
            bos_token_id=None,
        )
    )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    mixture: Mixture,
    seed: int,
    config: NanoConfig,
    scratch: Path,
    progress: Progress | None = None,
) -> None:
    """One of the two phases, with an optimizer of its own."""
    import torch

    is_skill = mixture is SKILLED
    steps, lr = (config.skill_steps, config.skill_lr) if is_skill else (config.habit_steps, config.habit_lr)
    done_before = 0 if is_skill else config.skill_steps
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    rng = random.Random(f"{'skill' if is_skill else 'habit'} {seed}")
    batches = _batches(conversations(rng, mixture, scratch), tokenizer, config, rng)
    model.train()
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr * _schedule(step, steps, config)
        loss = _loss(model, batch, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        if progress is not None:
            said = sum(sum(mask) for _, mask in batch) / len(batch)
            done = done_before + step + 1
            numbers = {"step": float(done), "loss": loss.item() * config.tokens_per_trace / said}
            progress(done / (config.skill_steps + config.habit_steps), numbers)
    model.eval()


def _batches(
    source: Iterator[list[Message]], tokenizer: PreTrainedTokenizerFast, config: NanoConfig, rng: random.Random
) -> Iterator[Batch]:
    """Batches of conversations of similar length (little padding), in random order."""
    while True:
        pool = itertools.islice(source, config.pool_batches * config.batch_size)
        encoded = sorted((encode(messages, tokenizer) for messages in pool), key=lambda item: len(item[0]))
        batches = [encoded[i : i + config.batch_size] for i in range(0, len(encoded), config.batch_size)]
        rng.shuffle(batches)
        yield from batches


def _loss(model: LlamaForCausalLM, batch: Batch, config: NanoConfig) -> torch.Tensor:
    """Cross entropy of what the assistant says. Padding is on the right, where a causal model does not see it."""
    import torch

    width = max(len(ids) for ids, _ in batch)
    ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    said_BT = torch.tensor([mask + [False] * (width - len(mask)) for _, mask in batch])[:, 1:]
    hidden_BTH = model.model(input_ids=ids_BT[:, :-1]).last_hidden_state
    logits_NV = model.lm_head(hidden_BTH[said_BT])
    total = torch.nn.functional.cross_entropy(logits_NV, ids_BT[:, 1:][said_BT], reduction="sum")
    return total / (len(batch) * config.tokens_per_trace)


def _schedule(step: int, steps: int, config: NanoConfig) -> float:
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warmup * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, recipe: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    model.eval()
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        max_new_tokens=64,
        eos_token_id=token_id(END, tokenizer),
        pad_token_id=token_id(PAD, tokenizer),
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "build.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
