"""Rows of files: every shape that is taken, and what is said about the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentlightning.algorithm.supervised.rows import as_demonstration, as_preferred
from agentlightning.kit.errors import BadInputError
from agentlightning.schemas.example import Dialogue

USER = {"role": "user", "content": "how many"}
SAYS = {"role": "assistant", "content": "three"}
OTHER = {"role": "assistant", "content": "four"}
TOOLS = [{"type": "function", "function": {"name": "count"}}]


def dialogue(row: dict[str, Any]) -> Dialogue:
    [part] = as_demonstration(row, 1, "chat").parts
    assert isinstance(part, Dialogue)
    return part


def test_messages_are_learned_wherever_the_assistant_speaks() -> None:
    found = dialogue({"messages": [USER, {**SAYS, "tool_calls": None}], "tools": json.dumps(TOOLS)})
    assert (found.prompt, found.completion, found.tools) == ([], [USER, SAYS], TOOLS)


def test_prompt_and_completion_are_texts_or_messages() -> None:
    assert dialogue({"prompt": "a", "completion": "b"}) == Dialogue(prompt="a", completion="b")
    found = dialogue({"prompt": [USER], "completion": SAYS, "tools": ""})
    assert (found.prompt, found.completion, found.tools) == ([USER], [SAYS], None)


def test_the_task_is_what_comes_before_the_answer() -> None:
    rows = [
        {"messages": [USER, SAYS]},
        {"messages": [USER, OTHER], "reward": 1},
        {"messages": [{**USER, "content": "x"}, SAYS]},
    ]
    keys = [as_demonstration(row, 1, "chat").key for row in rows]
    assert keys[0] == keys[1] != keys[2]


def test_pairs_have_a_prompt_or_begin_alike() -> None:
    given = as_preferred({"prompt": [USER], "chosen": [SAYS], "rejected": [OTHER], "weight": 2}, 3, "chat")
    alike = as_preferred({"chosen": [USER, SAYS], "rejected": [USER, OTHER]}, 3, "chat")
    assert (given.chosen, given.rejected, given.key) == (alike.chosen, alike.rejected, alike.key)
    assert (given.weight, alike.weight, given.origin) == (2.0, 1.0, "row 3")
    same = as_preferred({"chosen": [USER, SAYS], "rejected": [USER, SAYS]}, 1, "chat")
    assert same.chosen == same.rejected == Dialogue(prompt=[USER], completion=[SAYS])
    plain = as_preferred({"prompt": "a", "chosen": "b", "rejected": "c", "weight": "0.5"}, 1, "raw")
    assert plain.weight == 0.5
    assert plain.chosen == Dialogue(prompt="a", completion="b", plain_text="raw")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "Row 7 is no object but str"),
        ({"question": "a"}, "neither messages nor prompt and completion; it has: question"),
        ({"prompt": "a"}, "neither messages"),
        ({"messages": "a"}, "messages is a text"),
        ({"messages": [{"content": "a"}]}, "neither a text nor a list of messages"),
        ({"messages": 3}, "neither a text nor a list of messages"),
        ({"messages": [USER, SAYS], "tools": "no"}, "not JSON"),
        ({"messages": [USER, SAYS], "tools": {"a": 1}}, "no list of objects"),
    ],
)
def test_a_row_of_another_shape_is_named(row: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        as_demonstration(row, 7, "chat")
    assert "7" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no rejected"),
        ({"prompt": "a"}, "no chosen and no rejected"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1}, "weight -1"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": True}, "weight True"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": "much"}, "weight 'much'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": [1]}, "weight"),
    ],
)
def test_a_pair_of_another_shape_is_named(row: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        as_preferred(row, 1, "chat")
