"""Reads what is worth keeping out of OpenAI-shaped answers, whole or streamed. Knows nothing of HTTP or the
store.

Token ids are read where vLLM (`prompt_token_ids` at the top, `token_ids` per choice) and SGLang (both per
choice) put them, logprobs where OpenAI puts them.
"""

from __future__ import annotations

import math
from typing import Any

from agentlightning.gateway.call import Capture, CapturedChoice, Kind

NO_TOKEN_IDS = "the upstream does not report token ids"
NO_LOGPROBS = "the upstream does not report logprobs"
LENGTHS_DIFFER = "the upstream's token ids and logprobs differ in length"
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
        captured = CapturedChoice(
            index=choice.get("index", position),
            output=output,
            finish_reason=choice.get("finish_reason") or "",
            prompt_token_ids=choice.get("prompt_token_ids") or body.get("prompt_token_ids"),
            token_ids=choice.get("token_ids"),
            logprobs=_logprobs(kind, choice.get("logprobs")),
        )
        choices.append(captured)
    return _finish(body, choices)


def _logprobs(kind: Kind, logprobs: dict[str, Any] | None) -> list[float] | None:
    if not logprobs:
        return None
    if kind == "text":
        return logprobs.get("token_logprobs")
    content = logprobs.get("content")
    return None if content is None else [entry["logprob"] for entry in content]


def _finish(body: dict[str, Any], choices: list[CapturedChoice]) -> Capture:
    usage = body.get("usage") or {}
    capture = Capture(
        response_id=body.get("id") or "",
        model=body.get("model") or "",
        model_version=body.get("system_fingerprint") or "",
        choices=choices,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    )
    for choice in choices:
        choice.not_trainable_because = check_trainable(choice.prompt_token_ids, choice.token_ids, choice.logprobs)
    # Tool-call parsers of some servers swallow tokens of streamed answers (vllm-project/vllm#27482).
    reported = sum(len(choice.token_ids or ()) for choice in choices)
    if capture.completion_tokens is not None and reported < capture.completion_tokens:
        for choice in choices:
            choice.not_trainable_because = choice.not_trainable_because or TOKENS_MISSING
    return capture


class StreamCapture:
    """Puts a streamed answer together again, event by event."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._prompt_token_ids: list[int] | None = None
        self._choices: dict[int, CapturedChoice] = {}

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
        return _finish({**self._head, "usage": self._usage}, choices)

    def _feed_choice(self, chunk: dict[str, Any]) -> None:
        index = chunk.get("index", 0)
        choice = self._choices.get(index)
        if choice is None:
            choice = CapturedChoice(index=index, output={"role": "assistant", "content": None})
            self._choices[index] = choice
        if self._kind == "chat":
            _merge_delta(choice.output, chunk.get("delta") or {})
        else:
            choice.output["content"] = (choice.output["content"] or "") + (chunk.get("text") or "")
        choice.finish_reason = chunk.get("finish_reason") or choice.finish_reason
        choice.prompt_token_ids = chunk.get("prompt_token_ids") or choice.prompt_token_ids
        if chunk.get("token_ids") is not None:
            choice.token_ids = (choice.token_ids or []) + chunk["token_ids"]
        logprobs = _logprobs(self._kind, chunk.get("logprobs"))
        if logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + logprobs


def _merge_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if value is None:
            continue
        if key == "tool_calls":
            _merge_tool_calls(message.setdefault("tool_calls", []), value)
        elif key == "role":
            message["role"] = value
        elif isinstance(value, str):  # content, refusal, reasoning_content, …
            message[key] = (message.get(key) or "") + value
        else:
            message[key] = value


def _merge_tool_calls(calls: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    for delta in deltas:
        index = delta.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[index]
        call["id"] = delta.get("id") or call["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
