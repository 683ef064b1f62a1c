"""Rows of a file as dialogues and pairs of them, in the shapes that TRL and OpenAI's fine-tuning take.

Knows no files, tokens or models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentlightning.algorithm.datasets import example_key
from agentlightning.kit.errors import BadInputError
from agentlightning.schemas.example import Dialogue, PlainText, TokenExample

Message = dict[str, Any]

EXAMPLE_SHAPES = '{"messages": [...]} or {"prompt": ..., "completion": ...}, with "tools" where there are some'
PAIR_SHAPES = '{"prompt": ..., "chosen": ..., "rejected": ...}, texts or messages, with "tools" where there are some'


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """Something to imitate, before it is tokens."""

    key: str
    """Of its task: what has the same key is never on both sides of a split."""
    origin: str
    """Where it is from, for reports: a row's number or a rollout's id."""
    parts: Sequence[Dialogue | TokenExample]


@dataclass(frozen=True, kw_only=True)
class Preferred:
    """A pair, before it is tokens."""

    key: str
    origin: str
    chosen: Dialogue | TokenExample
    rejected: Dialogue | TokenExample
    weight: float = 1.0


def as_demonstration(row: Any, number: int, plain_text: PlainText) -> Demonstration:
    """A row to imitate.

    Raises:
        BadInputError: It has another shape; the message names the row.
    """
    fields = _fields(row, number, EXAMPLE_SHAPES)
    tools = _tools(fields.get("tools"), number)
    if fields.get("messages") is not None:
        messages = _turn(fields["messages"], number, "messages")
        if isinstance(messages, str):
            raise BadInputError(f"Row {number}: messages is a text.", hint=f"A row is {EXAMPLE_SHAPES}.")
        first = next((i for i, m in enumerate(messages) if m.get("role") == "assistant"), len(messages))
        prompt, key = list[Message](), messages[:first]
        completion: list[Message] | str = messages
    elif fields.get("prompt") is not None and fields.get("completion") is not None:
        prompt = _turn(fields["prompt"], number, "prompt")
        completion, key = _turn(fields["completion"], number, "completion"), prompt
    else:
        raise BadInputError(
            f"Row {number} has neither messages nor prompt and completion; it has: {', '.join(map(str, fields))}.",
            hint=f"A row is {EXAMPLE_SHAPES}.",
        )
    dialogue = Dialogue(prompt=prompt, completion=completion, tools=tools, plain_text=plain_text)
    return Demonstration(key=example_key([key, tools]), origin=f"row {number}", parts=[dialogue])


def as_preferred(row: Any, number: int, plain_text: PlainText) -> Preferred:
    """A row with a better and a worse answer; without `prompt`, the messages that both begin with are the prompt.

    Raises:
        BadInputError: It has another shape; the message names the row.
    """
    fields = _fields(row, number, PAIR_SHAPES)
    missing = [name for name in ("chosen", "rejected") if fields.get(name) is None]
    if missing:
        raise BadInputError(
            f"Row {number} has no {' and no '.join(missing)}; it has: {', '.join(map(str, fields))}.",
            hint=f"A row is {PAIR_SHAPES}.",
        )
    chosen, rejected = (_turn(fields[name], number, name) for name in ("chosen", "rejected"))
    if fields.get("prompt") is not None:
        prompt = _turn(fields["prompt"], number, "prompt")
    elif isinstance(chosen, list) and isinstance(rejected, list):
        shared = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        raise BadInputError(f"Row {number} has no prompt.", hint=f"A row is {PAIR_SHAPES}.")
    tools = _tools(fields.get("tools"), number)
    sides = [
        Dialogue(prompt=prompt, completion=side, tools=tools, plain_text=plain_text) for side in (chosen, rejected)
    ]
    return Preferred(
        key=example_key([prompt, tools]),
        origin=f"row {number}",
        chosen=sides[0],
        rejected=sides[1],
        weight=_weight(fields.get("weight"), number),
    )


def _weight(value: Any, number: int) -> float:
    if value is None:
        return 1.0
    try:
        weight = math.nan if isinstance(value, bool) else float(value)  # of a CSV file, it is a text
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise BadInputError(f"Row {number}: the weight {value!r} is no number from 0.")
    return weight


def _fields(row: Any, number: int, shapes: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise BadInputError(f"Row {number} is no object but {type(row).__name__}.", hint=f"A row is {shapes}.")
    return row


def _turn(value: Any, number: int, name: str) -> list[Message] | str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "role" in value:
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(m, Mapping) and "role" in m for m in value):
        raise BadInputError(
            f"Row {number}: {name} is neither a text nor a list of messages.",
            hint='A message is {"role": "user", "content": "..."}.',
        )
    # Parquet and Hugging Face fill what a message does not have with nulls.
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def _tools(value: Any, number: int) -> list[dict[str, Any]] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise BadInputError(f"Row {number}: tools is a text that is not JSON: {error}.") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadInputError(f"Row {number}: tools is no list of objects.", hint="It has OpenAI's shape.")
    return value


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both begin with; the last one of each is never the prompt."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), max(0, most))
