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
`continues`: it begins with exactly the tokens of an earlier call and of its answer, also where several prompts go on
from the same answer. The others are breaks: earlier turns were edited (or it is another conversation with a history of
its own), the model's last answer came back as other tokens, or the prompt ends before that answer does.
"""

BREAKS: frozenset[History] = frozenset({"history_changed", "retokenized", "prompt_shorter"})

_MAX_BYTES = 32 << 20
_MAX_TURNS = 256
_ITEM_BYTES = 4
_ATTEMPT_BYTES, _TURN_BYTES = 500, 200  # beside the tokens, roughly


class _Turn(msgspec.Struct):
    prompt: bytes
    answer: bytes
    assistants: int
    """Messages of the model in its prompt."""
    history: History
    is_continued: bool = False
    """Whether a later prompt went on from its answer."""


class _Attempt(msgspec.Struct):
    turns: list[_Turn] = []
    openings: set[int] = set()
    """Hashes of what stood before the first answer of a conversation."""
    size: int = _ATTEMPT_BYTES


class Continuity:
    """The tokens of the attempts that are under way, as far as memory is given.

    Args:
        max_bytes: Bound of all together; attempts that were silent for the longest are forgotten first, and what they
            send then counts as a start.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0
        """What is remembered takes, roughly."""
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
        messages = call.body.get("messages") or []
        said = [index for index, message in enumerate(messages) if _is_of_model(message)]
        history = _relation(attempt, prompt, len(said)) or _beginning(attempt, messages[: said[-1] + 1] if said else [])
        if history is None:
            history = _difference(attempt.turns, prompt)
        self._keep(attempt, [_Turn(prompt, answer, len(said), history) for answer in answers])
        return history

    def _attempt(self, scope: CallScope) -> _Attempt:
        key = (scope.rollout_id, scope.attempt_id)
        attempt = self._attempts.get(key)
        if attempt is None:
            attempt = self._attempts[key] = _Attempt()
            self.bytes += attempt.size
        self._attempts.move_to_end(key)
        return attempt

    def _keep(self, attempt: _Attempt, turns: list[_Turn]) -> None:
        before = attempt.size
        attempt.turns += turns
        attempt.size += sum(map(_size, turns)) - sum(map(_size, attempt.turns[:-_MAX_TURNS]))
        del attempt.turns[:-_MAX_TURNS]
        self.bytes += attempt.size - before
        while self.bytes > self._max_bytes and self._attempts:
            _, forgotten = self._attempts.popitem(last=False)
            self.bytes -= forgotten.size


def _is_of_model(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _relation(attempt: _Attempt, prompt: bytes, assistants: int) -> History | None:
    """How a prompt with so many messages of the model relates to known turns; `None` if it goes on from none."""
    for turn in reversed(attempt.turns):
        if turn.prompt == prompt:  # the same prompt again is what it was the first time
            return turn.history
    continued = max((turn for turn in attempt.turns if _goes_on(turn, prompt)), key=_length, default=None)
    # Another branch from a turn that was gone on from before ends with that turn's answer. If the model says more in
    # it, then somebody has rewritten what it really said there.
    if continued is None or (continued.is_continued and assistants > continued.assistants + 1):
        return None
    continued.is_continued = True
    return "continues"


def _beginning(attempt: _Attempt, opening: list[Any]) -> Literal["start"] | None:
    """Whether a conversation begins, given the messages up to the last one of the model.

    Examples for the model look like a history. They are the same in every conversation: a known opening is a start.
    """
    key = hash(orjson.dumps(opening))
    if key in attempt.openings:
        return "start"
    if opening and attempt.turns:
        return None
    attempt.openings.add(key)
    return "start"


def _length(turn: _Turn) -> int:
    return len(turn.prompt) + len(turn.answer)


def _size(turn: _Turn) -> int:
    return _length(turn) + _TURN_BYTES


def _goes_on(turn: _Turn, prompt: bytes) -> bool:
    is_longer = len(prompt) > _length(turn)
    return is_longer and prompt.startswith(turn.prompt) and prompt.startswith(turn.answer, len(turn.prompt))


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
