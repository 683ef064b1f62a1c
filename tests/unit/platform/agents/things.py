"""Definitions that the tests of agents share."""

from typing import Any

from agentlightning.schemas.agent import AgentDefinition

CASE = {"input": "1 + 1?", "expected": "2", "reference": "2", "wrong": "3"}


def plain(name: str = "sum_agent", **changes: Any) -> dict[str, Any]:
    """A small valid definition."""
    return {
        "name": name,
        "type": "math",
        "description": "Adds.",
        "role": "adder",
        "system_prompt": "You add. Answer with the number only.",
        "capabilities": [f"{name}_adding", "arithmetic"],
        "evaluator": {"kind": "exact"},
        "evaluation": [CASE],
        **changes,
    }


def definition(name: str = "sum_agent", **changes: Any) -> AgentDefinition:
    return AgentDefinition.model_validate(plain(name, **changes))
