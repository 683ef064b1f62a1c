"""What all resources share; tasks and experiments, as typed calls."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import httpx

from agentlightning.client.models import Answer, Experiment, Task
from agentlightning.client.reports import AutoStatus, Decision
from agentlightning.client.transport import PlatformError, Transport

log = logging.getLogger(__name__)

PAGE = 100
_WAIT_S = 30.0
_LOOK_S = 1.0
_BEGINS = re.compile(r": from (\d+)")
"""The first line of a stream of events: the number that it begins after."""

AnswerT = TypeVar("AnswerT", bound=Answer)


class Resource:
    """Base: something the API keeps."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def pages(self, path: str, key: str, kind: type[AnswerT], cursor: str, **query: Any) -> Iterator[AnswerT]:
        """Everything in a list, read while it is iterated over."""
        at: int | None = None
        while True:
            page = self._transport.call("GET", path, query={"limit": PAGE, cursor: at, **query})
            yield from map(kind.model_validate, page[key])
            at = page["next"]
            if at is None:
                return

    @staticmethod
    def until(look: Callable[[], AnswerT], is_over: Callable[[AnswerT], bool], what: str, timeout_s: float) -> AnswerT:
        """What is looked at when it has ended; for what takes minutes and has no call that waits.

        Raises:
            TimedOutError: It has not; it goes on.
        """
        deadline = time.monotonic() + timeout_s
        while not is_over(found := look()):
            if time.monotonic() > deadline:
                raise TimedOutError(f"{what} has not ended after {timeout_s:g} s.", hint="Wait again.")
            time.sleep(_LOOK_S)
        return found


def given(**values: Any) -> dict[str, Any]:
    """Those that are not `None`."""
    return {name: value for name, value in values.items() if value is not None}


class TimedOutError(PlatformError):
    """What was waited for has not ended; it goes on."""

    code = "STILL_RUNNING"


