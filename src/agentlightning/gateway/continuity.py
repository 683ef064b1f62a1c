"""Watches whether a conversation goes on with exactly the tokens that were sampled. Knows neither HTTP nor storage.

A learner joins the turns of a conversation into one sequence only where a prompt begins with the tokens so far. Where
an agent or a template has changed them, the turn is still right, but stands alone: training gets slower and, with many
of them, different. So every break is counted, with what differed, the moment it happens.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import Any, Literal

import msgspec
import orjson

from agentlightning.gateway.call import CallScope, Capture, UpstreamCall

History = Literal["start", "continues", "history_changed", "retokenized", "prompt_shorter"]
"""How a call's prompt relates to the earlier calls of its attempt.

`start`: nothing of the model's own stands in it, or what stands in it is there from the beginning (examples).
`continues`: it begins with exactly the tokens of an earlier call and of its answer. The others are breaks: earlier
turns were edited (or it is another conversation with a history of its own), the model's last answer came back as other
tokens, or the prompt ends before that answer does.
"""

BREAKS: frozenset[History] = frozenset({"history_changed", "retokenized", "prompt_shorter"})

_MAX_BYTES = 32 << 20
_MAX_TURNS = 64
_ITEM_BYTES = 4


class _Turn(msgspec.Struct):
    prompt: bytes
    answer: bytes


class _Attempt(msgspec.Struct):
    turns: list[_Turn] = []
    openings: set[bytes] = set()
    size: int = 0


class Continuity:
    """The tokens of the attempts that are under way, as far as memory is given.

    Args:
        max_bytes: Bound of all together; attempts that were silent for the longest are forgotten first, and what they
            send then counts as a start.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._attempts: OrderedDict[tuple[str, str], _Attempt] = OrderedDict()

    def check(self, call: UpstreamCall, capture: Capture) -> History | None:
        """How an answered call relates to those before it, which it joins; `None` where there are no token ids."""
        scope = call.scope
        prompt_ids = next((c.prompt_token_ids for c in capture.choices if c.prompt_token_ids), None)
        if scope is None or prompt_ids is None or call.kind != "chat":
            return None
        try:
            prompt = array("I", prompt_ids).tobytes()
            answers = [array("I", choice.token_ids or ()).tobytes() for choice in capture.choices]
        except (OverflowError, TypeError):  # no token ids at all, whatever the server calls them
            return None
        attempt = self._attempt(scope)
        opening = _opening(call.body.get("messages") or [])
        history = _history(attempt, prompt, opening)
        if history == "start":
            attempt.openings.add(opening)
        self._keep(attempt, [_Turn(prompt, answer) for answer in answers])
        return history

    def _attempt(self, scope: CallScope) -> _Attempt:
        key = (scope.rollout_id, scope.attempt_id)
        attempt = self._attempts.get(key)
        if attempt is None:
            attempt = self._attempts[key] = _Attempt(turns=[], openings=set())
        self._attempts.move_to_end(key)
        return attempt

    def _keep(self, attempt: _Attempt, turns: list[_Turn]) -> None:
        attempt.turns += turns
        del attempt.turns[:-_MAX_TURNS]
        size = sum(len(turn.prompt) + len(turn.answer) + 200 for turn in attempt.turns) + 500
        self._bytes += size - attempt.size
        attempt.size = size
        while self._bytes > self._max_bytes and len(self._attempts) > 1:
            _, forgotten = self._attempts.popitem(last=False)
            self._bytes -= forgotten.size


def _opening(messages: list[Any]) -> bytes:
    """The messages up to the last one of the model; empty when it has said nothing yet."""
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], dict) and messages[index].get("role") == "assistant":
            return orjson.dumps(messages[: index + 1])
    return b""


def _history(attempt: _Attempt, prompt: bytes, opening: bytes) -> History:
    for turn in reversed(attempt.turns):
        is_longer = len(prompt) > len(turn.prompt) + len(turn.answer)
        if is_longer and prompt.startswith(turn.prompt) and prompt.startswith(turn.answer, len(turn.prompt)):
            return "continues"
    # Examples for the model look like a history. They are the same in every conversation: a known opening is a start.
    if not opening or not attempt.turns or opening in attempt.openings:
        return "start"
    return _difference(attempt.turns, prompt)


def _difference(turns: list[_Turn], prompt: bytes) -> History:
    """What differs from the turn that it has most in common with, the latest of those."""
    nearest = max(reversed(turns), key=lambda turn: _shared(turn.prompt, prompt))
    if not prompt.startswith(nearest.prompt):
        return "history_changed"
    rest = prompt[len(nearest.prompt) :]
    return "prompt_shorter" if nearest.answer.startswith(rest) else "retokenized"


def _shared(one: bytes, other: bytes) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other)) // _ITEM_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if one[: middle * _ITEM_BYTES] == other[: middle * _ITEM_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
