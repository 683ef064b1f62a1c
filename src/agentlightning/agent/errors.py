"""Errors an agent author can meet, each with the next step."""

from __future__ import annotations

from agentlightning.kit.errors import AgentLightningError, BadInputError


class BadResultError(AgentLightningError, TypeError, ValueError):
    """What an agent returned, or a reward that was emitted, cannot be used."""

    code = "BAD_RESULT"
    status = 422


class MissingResourceError(BadInputError):
    """The agent asks by argument name for a resource that the rollout does not carry."""

    code = "RESOURCE_MISSING"


class AgentSignatureError(BadInputError):
    """The arguments of an agent or evaluator cannot be filled from the task and the resources."""

    code = "AGENT_SIGNATURE"


class AgentLoadError(BadInputError):
    """The agent cannot be found or imported."""

    code = "AGENT_NOT_LOADED"


class NoActiveTracerError(AgentLightningError, RuntimeError):
    """Something was emitted outside of a rollout, where nobody listens."""

    code = "NO_ACTIVE_TRACER"