class Tasks(Resource):
    """What agents are asked to do. Other users' tasks are not there."""

    def __iter__(self) -> Iterator[Task]:
        return self.list()

    def list(
        self, *, status: str | None = None, agent: str | None = None, session_id: str | None = None
    ) -> Iterator[Task]:
        """Tasks, newest first."""
        return self.pages("/api/v2/tasks", "tasks", Task, "before", status=status, agent=agent, session_id=session_id)

    def assign(
        self,
        task: str,
        *,
        agent: int | str | None = None,
        agent_type: str | None = None,
        priority: Literal["low", "medium", "high"] | int = "medium",
        context: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
        cache: bool = False,
    ) -> Task:
        """Give a task to an agent: a named one, one of a type, or the one that fits best.

        With an `idempotency_key` the call may be repeated: the same key answers the same task.
        """
        body = given(
            task=task,
            agent=agent,
            agent_type=agent_type,
            priority=priority,
            context=None if context is None else dict(context),
            session_id=session_id,
            timeout_s=timeout_s,
            idempotency_key=idempotency_key,
            cache=cache or None,
        )
        answer = self._transport.call(
            "POST", "/api/v2/agents/assign", json=body, repeatable=idempotency_key is not None
        )
        return Task.model_validate(answer)

    def get(self, task_id: int) -> Task:
        """One task."""
        return Task.model_validate(self._transport.call("GET", f"/api/v2/tasks/{task_id}"))

    def wait(self, task_id: int, *, timeout_s: float = 300.0) -> Task:
        """The task when it has ended, well or not.

        Raises:
            TimedOutError: It has not; it goes on.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            query = {"wait_s": max(0.0, min(_WAIT_S, left))}
            said = self._transport.call("GET", f"/api/v2/tasks/{task_id}/result", query=query)
            if said["status"] not in ("pending", "running"):
                return self.get(task_id)
            if left <= 0:
                raise TimedOutError(f"Task {task_id} is {said['status']} after {timeout_s:g} s.", hint="Wait again.")

    def run(self, task: str, *, wait_s: float = 300.0, **how: Any) -> Task:
        """`assign` and `wait` in one; `how` as in `assign`."""
        return self.wait(self.assign(task, **how).task_id, timeout_s=wait_s)

    def cancel(self, task_id: int) -> Task:
        """End it."""
        return Task.model_validate(self._transport.call("POST", f"/api/v2/tasks/{task_id}/cancel"))

    def trace(self, task_id: int) -> Sequence[dict[str, Any]]:
        """What was done: spans of model calls and tools, in order."""
        path = f"/api/v2/tasks/{task_id}/trace"
        spans: Any = []
        while True:
            page = self._transport.call("GET", path, query={"limit": PAGE, "offset": len(spans)})
            spans += page["spans"]
            if len(spans) >= page["total"] or not page["spans"]:
                return spans

    def feedback(
        self,
        task_id: int,
        *,
        score: float | None = None,
        thumb: Literal["up", "down"] | None = None,
        comment: str | None = None,
    ) -> None:
        """Say what you think of a result (`score` from 0 to 1); agents learn from it."""
        body = given(score=score, thumb=thumb, comment=comment)
        self._transport.call("POST", f"/api/v2/tasks/{task_id}/feedback", json=body)

    def events(self, *, last_seq: int | None = None, agent: str | None = None) -> Iterator[dict[str, Any]]:
        """What happens to your tasks, as it happens; an interrupted connection goes on without a gap.

        Args:
            last_seq: Begin after this event; by default with what happens from now on.
            agent: Only this agent's.
        """
        while True:
            try:
                with self._transport.stream(
                    "/api/v2/events", query={"last_seq": last_seq, "agent": agent}, timeout_s=60.0
                ) as stream:
                    if stream.status_code != 200:
                        stream.read()
                        self._transport.raise_for(stream)
                    for line in stream.iter_lines():
                        if last_seq is None and (begins := _BEGINS.match(line)):
                            last_seq = int(begins[1])  # so that a cut before the first event loses none either
                        elif line.startswith("data:"):
                            event = json.loads(line[5:])
                            last_seq = event["seq"]
                            yield event
            except httpx.TransportError as error:
                log.debug("the stream of events broke and is taken up again: %r", error)
            time.sleep(_LOOK_S)  # a platform that restarts, or ends streams at once, is not asked without a pause


class Experiments(Resource):
    """Agents that improve; they need `rl:...`."""

    def __iter__(self) -> Iterator[Experiment]:
        return self.list()

    def list(self, *, status: str | None = None, agent: str | None = None) -> Iterator[Experiment]:
        """Experiments, newest first."""
        return self.pages("/api/v2/rl/experiments", "experiments", Experiment, "before", status=status, agent=agent)

    def create(
        self, name: str, agent: int | str, *, algorithm: str = "auto", config: Mapping[str, Any] | None = None
    ) -> Experiment:
        """Begin one for an agent, by number or name; it runs as soon as a worker is free."""
        body = {"name": name, "agent_id": agent, "algorithm": algorithm, "config": dict(config or {})}
        return Experiment.model_validate(self._transport.call("POST", "/api/v2/rl/experiments", json=body))

    def get(self, number: int) -> Experiment:
        """How far it is, and what came out."""
        return Experiment.model_validate(self._transport.call("GET", f"/api/v2/rl/experiments/{number}"))

    def wait(self, number: int, *, timeout_s: float = 3600.0) -> Experiment:
        """The experiment when it has ended, well or not.

        Raises:
            TimedOutError: It has not; it goes on.
        """
        return self.until(lambda: self.get(number), lambda found: found.is_over, f"Experiment {number}", timeout_s)

    def stop(self, number: int) -> Experiment:
        """End it."""
        return Experiment.model_validate(self._transport.call("POST", f"/api/v2/rl/experiments/{number}/stop"))

    def apply(self, number: int, *, force: bool = False) -> int:
        """Make what came out, a prompt or a trained model, the agent's next version; returns that version."""
        answer = self._transport.call("POST", f"/api/v2/rl/experiments/{number}/apply", json={"force": force})
        return int(answer["version"])

    def roll_back(self, number: int) -> int:
        """Undo `apply`; returns the agent's version, which is what it was before."""
        return int(self._transport.call("POST", f"/api/v2/rl/experiments/{number}/rollback")["version"])

    def auto_trigger(
        self,
        agent: int | str | None = None,
        *,
        task_type: str | None = None,
        force: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> Sequence[Decision]:
        """Look whether agents should learn, and begin experiments for those that should.

        Args:
            agent: Which one; without it all of them.
            task_type: Decide by this line of the decision matrix; without an agent, for all of that kind of task.
            force: Begin one for that agent whatever was measured.
            config: Of the experiments.
        """
        settings = None if config is None else dict(config)
        body = given(agent_id=agent, task_type=task_type, force=force or None, config=settings)
        found = self._transport.call("POST", "/api/v2/rl/auto-trigger", json=body)
        return [Decision.model_validate(each) for each in found["decisions"]]

    def auto_status(self) -> AutoStatus:
        """What runs and waits, and for each active agent whether it should learn and why."""
        return AutoStatus.model_validate(self._transport.call("GET", "/api/v2/rl/auto-status"))


__all__ = ["Experiments", "Resource", "Tasks", "TimedOutError", "given"]
