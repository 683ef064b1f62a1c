"""What the store keeps of a task's attempt: its input, the tools' spans, the result. Texts are masked by policy.

These are copies, which others may read and learn from; the task itself, which is its owner's, stays as it was said.
"""

from __future__ import annotations

from typing import Any

import orjson

from agentlightning.kit.ids import new_trace_id
from agentlightning.platform.agents.models import Agent
from agentlightning.platform.masking import Masking
from agentlightning.platform.tasks.models import Task
from agentlightning.platform.tasks.react import Answer, ToolUse, kept
from agentlightning.schemas import Span, TraceStatus
from agentlightning.schemas.semconv import AGL_OPERATION, OPERATION_INPUT, OPERATION_NAME, OPERATION_OUTPUT

RESULT = "task"
"""Name of the operation that is the whole task."""
_MASKED = "agentlightning.masked"


class Recorder:
    """Makes records of tasks."""

    def __init__(self, masking: Masking) -> None:
        self._masking = masking

    def input_of(self, task: Task) -> Any:
        """The rollout's input."""
        return self._masking.record({"task": task.task_description, "context": task.context}, "prompts")

    def spans(
        self,
        task: Task,
        agent: Agent,
        place: tuple[str, str],
        answer: Answer,
        result: dict[str, Any] | None,
        error: BaseException | None,
    ) -> list[Span]:
        """The task as a span, and one below it for each use of a tool.

        Args:
            task: What was to be done.
            agent: Who did it.
            place: Ids of rollout and attempt.
            answer: What it has said and used so far.
            result: What came out.
            error: Why nothing did.
        """
        said = "" if error is None else f"{type(error).__name__}: {error}"
        told = result or {"output": kept(answer.output)}
        shown = self._masking.record(told, "completions")
        attributes = {
            OPERATION_NAME: RESULT,
            OPERATION_INPUT: self._masking.record(kept(task.task_description), "prompts"),
            OPERATION_OUTPUT: orjson.dumps(shown).decode(),
            "agent": agent.name,
            "agent_version": agent.version,
        }
        whole = Span.from_attributes(
            rollout_id=place[0],
            attempt_id=place[1],
            trace_id=new_trace_id(),
            name=AGL_OPERATION,
            attributes=attributes if shown == told else {**attributes, _MASKED: True},
            status=TraceStatus(
                status_code="OK" if error is None else "ERROR", description=kept(self._masking.text(said)) or None
            ),
        )
        return [*(self._tool_span(use, place, whole) for use in answer.uses), whole]

    def _tool_span(self, use: ToolUse, place: tuple[str, str], whole: Span) -> Span:
        arguments = self._masking.record(orjson.dumps(use.arguments, default=str).decode(), "completions")
        return Span.from_attributes(
            rollout_id=place[0],
            attempt_id=place[1],
            trace_id=whole.trace_id,
            parent_id=whole.span_id,
            name=AGL_OPERATION,
            attributes={
                OPERATION_NAME: f"tool.{use.tool}",
                OPERATION_INPUT: kept(arguments),
                OPERATION_OUTPUT: kept(self._masking.record(use.result.text, "prompts")),
            },
            start_time=use.started_at,
            end_time=use.ended_at,
            status=TraceStatus(status_code="ERROR" if use.result.is_error else "OK"),
        )


def result_in(span: Span) -> dict[str, Any]:
    """A task's result from its span; with `masked`, if it is not all that was said."""
    result: dict[str, Any] = orjson.loads(str(span.attributes[OPERATION_OUTPUT]))
    return {**result, "masked": True} if span.attributes.get(_MASKED) else result
