"""Agents and how well they do, as typed calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from agentlightning.client.models import Agent, FullAgent
from agentlightning.client.reports import (
    AgentMetrics,
    AgentsStatus,
    AgentVersion,
    Design,
    Evaluation,
    FullAgentVersion,
)
from agentlightning.client.resources import Resource, given
from agentlightning.client.transport import part


class Agents(Resource):
    """Agents; changing them needs `agent:write`."""

    def __iter__(self) -> Iterator[Agent]:
        return self.list()

    def list(
        self, *, type: str | None = None, status: str | None = None, capability: str | None = None
    ) -> Iterator[Agent]:
        """Agents by number."""
        return self.pages("/api/v2/agents", "agents", Agent, "after", type=type, status=status, capability=capability)

    def get(self, agent: int | str) -> FullAgent:
        """One agent, by number or name, with its definition."""
        return FullAgent.model_validate(self._transport.call("GET", f"/api/v2/agents/{part(agent)}"))

    def create(self, definition: Mapping[str, Any]) -> FullAgent:
        """A new agent."""
        body = {"definition": dict(definition)}
        return FullAgent.model_validate(self._transport.call("POST", "/api/v2/agents", json=body))

    def update(self, agent: int | str, *, version: int, **changes: Any) -> FullAgent:
        """Change fields of an agent's definition.

        Args:
            agent: Number or name.
            version: The one that was read; if there is a newer one, nothing is changed.
            changes: Fields of the definition, e.g. `system_prompt=...`.

        Raises:
            ConflictError: Somebody else changed it meanwhile; `details["current"]` is what it is now.
        """
        body = {"changes": changes, "version": version}
        return FullAgent.model_validate(self._transport.call("PUT", f"/api/v2/agents/{part(agent)}", json=body))

    def pause(self, agent: int | str) -> FullAgent:
        """It gets no tasks until it is restarted."""
        body = {"status": "paused"}
        return FullAgent.model_validate(self._transport.call("PUT", f"/api/v2/agents/{part(agent)}", json=body))

    def restart(self, agent: int | str) -> FullAgent:
        """End what it is doing and let it begin anew; a paused one is active again."""
        return FullAgent.model_validate(self._transport.call("POST", f"/api/v2/agents/{part(agent)}/restart"))

    def roll_back(
        self, agent: int | str, to: int | None = None, *, shipped: bool = False, version: int | None = None
    ) -> FullAgent:
        """Back to an earlier version, which becomes the next one.

        Args:
            agent: Number or name.
            to: That version.
            shipped: Instead, back to what comes with the program.
            version: The one that it has now, as far as you know; if there is a newer one, nothing is changed.

        Raises:
            ConflictError: Somebody else changed it meanwhile.
        """
        body = given(to=to, shipped=shipped or None, version=version)
        return FullAgent.model_validate(self._transport.call("POST", _of(agent, "rollback"), json=body))

    def delete(self, agent: int | str) -> None:
        """Take it out of use; its versions stay."""
        self._transport.call("DELETE", f"/api/v2/agents/{part(agent)}")

    def versions(self, agent: int | str) -> Iterator[AgentVersion]:
        """Its versions, newest first, without definitions."""
        return self.pages(_of(agent, "versions"), "versions", AgentVersion, "before")

    def version(self, agent: int | str, number: int) -> FullAgentVersion:
        """One version, with its definition."""
        return FullAgentVersion.model_validate(self._transport.call("GET", _of(agent, f"versions/{number}")))

    def status(self) -> AgentsStatus:
        """How all agents are: state, restarts, tasks under way."""
        return AgentsStatus.model_validate(self._transport.call("GET", "/api/v2/agents/status"))

    def metrics(self, agent: int | str) -> AgentMetrics:
        """How well one does: its tasks, its evaluations, whether it should learn."""
        return AgentMetrics.model_validate(self._transport.call("GET", _of(agent, "metrics")))

    def evaluate(
        self, agent: int | str, *, split: Literal["train", "held_out", "all"] = "all", limit: int | None = None
    ) -> Evaluation:
        """Begin to run its evaluation set, or the first `limit` cases of a part; it runs on, see `wait_evaluation`.

        Raises:
            ConflictError: One is running.
        """
        body = given(split=split, limit=limit)
        return Evaluation.model_validate(self._transport.call("POST", _of(agent, "evaluate"), json=body))

    def evaluations(self, agent: int | str) -> Iterator[Evaluation]:
        """Its evaluations, newest first, without single results."""
        return self.pages(_of(agent, "evaluations"), "evaluations", Evaluation, "before")

    def evaluation(self, agent: int | str, number: int) -> Evaluation:
        """One evaluation, with the verdict on each case."""
        return Evaluation.model_validate(self._transport.call("GET", _of(agent, f"evaluations/{number}")))

    def wait_evaluation(self, agent: int | str, number: int, *, timeout_s: float = 3600.0) -> Evaluation:
        """The evaluation when it has ended, well or not.

        Raises:
            TimedOutError: It has not; it goes on.
        """
        return self.until(
            lambda: self.evaluation(agent, number), lambda found: found.is_over, f"Evaluation {number}", timeout_s
        )

    def design(
        self,
        description: str,
        *,
        name: str | None = None,
        try_input: str | None = None,
        save: bool = False,
        timeout_s: float = 600.0,
    ) -> Design:
        """Let a model draft an agent from a description; it is validated, repaired, and tried out once.

        Args:
            description: What it shall do.
            name: What it shall be called; else the model chooses.
            try_input: What to try it on; else its own first case.
            save: Keep it, if it is valid.
            timeout_s: Longest wait; a model is asked several times.

        Raises:
            ConflictError: There is an agent of that name.
            BadInputError: None of the drafts was valid (`DESIGN_FAILED`).
            PlatformError: No model is configured (`MODEL_NOT_CONFIGURED`).
        """
        body = given(description=description, name=name, try_input=try_input, save=save or None)
        answer = self._transport.call("POST", "/api/v2/agents/design", json=body, timeout_s=timeout_s)
        return Design.model_validate(answer)


def _of(agent: int | str, what: str) -> str:
    return f"/api/v2/agents/{part(agent)}/{what}"
