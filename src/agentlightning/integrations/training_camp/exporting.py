"""Better agent definitions written back: the export as it came, with a new version of each agent that changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from agentlightning.integrations.training_camp.reading import Camp, read_export
from agentlightning.integrations.training_camp.schema import CampAgent
from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.kit.files import write_atomic

SYSTEM_PROMPT = "system_prompt"
"""Name of the prompt that is not under `prompts`."""


@dataclass(frozen=True)
class Improvement:
    """New prompts of one agent, and what is known of them."""

    agent_id: str
    prompts: Mapping[str, str]
    """By name; `system_prompt` is the system prompt."""
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Held-out scores before and after, n, interval, run; written beside the definition."""


def improved(camp: Camp, improvements: list[Improvement]) -> dict[str, Any]:
    """The export with a new version of each improved agent and an `agent.evolved` event for it. JSON-able.

    Everything that came in goes out again, events of unknown types and unknown keys included.

    Raises:
        NotFoundError: There is no such agent, or it has no prompt of that name.
        BadInputError: A prompt is empty or as it was.
    """
    content: dict[str, Any] = camp.source.model_dump(mode="json", by_alias=True, exclude_unset=True)
    now = datetime.now(UTC).isoformat()
    content["exportedAt"] = now
    for improvement in improvements:
        old = _known(camp, improvement.agent_id)
        new = _next_version(old, improvement)
        content["agents"].append(new.model_dump(mode="json", by_alias=True))
        content.setdefault("events", []).append(
            {
                "id": f"evolved-{old.id}-{new.version}",
                "eventType": "agent.evolved",
                "createdAt": now,
                "payload": {
                    "agentId": old.id,
                    "fromVersion": old.version,
                    "toVersion": new.version,
                    "prompts": sorted(improvement.prompts),
                    "evidence": dict(improvement.evidence),
                },
            }
        )
    read_export(content, name="what would be written")  # what goes out must come in again
    return content


def write_export(content: Mapping[str, Any], path: Path) -> None:
    """Write it, whole or not at all.

    Raises:
        StorageError: The file cannot be written.
    """
    write_atomic(path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def prompts_of(agent: CampAgent) -> dict[str, str]:
    """All prompts of an agent by name."""
    return {SYSTEM_PROMPT: agent.system_prompt, **agent.prompts}


def _known(camp: Camp, agent_id: str) -> CampAgent:
    if agent_id not in camp.agent_ids:
        raise NotFoundError(f"The export has no agent {agent_id!r}.", hint=f"It has: {', '.join(camp.agent_ids)}.")
    return camp.latest(agent_id)


def _next_version(old: CampAgent, improvement: Improvement) -> CampAgent:
    known = prompts_of(old)
    for name, text in improvement.prompts.items():
        if name not in known:
            raise NotFoundError(f"Agent {old.id!r} has no prompt {name!r}.", hint=f"It has: {', '.join(known)}.")
        if not text.strip():
            raise BadInputError(f"The new prompt {name!r} of agent {old.id!r} is empty.")
    merged = {**known, **improvement.prompts}
    if merged == known:
        raise BadInputError(f"The new prompts of agent {old.id!r} are those it has.", hint="There is nothing to write.")
    return old.model_copy(
        update={
            "version": old.version + 1,
            "parent_version": old.version,
            "system_prompt": merged.pop(SYSTEM_PROMPT),
            "prompts": merged,
        }
    )
