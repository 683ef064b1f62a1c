"""The lineages of a session beside each other: what each made in each cycle, and what people said of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agentlightning.kit.errors import NotFoundError
from agentlightning.schemas import Feedback, Lineage, Preference
from agentlightning.store import LightningStore


@dataclass(frozen=True)
class Cell:
    """One lineage in one cycle."""

    cycle: int
    rollout_id: str
    score: float | None
    """Mean of each author's latest scores, 0 to 10; `None` when nobody gave one."""
    judgements: int
    wins: int
    """How many of the session's other rollouts it was preferred to."""
    losses: int


@dataclass(frozen=True)
class Row:
    """One lineage."""

    lineage: Lineage
    cells: tuple[Cell, ...]
    """Oldest first; in a cycle in which it was locked it has none."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.lineage.name or self.lineage.lineage_id

    @property
    def latest_score(self) -> float | None:
        """Of its newest scored cycle."""
        return next((cell.score for cell in reversed(self.cells) if cell.score is not None), None)

    @property
    def gain(self) -> float | None:
        """Newest score less the first; `None` with fewer than two."""
        scores = [cell.score for cell in self.cells if cell.score is not None]
        return scores[-1] - scores[0] if len(scores) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "lineage_id": self.lineage.lineage_id,
            "name": self.name,
            "locked": self.lineage.locked,
            "latest_score": self.latest_score,
            "gain": self.gain,
            "cells": [asdict(cell) for cell in self.cells],
        }


async def side_by_side(store: LightningStore, session_id: str) -> list[Row]:
    """The lineages of a session, in their order.

    Raises:
        NotFoundError: There is no such session.
    """
    session = await store.get_lineage_session(session_id)
    if session is None:
        known = await store.query_lineage_sessions(sort_by="create_time", sort_order="desc", limit=5)
        names = ", ".join(found.session_id for found in known)
        raise NotFoundError(
            f"There is no session {session_id!r}.",
            hint=f"The newest are: {names}" if names else "There are none yet; see agl import training-camp.",
            details={"session_id": session_id},
        )
    steps = await store.query_lineage_history(session_id, kind="rollout")
    made = [(step.lineage_id, step.cycle, step.rollout_id) for step in steps if step.rollout_id is not None]
    rollout_ids = [rollout_id for _, _, rollout_id in made]
    said = await store.query_feedback(rollout_id_in=rollout_ids) if rollout_ids else []
    preferences = await store.query_preferences(session_id=session_id)
    cells = _cells(made, said, preferences)
    return [
        Row(lineage, tuple(sorted(cells[lineage.lineage_id], key=lambda cell: cell.cycle)))
        for lineage in session.lineages
    ]


def _cells(
    made: Sequence[tuple[str, int, str]], said: Sequence[Feedback], preferences: Sequence[Preference]
) -> dict[str, list[Cell]]:
    scores: dict[str, dict[tuple[Any, Any], float]] = defaultdict(dict)
    judged: dict[str, int] = defaultdict(int)
    for item in said:
        judged[item.rollout_id] += 1
        if item.normalized_score is not None:
            about = (item.author, (item.metadata or {}).get("artifact_id"))
            scores[item.rollout_id][about] = 10 * item.normalized_score  # who scores it again has changed their mind
    wins: dict[str, int] = defaultdict(int)
    losses: dict[str, int] = defaultdict(int)
    for preference in preferences:
        wins[preference.chosen_rollout_id] += 1
        losses[preference.rejected_rollout_id] += 1
    found: dict[str, list[Cell]] = defaultdict(list)
    for lineage_id, cycle, name in made:
        given = list(scores[name].values())
        mean = sum(given) / len(given) if given else None
        found[lineage_id].append(Cell(cycle, name, mean, judged[name], wins[name], losses[name]))
    return found
