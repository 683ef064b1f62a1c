"""Reads what is worth keeping out of OpenAI-shaped answers, whole or streamed. Knows nothing of HTTP or the
store.

Token ids are read where vLLM (`prompt_token_ids` at the top, `token_ids` per choice) and SGLang (both per
choice) put them, logprobs where OpenAI puts them.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

from agentlightning.gateway.call import Capture, CapturedChoice, Kind, arguments_of

NO_TOKEN_IDS = "the upstream does not report token ids"
NO_LOGPROBS = "the upstream does not report logprobs"
LENGTHS_DIFFER = "the upstream's token ids and logprobs differ in length"
MALFORMED = "the upstream's token ids or logprobs are malformed"
TOKENS_MISSING = "the upstream reported fewer token ids than it counted as used"
NOT_FINITE = "a logprob is not a finite number"
_MISSING_LOGPROB = -9999.0  # vLLM writes it for minus infinity, and for one that it does not have
NO_CHOICES = "the response has no choices"
NO_RESPONSE_TOKENS = "the response has no tokens"
RAW_LOGPROBS = "the upstream's logprobs are not those of the sampling temperature"
CALL_FAILED = "the call failed"
FROM_CACHE = "it is an earlier sample again, from the response cache, and no draw of its own"
IDS_MASKED = "its text was masked, so its token ids were not kept"
MODE_UNKNOWN = "the store was away, so the sampling rule of the rollout was not known"


def check_trainable(
    prompt_ids: list[int] | None, token_ids: list[int] | None, logprobs: list[float] | None
) -> str | None:
    """Why weights cannot be trained on a response, or `None` when they can."""
    if prompt_ids is None or token_ids is None:
        return NO_TOKEN_IDS
    if not token_ids:
        return NO_RESPONSE_TOKENS
    if logprobs is None:
        return NO_LOGPROBS
    if len(logprobs) != len(token_ids):
        return LENGTHS_DIFFER
    return None if all(map(math.isfinite, logprobs)) and min(logprobs) > _MISSING_LOGPROB else NOT_FINITE


def capture_completion(kind: Kind, body: dict[str, Any]) -> Capture:
    """What is kept of a finished OpenAI-shaped answer."""
    choices: list[CapturedChoice] = []
    for position, choice in enumerate(body.get("choices") or []):
        if kind == "chat":
            output = choice.get("message") or {}
        else:
            output = {"role": "assistant", "content": choice.get("text") or ""}
        index = choice.get("index")
        captured = CapturedChoice(
            index=position if index is None else index,
            output=output,
            finish_reason=_text(choice.get("finish_reason")),
            prompt_token_ids=choice.get("prompt_token_ids") or body.get("prompt_token_ids"),
            token_ids=choice.get("token_ids"),
            logprobs=_logprobs(kind, choice.get("logprobs")),
        )
        choices.append(captured)
    return _finish(body, choices)


def _logprobs(kind: Kind, logprobs: Any) -> Any:
    """The log-probabilities in what a server calls so; whether they are any is looked at when the answer is whole."""
    if not isinstance(logprobs, dict):
        return None if logprobs is None else _NO_NUMBERS
    if kind == "text":
        return logprobs.get("token_logprobs")
    content = logprobs.get("content")
    if content is None:
        return None
    try:
        return [entry["logprob"] for entry in content]
    except (TypeError, KeyError):
        return _NO_NUMBERS


def _finish(body: dict[str, Any], choices: list[CapturedChoice]) -> Capture:
    usage = _object(body.get("usage"))
    capture = Capture(
        response_id=_text(body.get("id")),
        model=_text(body.get("model")),
        model_version=_text(body.get("system_fingerprint")),
        choices=choices,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )
    checked: Any = None
    for choice in choices:
        is_sound = choice.prompt_token_ids is checked or _are_ids(choice.prompt_token_ids)
        checked = choice.prompt_token_ids if is_sound else None
        if not (is_sound and _are_ids(choice.token_ids) and _are_numbers(choice.logprobs)):
            choice.prompt_token_ids = choice.token_ids = choice.logprobs = None
            choice.not_trainable_because = MALFORMED
            continue
        choice.not_trainable_because = check_trainable(choice.prompt_token_ids, choice.token_ids, choice.logprobs)
    # Tool-call parsers of some servers swallow tokens of streamed answers (vllm-project/vllm#27482).
    reported = sum(len(choice.token_ids or ()) for choice in choices)
    if capture.completion_tokens is not None and reported < capture.completion_tokens:
        for choice in choices:
            choice.not_trainable_because = choice.not_trainable_because or TOKENS_MISSING
    return capture


_NO_NUMBERS = "malformed"


def _are_ids(ids: Any) -> bool:
    """Whether these are token ids, or there are none."""
    if ids is None:
        return True
    try:
        array("I", ids)
    except (TypeError, ValueError, OverflowError):
        return False
    return isinstance(ids, list)


def _are_numbers(logprobs: Any) -> bool:
    """Whether these are numbers, or there are none."""
    if logprobs is None:
        return True
    try:
        array("d", logprobs)
    except (TypeError, ValueError, OverflowError):
        return False
    return isinstance(logprobs, list)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


class StreamCapture:
    """Puts a streamed answer together again, event by event."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._prompt_token_ids: Any = None
        self._choices: dict[int, CapturedChoice] = {}
        self._tool_calls: dict[int, dict[int, dict[str, Any]]] = {}

    def feed(self, event: dict[str, Any]) -> None:
        """Take in one chunk."""
        if not self._head:
            self._head = {key: event.get(key) for key in ("id", "model", "system_fingerprint")}
        elif event.get("system_fingerprint"):  # vLLM tells it at the end
            self._head["system_fingerprint"] = event["system_fingerprint"]
        if event.get("usage"):
            self._usage = event["usage"]
        if event.get("prompt_token_ids"):
            self._prompt_token_ids = event["prompt_token_ids"]
        for choice in event.get("choices") or ():
            self._feed_choice(choice)

    @property
    def finished_choices(self) -> int:
        """How many choices have a finish reason."""
        return sum(1 for choice in self._choices.values() if choice.finish_reason)

    @property
    def is_empty(self) -> bool:
        """Whether no choice has begun."""
        return not self._choices

    def capture(self) -> Capture:
        """What has arrived so far."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            choice.prompt_token_ids = choice.prompt_token_ids or self._prompt_token_ids
            if calls := self._tool_calls.get(choice.index):
                choice.output["tool_calls"] = [calls[index] for index in sorted(calls)]
        return _finish({**self._head, "usage": self._usage}, choices)

    def _feed_choice(self, chunk: dict[str, Any]) -> None:
        index = chunk.get("index") or 0
        choice = self._choices.get(index)
        if choice is None:
            choice = CapturedChoice(index=index, output={"role": "assistant", "content": None})
            self._choices[index] = choice
        if self._kind == "chat":
            delta = chunk.get("delta") or {}
            _merge_delta(choice.output, delta)
            if calls := delta.get("tool_calls"):
                _merge_tool_calls(self._tool_calls.setdefault(index, {}), calls)
        else:
            choice.output["content"] = (choice.output["content"] or "") + (chunk.get("text") or "")
        choice.finish_reason = _text(chunk.get("finish_reason")) or choice.finish_reason
        choice.prompt_token_ids = chunk.get("prompt_token_ids") or choice.prompt_token_ids
        choice.token_ids = _joined(choice.token_ids, chunk.get("token_ids"))
        choice.logprobs = _joined(choice.logprobs, _logprobs(self._kind, chunk.get("logprobs")))


def _joined(before: Any, more: Any) -> Any:
    """Two parts of a list; what is no list stays to be found out."""
    if more is None:
        return before
    if before is None:
        return more
    return before + more if isinstance(before, list) and isinstance(more, list) else _NO_NUMBERS


def _merge_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if value is None or key == "tool_calls":
            continue
        if key == "role":
            message["role"] = value
        elif isinstance(value, str):  # content, refusal, reasoning_content, …
            before = message.get(key) or ""
            message[key] = before + value if isinstance(before, str) else [*_parts(before), *_parts(value)]
        elif key == "content":
            message[key] = [*_parts(message.get(key)), *value]
        else:
            message[key] = value


def _parts(content: Any) -> list[Any]:
    """The content of a message as the list that some servers make of it."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content if isinstance(content, list) else []


def _merge_tool_calls(calls: dict[int, dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    """Add to calls by their index, which is the server's: nothing may be made for those that it leaves out."""
    for delta in deltas:
        index = delta.get("index")
        if index is None:
            index = max(calls, default=-1) + 1
        call = calls.get(index)
        if call is None:
            call = calls[index] = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        call["id"] = delta.get("id") or call["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += arguments_of(function)
