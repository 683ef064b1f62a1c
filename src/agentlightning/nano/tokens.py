"""The tokenizer and the chat template of the embedded model. Knows nothing of SQL or of training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from agentlightning.nano.chat import INSTRUCTIONS, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL_TOKENS = (PAD, END, *(f"<|{role}|>" for role in ROLES))
# One token each, so that a call costs the model two tokens beside its query. They decode to the plain Hermes text.
CALL_OPEN = '<tool_call>{"name": "sql", "arguments": {"query": "'
CALL_CLOSE = '"}}</tool_call>'
VOCABULARY = 1024
# Digits one by one (numbers are copied digit by digit); a word takes the space, comma or bracket before it with it.
PIECES = r"\d|[,(]? ?\p{L}+|'\p{L}+| ?[^\s\p{L}\d]+|\s+"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role if message.role in ['system', 'user', 'tool'] else \
('system' if message.role == 'developer' else 'assistant') }}|>
{%- if message.content is string -%}{{ message.content }}
{%- elif message.content is defined and message.content -%}
{%- for part in message.content -%}{%- if part.text is defined -%}{{ part.text }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- if message.tool_calls is defined and message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- set function = call.function if call.function is defined else call -%}
<tool_call>{"name": "{{ function.name }}", "arguments": {{ function.arguments if function.arguments is string \
else function.arguments | tojson }}}</tool_call>
{%- endfor -%}
{%- endif -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over the given texts, with the chat format's tokens added."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    added = [CALL_OPEN, CALL_CLOSE, INSTRUCTIONS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(added),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def plain_texts(messages: list[Message]) -> list[str]:
    """What a tokenizer shall learn from a conversation: the words, without the chat format's own tokens."""
    texts: list[str] = []
    for message in messages:
        texts.append((message.get("content") or "").replace(INSTRUCTIONS, ""))
        texts += [call["function"]["arguments"]["query"] for call in message.get("tool_calls", ())]
    return [text for text in texts if text]


def encode(messages: list[Message], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    """The token ids of a conversation, and which of them the assistant says (its `<|end|>` with them)."""
    ids = tokenizer.encode(render(messages), add_special_tokens=False)
    end, assistant = token_id(END, tokenizer), token_id("<|assistant|>", tokenizer)
    said: list[bool] = []
    speaking = False
    for token in ids:
        said.append(speaking)
        speaking = token == assistant or (speaking and token != end)
    return ids, said


def token_id(token: str, tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of one of the format's own tokens."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def render(messages: list[Message]) -> str:
    """The chat template in Python, for speed; a test holds the two equal on generated conversations."""
    import json

    parts: list[str] = []
    for message in messages:
        parts.append(f"<|{message['role']}|>{message.get('content') or ''}")
        for call in message.get("tool_calls", ()):
            function = call["function"]
            arguments = json.dumps(function["arguments"], ensure_ascii=False)
            parts.append(f'<tool_call>{{"name": "{function["name"]}", "arguments": {arguments}}}</tool_call>')
        parts.append(END)
    return "".join(parts)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a built model."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)
