"""Tiny random models with a tokenizer made on the spot; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

TEMPLATE = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('nobody may not speak') }}{% endif -%}
<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_TEXT = "system user assistant tool name arguments select count from where hello world how many rows of it are there"
CONTEXT = 160


def make_tokenizer(*, template: bool = True) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_TEXT] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE if template else None,
    )


def configs(vocab: int) -> dict[str, PreTrainedConfig]:
    llama: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    neox = {k: v for k, v in llama.items() if k != "num_key_value_heads"}
    return {
        "llama": LlamaConfig(**llama, tie_word_embeddings=True),
        "gpt_neox": GPTNeoXConfig(**neox, rotary_pct=0.5),
        "qwen2_sliding": Qwen2Config(**llama, use_sliding_window=True, sliding_window=6, max_window_layers=1),
        "gemma2": Gemma2Config(**llama, head_dim=8, sliding_window=6),
    }


def save_model(
    directory: Path, kind: str = "llama", *, seed: int = 0, template: bool = True, context: int = CONTEXT
) -> Path:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(template=template)
    config = configs(len(tokenizer))[kind]
    config.max_position_embeddings = context
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
