"""An export read from a file, checked as a whole: what it refers to is there, and payloads are what their hashes say.

Knows no store.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentlightning.algorithm.prompt.direct import Judged, OptimizationData, literal_prompt
from agentlightning.integrations.training_camp.schema import (
    PAYLOADS,
    ArtifactScored,
    AttemptCompleted,
    CampAgent,
    CampArtifact,
    CampEvent,
    CampExport,
    CampLineage,
    CampSession,
    FeedbackGiven,
    LineageLocked,
    Part,
    seconds,
)
from agentlightning.kit.errors import BadInputError

MAX_BYTES = 2**30
"""Unpacked; more is refused, so that a small file cannot fill the memory."""

_SHOWN = 5
_REFERENCE = "$payload"


@dataclass(frozen=True)
class Judgement:
    """What somebody said of an attempt."""

    event_id: str
    time: float
    score: float | None = None
    """0 to 10; `None` when none was given."""
    thumb: Any = None
    comment: str | None = None
    author: str | None = None
    artifact_id: str | None = None


@dataclass(frozen=True)
class CampAttempt:
    """One attempt with everything that was said of it."""

    done: AttemptCompleted
    event_id: str
    judgements: tuple[Judgement, ...] = ()

    @property
    def score(self) -> float | None:
        """Mean of each author's latest scores of each artifact, 0 to 10; `None` when nothing was scored."""
        latest = {(said.author, said.artifact_id): said.score for said in self.judgements if said.score is not None}
        return sum(latest.values()) / len(latest) if latest else None

    @property
    def comments(self) -> list[str]:
        """What was said in words, oldest first."""
        return [said.comment for said in self.judgements if said.comment]


@dataclass(frozen=True)
class Step:
    """Something that happens to a lineage, in the order of events: an attempt, or a lock."""

    time: float
    kind: str
    lineage_id: str
    attempt_id: str | None = None
    author: str | None = None


