"""Rollouts and spans for tests of the agent room."""

from __future__ import annotations

import json
from typing import Any

from agentlightning.schemas import Attempt, AttemptedRollout, Rollout, Span, semconv


def attempted(
    task: Any = None, *, mode: Any = "train", rollout_id: str = "r1", attempt_id: str = "a1"
) -> AttemptedRollout:
    attempt = Attempt(rollout_id=rollout_id, attempt_id=attempt_id, sequence_id=1, start_time=0.0)
    return AttemptedRollout(rollout_id=rollout_id, input=task, start_time=0.0, mode=mode, attempt=attempt)


def bare(task: Any = None) -> Rollout:
    return Rollout(rollout_id="r1", input=task, start_time=0.0)


def model_call(
    prompt: list[int] | None,
    response: list[int] | None,
    *,
    logprobs: list[float] | None = None,
    sequence_id: int = 1,
    at: float = 0.0,
    parent_id: str | None = None,
    messages: list[dict[str, Any]] | None = None,
    output: dict[str, Any] | None = None,
    tools: list[dict[str, Any]] | None = None,
    name: str = semconv.MODEL_CALL,
    **extra: Any,
) -> Span:
    attributes: dict[str, Any] = {
        semconv.CALL_INPUT_MESSAGES: json.dumps(messages or [{"role": "user", "content": "hi"}]),
        semconv.CALL_OUTPUT_MESSAGES: json.dumps([output or {"role": "assistant", "content": "yo"}]),
        semconv.RESPONSE_ID: f"resp-{sequence_id}",
        semconv.FINISH_REASONS: ["stop"],
        **extra,
    }
    if tools is not None:
        attributes[semconv.CALL_TOOLS] = json.dumps(tools)
    if prompt is not None:
        attributes[semconv.PROMPT_TOKEN_IDS] = prompt
    if response is not None:
        attributes[semconv.RESPONSE_TOKEN_IDS] = response
        if logprobs is None:
            logprobs = [-0.5] * len(response)
    if logprobs is not None:
        attributes[semconv.RESPONSE_LOGPROBS] = logprobs
    return Span.from_attributes(
        attributes=attributes,
        rollout_id="r1",
        attempt_id="a1",
        sequence_id=sequence_id,
        name=name,
        parent_id=parent_id,
        start_time=at,
        end_time=at + 0.5,
    )
