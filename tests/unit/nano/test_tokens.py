"""The tokenizer gives back what it was given, and a conversation's tokens continue exactly from turn to turn."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentlightning.nano import chat
from agentlightning.nano.conversations import HABITUAL, conversations
from agentlightning.nano.tokens import (
    CALL_CLOSE,
    CALL_OPEN,
    END,
    ROLES,
    SPECIAL_TOKENS,
    encode,
    plain_texts,
    render,
    train_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def examples(database_dir: Path) -> list[list[chat.Message]]:
    return list(itertools.islice(conversations(random.Random(0), HABITUAL, database_dir), 400))


@pytest.fixture(scope="module")
def tokenizer(examples: list[list[chat.Message]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trained here, saved, and read again: what the engine will load."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([text for messages in examples for text in plain_texts(messages)], 700).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_render_when_compared_equals_the_chat_template(
    examples: list[list[chat.Message]], tokenizer: PreTrainedTokenizerFast
) -> None:
    for messages in examples:
        assert tokenizer.apply_chat_template(messages, tokenize=False) == render(messages)


def test_tokens_when_decoded_give_the_text_back(
    examples: list[list[chat.Message]], tokenizer: PreTrainedTokenizerFast
) -> None:
    for text in [*map(render, examples), "é ∑ 🙂\t'' \"\\\" a,b , (c)\n\n 12.5%", CALL_OPEN + CALL_CLOSE]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_history_when_a_turn_is_added_continues_the_same_tokens(
    examples: list[list[chat.Message]], tokenizer: PreTrainedTokenizerFast
) -> None:
    for messages in examples:
        whole = tokenizer.encode(render(messages), add_special_tokens=False)
        for turn in [i for i, message in enumerate(messages) if message["role"] == "assistant"]:
            prompt = tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True, tokenize=False)
            said = render(messages[turn : turn + 1]).removeprefix("<|assistant|>")
            ids = tokenizer.encode(prompt, add_special_tokens=False)  # type: ignore[arg-type]
            ids += tokenizer.encode(said, add_special_tokens=False)
            assert whole[: len(ids)] == ids


def test_encode_when_called_marks_what_the_assistant_says(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [*chat.first_messages("How many?", "t(a)"), chat.call_message("SELECT 1")]
    messages += [{"role": "tool", "content": "1 row: 1"}, {"role": "assistant", "content": "done"}]
    ids, said = encode(messages, tokenizer)
    spoken = tokenizer.decode([token for token, own in zip(ids, said, strict=True) if own])
    assert spoken == f"{CALL_OPEN}SELECT 1{CALL_CLOSE}{END}done{END}"


def test_call_when_rendered_is_what_a_hermes_parser_reads(tokenizer: PreTrainedTokenizerFast) -> None:
    query = "SELECT name FROM countries WHERE continent = 'North America'"
    text = render([chat.call_message(query)])
    call = json.loads(text.split("<tool_call>")[1].split("</tool_call>")[0])
    assert call == {"name": "sql", "arguments": {"query": query}}
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert [tokenizer.decode([i]) for i in ids[1:2] + ids[-2:]] == [CALL_OPEN, CALL_CLOSE, END]


def test_constants_when_encoded_are_one_token_each(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in (*SPECIAL_TOKENS, CALL_OPEN, CALL_CLOSE, chat.INSTRUCTIONS):
        assert len(tokenizer.encode(text, add_special_tokens=False)) == 1
    shown = tokenizer.decode(tokenizer.encode(render([chat.call_message("SELECT 1")])), skip_special_tokens=True)
    assert shown == f"{CALL_OPEN}SELECT 1{CALL_CLOSE}"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "<|user|>a<|end|><|user|>b<|end|>"),
        ([{"role": "assistant", "content": None}], "<|assistant|><|end|>"),
        ([{"role": "assistant", "content": None, "tool_calls": None}], "<|assistant|><|end|>"),
        ([{"role": "assistant"}], "<|assistant|><|end|>"),
        ([{"role": "developer", "content": "x"}], "<|system|>x<|end|>"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
         "<|user|>ab<|end|>"),
        ([{"role": "assistant", "content": "hm", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": "<'&\u00e9"}}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": '{"raw": true}'}}]}],
         '<|assistant|>hm<tool_call>{"name": "f", "arguments": {"a": 1, "b": "<\'&\u00e9"}}</tool_call>'
         '<tool_call>{"name": "g", "arguments": {"raw": true}}</tool_call><|end|>'),
    ],
)  # fmt: skip
def test_template_when_messages_are_unusual_stays_sane(
    messages: list[chat.Message], expected: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    for kwargs in ({}, {"tools": tools}):
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs)  # type: ignore[arg-type]
        assert rendered == expected + "<|assistant|>"


def test_template_when_a_role_speaks_in_the_text_of_another_keeps_the_roles(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert {f"<|{role}|>" for role in ROLES} < set(tokenizer.all_special_tokens)
