"""The best-rated interactions as examples, and an open model fine-tuned on them. Knows no command line."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from agentlightning.algorithm.judged.conversation import turns_of
from agentlightning.config import Settings
from agentlightning.integrations.tongyi.agent import filled
from agentlightning.integrations.tongyi.optimized_agent import OptimizedAgent
from agentlightning.integrations.tongyi.prompts import RESEARCH
from agentlightning.integrations.tongyi.records import Interaction
from agentlightning.kit.files import write_atomic
from agentlightning.store import SqlLightningStore

SFT_FILE = "sft.jsonl"
_ONE_IN = 5
_RUNS_PER_TASK = 4
"""Before and after, sampled and greedy."""


def best_rated(history: Sequence[Interaction]) -> list[Interaction]:
    """The better half of the answered queries, the best answer of each."""
    rated: dict[str, tuple[float, Interaction]] = {}
    for entry in history:
        if entry.reward is not None and entry.claude_success:
            old = rated.get(entry.query)
            if old is None or entry.reward > old[0]:
                rated[entry.query] = (entry.reward, entry)
    order = sorted(rated.values(), key=lambda pair: -pair[0])
    return [entry for _, entry in order[: math.ceil(len(order) / 2)]]


def write_examples(agent: OptimizedAgent, chosen: Sequence[Interaction]) -> Path:
    """Write the final answers as conversations, one a line, into the folder of the training data."""
    path = agent.data.folder / SFT_FILE
    write_atomic(path, b"".join(orjson.dumps(_example(agent, entry)) + b"\n" for entry in chosen))
    return path


async def examples_of(
    agent: OptimizedAgent, chosen: Sequence[Interaction]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to learn from, and rows of other queries to measure on.

    Every model call of an interaction is a row where the store has its trace, so that planning, using tools and
    verifying are learned, too; of others the answer is.
    """
    named = [entry.rollout_id for entry in chosen if entry.rollout_id is not None]
    store = SqlLightningStore(Settings().store_location)
    try:
        spans = await store.query_many_spans(named) if named else {}
    finally:
        await store.close()
    apart = _held_out([entry.query for entry in chosen])
    learn: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for entry in chosen:
        turns = turns_of(spans.get(entry.rollout_id or "", []))
        rows = [{"prompt": turn.prompt, "completion": turn.completion, "tools": turn.tools} for turn in turns]
        side = held_out if entry.query in apart else learn
        side += rows or [{"messages": _example(agent, entry)["messages"]}]
    return learn, held_out


def tasks_beside(
    history: Sequence[Interaction], chosen: Sequence[Interaction], iterations: int
) -> list[dict[str, str]]:
    """Queries that are not learned, as many as may be run before and after."""
    learned = {entry.query for entry in chosen}
    others = dict.fromkeys(entry.query for entry in history if entry.query not in learned)
    return [{"query": query} for query in others][: iterations // _RUNS_PER_TASK]


def _held_out(queries: Sequence[str]) -> set[str]:
    """A fifth of them; the same ones always."""
    order = sorted(set(queries), key=lambda query: hashlib.sha256(query.encode()).digest())
    return set(order[: len(order) // _ONE_IN])


def _example(agent: OptimizedAgent, entry: Interaction) -> dict[str, Any]:
    prompt = agent.book.prompts(entry.prompt_version)[RESEARCH]
    system = filled(prompt, RESEARCH, plan="1. Search, read, answer.", tools=", ".join(agent.toolset.names))
    return {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": entry.query},
            {"role": "assistant", "content": entry.response},
        ],
        "reward": entry.reward,
        "rollout_id": entry.rollout_id,
        "written_at": time.time(),
    }
