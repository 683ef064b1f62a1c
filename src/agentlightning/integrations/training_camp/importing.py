"""A camp's session into a store: attempts become rollouts, scores feedback, locks preferences. Repeating is harmless.

The definitions of the agents go into the session's metadata, not into the resources: those are what new rollouts use,
and looking at a camp's past must not change what other agents are given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from agentlightning.integrations.training_camp.reading import Camp, CampAttempt
from agentlightning.integrations.training_camp.schema import CampSpan, seconds
from agentlightning.schemas import Span, TraceStatus, semconv
from agentlightning.store import LightningStore

TOOL_NAME = "gen_ai.tool.name"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"
_ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass
class ImportCounts:
    """What came in; `known` were there already."""

    attempts: int = 0
    spans: int = 0
    judgements: int = 0
    locks: int = 0
    preferences: int = 0
    known: int = 0
    unread: int = 0
    """Events of types that are not known here; they go back out with `export`."""

    def as_dict(self) -> dict[str, int]:
        """JSON-able."""
        return asdict(self)


def session_id_of(camp: Camp) -> str:
    """What the session is called in the store."""
    return f"camp-{camp.session.id}"


def rollout_id_of(camp: Camp, attempt_id: str) -> str:
    """What an attempt's rollout is called in the store."""
    return f"camp-{camp.session.id}-{attempt_id}"


async def import_camp(
    store: LightningStore, camp: Camp, *, progress: Callable[[int, int], None] | None = None
) -> ImportCounts:
    """Add a camp's session to a store. Interrupted, it can be repeated: what is there stays as it is.

    Args:
        store: Where to.
        camp: What `load_export` read.
        progress: Called with the attempts done and all of them.

    Raises:
        ConflictError: A session or rollout of that name is there and is another one.
    """
    counts = ImportCounts(unread=sum(camp.unread.values()))
    if camp.lineages:
        await store.create_lineage_session(
            names=[line.label or line.id for line in camp.lineages],
            name=camp.session.name,
            session_id=session_id_of(camp),
            metadata={
                "training_camp": {
                    "session": camp.session.model_dump(mode="json", by_alias=True),
                    "agents": [agent.model_dump(mode="json", by_alias=True) for agent in camp.agents.values()],
                }
            },
        )
    for number, attempt in enumerate(camp.attempts):
        await _add_attempt(store, camp, attempt, counts)
        if progress is not None:
            progress(number + 1, len(camp.attempts))
    if camp.lineages:
        await _add_steps(store, camp, counts)
    return counts


async def _add_attempt(store: LightningStore, camp: Camp, attempt: CampAttempt, counts: ImportCounts) -> None:
    done, rollout_id = attempt.done, rollout_id_of(camp, attempt.done.attempt_id)
    rollout = await store.start_rollout(
        done.input,
        rollout_id=rollout_id,
        metadata={
            "source": "training-camp",
            "camp_session": camp.session.id,
            "camp_lineage": done.lineage_id,
            "camp_cycle": done.cycle,
            "camp_agent": done.agent_id,
            "camp_agent_version": done.agent_version,
            "camp_times": [seconds(done.started_at), seconds(done.ended_at)],
        },
    )
    attempt_id = rollout.attempt.attempt_id
    if rollout.status in _ENDED:
        counts.known += 1
    else:
        spans = _spans(camp, attempt, rollout_id, attempt_id)
        counts.spans += len(await store.add_many_spans(spans))
        await store.update_attempt(rollout_id, attempt_id, status=done.status)
        counts.attempts += 1
    known = {said.feedback_id for said in await store.query_feedback(rollout_id_in=[rollout_id])}
    for said in attempt.judgements:
        feedback_id = f"camp-{camp.session.id}-{said.event_id}"
        if feedback_id in known or (said.score is None and said.thumb is None and not said.comment):
            continue
        await store.add_feedback(
            rollout_id,
            score=said.score,
            thumb=said.thumb,
            comment=said.comment,
            author=said.author,
            metadata={"artifact_id": said.artifact_id, "time": said.time},
            feedback_id=feedback_id,
        )
        counts.judgements += 1