@dataclass(frozen=True)
class Camp:
    """A session ready to be used: attempts in the order they were made, payloads in their places."""

    source: CampExport
    session: CampSession
    lineages: tuple[CampLineage, ...]
    agents: Mapping[tuple[str, int], CampAgent]
    attempts: tuple[CampAttempt, ...]
    steps: tuple[Step, ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many events of which unknown types there are."""

    def latest(self, agent_id: str) -> CampAgent:
        """The newest version of an agent."""
        return max((agent for (name, _), agent in self.agents.items() if name == agent_id), key=lambda a: a.version)

    def optimization_data(self, agent_id: str | None = None) -> OptimizationData:
        """What `APO().optimize(camp)` starts from: an agent's newest prompt, its tasks, what people scored.

        What one lineage was asked is a task for the others, too: they are developed for the same need.

        Args:
            agent_id: Which agent; may be left out when there is one, or when one lineage leads.

        Raises:
            BadInputError: There are several agents, none is named and no lineage leads, or there is none of that name.
        """
        named = agent_id or (self.agent_ids[0] if len(self.agent_ids) == 1 else self.leading_agent())
        if named not in self.agent_ids:
            raise BadInputError(
                f"Which agent? The session has {', '.join(self.agent_ids)}.",
                hint="Give camp.optimization_data(AGENT) to optimize().",
            )
        found = OptimizationData([], {named: literal_prompt(self.latest(named).system_prompt)})
        beside = {lineage.id for lineage in self.lineages} if self._has_lineage(named) else set[str]()
        for attempt in self.attempts:
            is_own = attempt.done.agent_id == named
            if (is_own or attempt.done.lineage_id in beside) and attempt.done.input not in found.tasks:
                found.tasks.append(attempt.done.input)
            if is_own and attempt.score is not None:
                comment = "; ".join(attempt.comments)
                found.judged.append(Judged(attempt.done.input, attempt.done.output, attempt.score / 10, comment))
        return found

    def leading_agent(self) -> str | None:
        """The agent of the lineage that people scored best on average; `None` when none was scored, or two as well."""
        means: dict[str, float] = {}
        for lineage in self.lineages:
            scores = [a.score for a in self.attempts if a.done.lineage_id == lineage.id and a.score is not None]
            if scores:
                means[lineage.agent_id] = max(means.get(lineage.agent_id, 0.0), sum(scores) / len(scores))
        best = [agent_id for agent_id, mean in means.items() if mean == max(means.values())]
        return best[0] if len(best) == 1 else None

    def _has_lineage(self, agent_id: str) -> bool:
        return any(lineage.agent_id == agent_id for lineage in self.lineages)

    @property
    def agent_ids(self) -> list[str]:
        """All agents, in the order they stand in the export."""
        return list(dict.fromkeys(agent_id for agent_id, _ in self.agents))


def load_export(path: str | Path) -> Camp:
    """Read an export: JSON, or JSON packed with gzip.

    Raises:
        BadInputError: The file cannot be read, is no export, or contradicts itself; the message names the places.
    """
    return read_export(_parsed(Path(path)), name=str(path))


def read_export(content: Any, *, name: str = "the export") -> Camp:
    """As `load_export`, from parsed JSON."""
    try:
        export = CampExport.model_validate(content)
    except ValidationError as error:
        raise _refused(name, _places(error)) from None
    problems: list[str] = []
    resolved = _Payloads(export.payloads, problems)
    events = _events(export, resolved, problems)
    agents = {(agent.id, agent.version): agent for agent in export.agents}
    if len(agents) < len(export.agents):
        problems.append("agents: an id and version stand there twice")
    attempts = _attempts(events, problems)
    _check(export, agents, attempts, problems)
    steps = _steps(events, {line.id for line in export.lineages}, problems)
    if problems:
        raise _refused(name, problems)
    unread: dict[str, int] = {}
    for event, payload in events:
        if payload is None:
            unread[event.event_type] = unread.get(event.event_type, 0) + 1
    return Camp(export, export.session, export.lineages, agents, attempts, steps, unread)


def _parsed(path: Path) -> Any:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(path) as stream:
                raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise BadInputError(f"{path} unpacks to more than {MAX_BYTES} bytes.", hint="Export fewer sessions.")
        return json.loads(raw)
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RecursionError, EOFError, zlib.error) as error:
        reason = f"it is no JSON ({error})"
    raise BadInputError(f"{path} cannot be read: {reason}.", hint="Give a JSON file that Training Camp exported.")


def _refused(name: str, problems: Sequence[str]) -> BadInputError:
    more = f" … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return BadInputError(
        f"{name} is no usable Training Camp export: {'; '.join(problems[:_SHOWN])}{more}",
        hint="The format is described by `agl import training-camp --schema`.",
        details={"problems": list(problems)},
    )


def _places(error: ValidationError, prefix: str = "") -> list[str]:
    return [
        f"{'.'.join(str(part) for part in (*([prefix] if prefix else []), *item['loc']))}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]


class _Payloads:
    """Puts payloads into their places, each checked once."""

    def __init__(self, kept: Mapping[str, str], problems: list[str]) -> None:
        self._kept = kept
        self._problems = problems
        for name, text in kept.items():
            if name != payload_name(text):
                problems.append(f"payloads.{name[:24]}…: the content has another hash")

    def __call__(self, value: Any, place: str) -> Any:
        if isinstance(value, Mapping):
            if set(value) == {_REFERENCE}:
                return self._get(value[_REFERENCE], place)
            return {key: self(item, place) for key, item in value.items()}
        if isinstance(value, list):
            return [self(item, place) for item in value]
        return value

    def _get(self, name: Any, place: str) -> str:
        if not isinstance(name, str) or name not in self._kept:
            self._problems.append(f"{place}: there is no payload {name!r}")
            return ""
        return self._kept[name]


def payload_name(text: str) -> str:
    """What a payload is called."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _events(export: CampExport, resolved: _Payloads, problems: list[str]) -> list[tuple[CampEvent, Part | None]]:
    """Every event with what it carries (`None` if its type is unknown), in the order of time."""
    seen: set[str] = set()
    found: list[tuple[CampEvent, Part | None]] = []
    for number, event in enumerate(export.events):
        if event.id in seen:
            problems.append(f"events.{number}: the id {event.id!r} stands there twice")
        seen.add(event.id)
        model = PAYLOADS.get(event.event_type)
        payload: Part | None = None
        if model is not None:
            try:
                payload = model.model_validate(resolved(event.payload, f"events.{number}"))
            except ValidationError as error:
                problems.extend(_places(error, f"events.{number}.payload"))
                continue
        found.append((event, payload))
    found.sort(key=lambda pair: pair[0].created_at)
    return found


def _attempts(events: Sequence[tuple[CampEvent, Part | None]], problems: list[str]) -> tuple[CampAttempt, ...]:
    done: dict[str, tuple[str, AttemptCompleted]] = {}
    maker: dict[str, str] = {}
    for event, payload in events:
        if isinstance(payload, AttemptCompleted):
            if payload.attempt_id in done:
                problems.append(f"attempt {payload.attempt_id!r} is completed twice")
            done[payload.attempt_id] = (event.id, payload)
            for artifact in payload.artifacts:
                _own(maker, artifact, payload.attempt_id, problems)
    said: dict[str, list[Judgement]] = {attempt_id: [] for attempt_id in done}
    for event, payload in events:
        judgement = _judgement(event, payload)
        if judgement is None or payload is None:
            continue
        about = payload.attempt_id if isinstance(payload, FeedbackGiven) else maker.get(judgement.artifact_id or "")
        if about not in said:
            what = judgement.artifact_id or getattr(payload, "attempt_id", "")
            problems.append(f"event {event.id!r} is about {what!r}, which no attempt made")
            continue
        said[about].append(judgement)
    return tuple(CampAttempt(payload, event_id, tuple(said[name])) for name, (event_id, payload) in done.items())


def _own(maker: dict[str, str], artifact: CampArtifact, attempt_id: str, problems: list[str]) -> None:
    if artifact.id in maker:
        problems.append(f"artifact {artifact.id!r} stands there twice")
    maker[artifact.id] = attempt_id


def _judgement(event: CampEvent, payload: Part | None) -> Judgement | None:
    time = seconds(event.created_at)
    if isinstance(payload, ArtifactScored):
        return Judgement(
            event.id, time, payload.score, None, payload.comment, payload.author, artifact_id=payload.artifact_id
        )
    if isinstance(payload, FeedbackGiven):
        return Judgement(event.id, time, None, payload.thumb, payload.comment, payload.author)
    return None


def _check(
    export: CampExport,
    agents: Mapping[tuple[str, int], CampAgent],
    attempts: Sequence[CampAttempt],
    problems: list[str],
) -> None:
    lineages = {line.id for line in export.lineages}
    if len(lineages) < len(export.lineages):
        problems.append("lineages: an id stands there twice")
    names = {agent_id for agent_id, _ in agents}
    problems.extend(
        f"lineage {line.id!r} has the agent {line.agent_id!r}, which is not there"
        for line in export.lineages
        if line.agent_id not in names
    )
    taken: set[tuple[str, int]] = set()
    for attempt in attempts:
        done = attempt.done
        place = f"attempt {done.attempt_id!r}"
        if (done.agent_id, done.agent_version) not in agents:
            problems.append(f"{place} is by {done.agent_id!r} version {done.agent_version}, which is not there")
        if done.ended_at < done.started_at:
            problems.append(f"{place} ends before it starts")
        if done.lineage_id is None:
            continue
        if done.lineage_id not in lineages:
            problems.append(f"{place} belongs to lineage {done.lineage_id!r}, which is not there")
        if (done.lineage_id, done.cycle) in taken:
            problems.append(f"{place}: its lineage has another attempt in cycle {done.cycle}")
        taken.add((done.lineage_id, done.cycle))


def _steps(
    events: Sequence[tuple[CampEvent, Part | None]], lineages: set[str], problems: list[str]
) -> tuple[Step, ...]:
    found: list[Step] = []
    started: set[str] = set()
    locked: set[str] = set()
    for event, payload in events:
        time = seconds(event.created_at)
        if isinstance(payload, AttemptCompleted) and payload.lineage_id is not None:
            if payload.lineage_id in locked:
                problems.append(
                    f"attempt {payload.attempt_id!r} is of lineage {payload.lineage_id!r} while it is locked"
                )
            started.add(payload.lineage_id)
            found.append(Step(time, "attempt", payload.lineage_id, payload.attempt_id))
        elif isinstance(payload, LineageLocked):
            kind = event.event_type.partition(".")[2]
            if payload.lineage_id not in lineages:
                problems.append(f"event {event.id!r} is about lineage {payload.lineage_id!r}, which is not there")
            elif payload.lineage_id not in started:
                problems.append(f"event {event.id!r} is about lineage {payload.lineage_id!r} before its first attempt")
            elif (kind == "locked") != (payload.lineage_id in locked):  # repeated, it changes nothing
                (locked.add if kind == "locked" else locked.discard)(payload.lineage_id)
                found.append(Step(time, kind, payload.lineage_id, author=payload.author))
    return tuple(found)
