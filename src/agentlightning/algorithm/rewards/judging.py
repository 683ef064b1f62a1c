"""A judge's questions in the trace of the rollout that it judges, so that they are seen and paid for.

They are no calls of the agent's: critics and training data do not have them. Knows no judge.
"""

from __future__ import annotations

from agentlightning.agent.emit import emit_annotation
from agentlightning.agent.scope import current_scope
from agentlightning.algorithm.asking import Reply
from agentlightning.schemas import Span, semconv

_PREFIX = "judge"
_MAX_ANSWER = 2000


def note_judge_call(reply: Reply) -> None:
    """Write an answer of a judge into the running rollout, if one is running."""
    if current_scope() is None:
        return
    said = {"model": reply.model, "input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
    emit_annotation({_PREFIX: {**said, "answer": reply.text[:_MAX_ANSWER]}})


def judge_call(span: Span) -> Reply | None:
    """The answer that `note_judge_call` has written, if the span is one."""
    found = span.attributes
    if span.name != semconv.AGL_ANNOTATION or f"{_PREFIX}.model" not in found:
        return None
    return Reply(
        text=str(found.get(f"{_PREFIX}.answer") or ""),
        model=str(found[f"{_PREFIX}.model"]),
        input_tokens=int(found.get(f"{_PREFIX}.input_tokens") or 0),
        output_tokens=int(found.get(f"{_PREFIX}.output_tokens") or 0),
    )
