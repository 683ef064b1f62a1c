"""Model calls out of spans, and token sequences out of model calls.

A turn is appended to a sequence only when its prompt begins with exactly the tokens so far; text that looks alike but
tokenises differently starts a new sequence, so that what is trained on is what was sampled. Knows nothing of rewards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from agentlightning.schemas import ModelCall, Span, is_model_call, semconv

BreakReason = Literal["history_changed", "retokenized", "prompt_shorter"]

_decode: Callable[[str | bytes], Any] = msgspec.json.decode


class Trajectory(msgspec.Struct, kw_only=True):
    """One token sequence of T tokens that the policy took part in.

    `loss_mask[t] == 1` where the policy sampled token t, and `logprobs[t]` is its log-probability then (natural log),
    0.0 elsewhere. `breaks` is 1 when the sequence began because a turn did not continue an earlier one; summed over an
    attempt it counts them. `break_reason` says how the turn differed: `history_changed` (earlier turns were edited, or
    it is another conversation), `retokenized` (the model's own response came back as other tokens), `prompt_shorter`
    (the prompt ends before the earlier turn does).
    """

    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float]
    span_ids: list[str]
    """The model calls in it, in order."""
    breaks: int = 0
    break_reason: BreakReason | None = None


def calls_from_spans(spans: Iterable[Span], *, messages: bool = True) -> list[ModelCall]:
    """The captured model calls among `spans`, by sequence id.

    Args:
        spans: Spans of one attempt, or of several.
        messages: `False` leaves `messages`, `tools` and `output` empty, which is faster.
    """
    calls = [_call(span, messages) for span in spans if is_model_call(span)]
    calls.sort(
        key=lambda call: (call.rollout_id, call.attempt_id, call.sequence_id, call.start_time or 0.0, call.choice)
    )
    return calls


def _call(span: Span, messages: bool) -> ModelCall:
    attributes = span.attributes
    prompt = _ids(attributes.get(semconv.PROMPT_TOKEN_IDS))
    response = _ids(attributes.get(semconv.RESPONSE_TOKEN_IDS))
    logprobs = _ids(attributes.get(semconv.RESPONSE_LOGPROBS))
    call = ModelCall(
        rollout_id=span.rollout_id,
        attempt_id=span.attempt_id,
        sequence_id=span.sequence_id,
        span_id=span.span_id,
        response_id=attributes.get(semconv.RESPONSE_ID) or "",
        choice=attributes.get(semconv.CALL_CHOICE) or 0,
        model=attributes.get(semconv.RESPONSE_MODEL) or attributes.get(semconv.REQUEST_MODEL) or "",
        model_version=attributes.get(semconv.MODEL_VERSION) or "",
        prompt_token_ids=prompt,
        response_token_ids=response,
        response_logprobs=logprobs,
        temperature=attributes.get(semconv.CALL_TEMPERATURE),
        finish_reason=_finish_reason(attributes.get(semconv.FINISH_REASONS)),
        not_trainable_because=attributes.get(semconv.NOT_TRAINABLE_BECAUSE)
        or _why_not_trainable(prompt, response, logprobs),
        history=attributes.get(semconv.CALL_HISTORY),
        start_time=span.start_time,
        end_time=span.end_time,
    )
    if messages:
        call.messages = _json(attributes.get(semconv.CALL_INPUT_MESSAGES), [])
        call.tools = _json(attributes.get(semconv.CALL_TOOLS), [])
        call.output = _first(_json(attributes.get(semconv.CALL_OUTPUT_MESSAGES), {}))
    return call


def _ids(value: Any) -> list[Any] | None:
    if value is None:
        return None
    return _decode(value) if isinstance(value, str | bytes) else list(value)


def _json(value: Any, empty: Any) -> Any:
    if value is None or value == "":
        return empty
    return json.loads(value) if isinstance(value, str | bytes) else value


def _first(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return dict(cast("Mapping[str, Any]", output))
    return output[0] if output else {}


def _finish_reason(value: Any) -> str:
    if isinstance(value, list | tuple):
        return str(value[0]) if value else ""
    if isinstance(value, str) and value.startswith("["):
        return _finish_reason(json.loads(value))
    return str(value or "")


def _why_not_trainable(prompt: list[Any] | None, response: list[Any] | None, logprobs: list[Any] | None) -> str | None:
    if not prompt or response is None:
        return "the upstream reported no token ids"
    if logprobs is None:
        return "the upstream reported no log-probabilities"
    if len(logprobs) != len(response):
        return f"{len(response)} response tokens but {len(logprobs)} log-probabilities"
    return None


def merge_calls(calls: Sequence[ModelCall]) -> list[Trajectory]:
    """Join the trainable calls of one attempt, in order, into as few token sequences as exactness allows.

    A call continues the latest sequence whose tokens its prompt begins with. Calls that are not trainable are left out;
    they say why themselves (`not_trainable_because`). A call that begins another sequence is a break unless the gateway
    saw that it is none (`history`): a conversation of its own, or another answer to the same turn.
    """
    trajectories: list[Trajectory] = []
    prompt_lengths: list[int] = []  # of the last call of each, to tell where a prompt began to differ
    for call in calls:
        if not call.trainable or call.prompt_token_ids is None or not call.response_token_ids:
            continue
        index = _continued(trajectories, call.prompt_token_ids)
        if index is None:
            reason = None
            if trajectories and not _is_no_break(call):
                reason = _difference(trajectories[-1], prompt_lengths[-1], call.prompt_token_ids)
            trajectories.append(
                Trajectory(
                    token_ids=[],
                    loss_mask=[],
                    logprobs=[],
                    span_ids=[],
                    breaks=int(reason is not None),
                    break_reason=reason,
                )
            )
            prompt_lengths.append(0)
            index = len(trajectories) - 1
        _append(trajectories[index], call)
        prompt_lengths[index] = len(call.prompt_token_ids)
    return trajectories


def _continued(trajectories: list[Trajectory], prompt: list[int]) -> int | None:
    for index in range(len(trajectories) - 1, -1, -1):
        tokens = trajectories[index].token_ids
        if len(prompt) > len(tokens) and prompt[: len(tokens)] == tokens:
            return index
    return None


def _is_no_break(call: ModelCall) -> bool:
    return call.history in ("start", "continues") or call.choice > 0


def _append(trajectory: Trajectory, call: ModelCall) -> None:
    prompt, response = call.prompt_token_ids or [], call.response_token_ids or []
    given = prompt[len(trajectory.token_ids) :]
    trajectory.token_ids += given + response
    trajectory.loss_mask += [0] * len(given) + [1] * len(response)
    trajectory.logprobs += [0.0] * len(given) + list(call.response_logprobs or ())
    trajectory.span_ids.append(call.span_id)


def _difference(previous: Trajectory, prompt_length: int, prompt: list[int]) -> BreakReason:
    tokens = previous.token_ids
    if prompt[:prompt_length] != tokens[:prompt_length]:
        return "history_changed"
    shared = min(len(tokens), len(prompt))
    return "prompt_shorter" if prompt[:shared] == tokens[:shared] else "retokenized"