def _spans(camp: Camp, attempt: CampAttempt, rollout_id: str, attempt_id: str) -> list[Span]:
    trace_id = _hex(f"{camp.session.id}/{attempt.done.attempt_id}", 32)

    def name(span_id: str) -> str:
        return _hex(f"{trace_id}/{span_id}", 16)

    found = [
        Span.from_attributes(
            name=semconv.MODEL_CALL if span.kind == "llm" else span.name,
            attributes=_attributes(span),
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=number,
            trace_id=trace_id,
            span_id=name(span.id),
            parent_id=None if span.parent_id is None else name(span.parent_id),
            start_time=seconds(span.started_at),
            end_time=None if span.ended_at is None else seconds(span.ended_at),
            status=TraceStatus(status_code="ERROR" if span.error else "OK", description=span.error),
        )
        for number, span in enumerate(sorted(attempt.done.spans, key=lambda span: span.started_at), start=1)
    ]
    outcome = {
        semconv.OPERATION_NAME: "attempt",
        semconv.OPERATION_INPUT: _text(attempt.done.input),
        semconv.OPERATION_OUTPUT: _text(attempt.done.output),
        **{f"training_camp.artifact.{item.id}": _text(item.content) for item in attempt.done.artifacts},
    }
    found.append(
        Span.from_attributes(
            name=semconv.AGL_OPERATION,
            attributes=outcome,
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=len(found) + 1,
            trace_id=trace_id,
            span_id=name("outcome"),
            start_time=seconds(attempt.done.started_at),
            end_time=seconds(attempt.done.ended_at),
            status=TraceStatus(
                status_code="ERROR" if attempt.done.status == "failed" else "OK", description=attempt.done.error
            ),
        )
    )
    return found


def _attributes(span: CampSpan) -> dict[str, Any]:
    found: dict[str, Any] = {"training_camp.kind": span.kind, "training_camp.name": span.name}
    found |= {key: value if _is_plain(value) else _text(value) for key, value in span.attributes.items()}
    if span.kind == "llm":
        found[semconv.CALL_INPUT_MESSAGES] = json.dumps(_messages(span.input, "user"), ensure_ascii=False)
        if span.output is not None:
            answers = _messages(span.output, "assistant")
            found[semconv.CALL_OUTPUT_MESSAGES] = json.dumps(answers, ensure_ascii=False)
    elif span.kind == "tool":
        found |= {TOOL_NAME: span.name, TOOL_ARGUMENTS: _text(span.input), TOOL_RESULT: _text(span.output)}
    else:
        found |= {semconv.OPERATION_INPUT: _text(span.input), semconv.OPERATION_OUTPUT: _text(span.output)}
    known = {
        semconv.REQUEST_MODEL: span.model,
        semconv.INPUT_TOKENS: span.input_tokens,
        semconv.OUTPUT_TOKENS: span.output_tokens,
    }
    return found | {key: value for key, value in known.items() if value is not None}


def _messages(content: Any, role: str) -> list[Any]:
    """As messages: a text is one of `role`, a message is a list of one."""
    if isinstance(content, dict) and "messages" in content:
        content = content["messages"]
    if isinstance(content, list):
        return content
    return [content] if isinstance(content, dict) and "role" in content else [{"role": role, "content": _text(content)}]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, bool, int, float))


def _hex(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


async def _add_steps(store: LightningStore, camp: Camp, counts: ImportCounts) -> None:
    """Attempts and locks of lineages in the order in which they came, so that preferences come out the same."""
    session_id = session_id_of(camp)
    places = {line.id: f"{session_id}.{number}" for number, line in enumerate(camp.lineages)}
    cycles = {attempt.done.attempt_id: attempt.done.cycle for attempt in camp.attempts}
    history = await store.query_lineage_history(session_id)
    for number, step in enumerate(camp.steps):
        if number < len(history):
            continue  # there already, in the same order
        lineage = places[step.lineage_id]
        if step.attempt_id is not None:
            rollout_id = rollout_id_of(camp, step.attempt_id)
            await store.add_to_lineage(lineage, rollout_id, cycle=cycles[step.attempt_id])
        elif step.kind == "locked":
            await store.lock_lineage(lineage, author=step.author)
            counts.locks += 1
        else:
            await store.unlock_lineage(lineage, author=step.author)
            counts.locks += 1
    counts.preferences = len(await store.query_preferences(session_id=session_id))
