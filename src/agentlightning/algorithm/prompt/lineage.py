"""Where each candidate came from: parents, critique, edit, scores and cost, written while the tree grows.

A file of JSON lines in the run's folder. Knows no search and draws nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentlightning.algorithm.prompt.budget import Purse, Spend
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.journal import Journal
from agentlightning.algorithm.prompt.scoring import Score

FILE = "lineage.jsonl"


class Lineage:
    """Writes the tree. What a continued run repeats is not written twice."""

    def __init__(self, directory: Path) -> None:
        self._journal = Journal(directory / FILE)
        self._written = {_key(record) for record in self._journal.records}
        self._drops: Counter[tuple[Any, ...]] = Counter()

    @property
    def spent_s(self) -> float:
        """Seconds that earlier processes of this run have used."""
        return max((record.get("wall_s", 0.0) for record in self._journal.records), default=0.0)

    def began(self, **facts: Any) -> None:
        """The run: optimizer, settings, sizes of the data sets."""
        self._write({"type": "run", **facts})

    def chose(self, why: str) -> None:
        """The optimizer that was picked, and why."""
        self._write({"type": "choice", "why": why})

    def born(
        self,
        candidate: Candidate,
        *,
        parents: list[str],
        round_number: int,
        origin: str,
        critique: str = "",
        note: str = "",
        cost: Spend | None = None,
    ) -> None:
        """A candidate that may run."""
        self._write(
            {
                "type": "candidate",
                "id": candidate.id,
                "parents": parents,
                "round": round_number,
                "origin": origin,
                "prompts": candidate.texts,
                "critique": critique,
                "note": note,
                "cost": asdict(cost) if cost else None,
            }
        )

    def dropped(self, *, parents: list[str], round_number: int, reason: str, text: str, critique: str = "") -> None:
        """A proposal that never ran."""
        record = {
            "type": "dropped",
            "parents": parents,
            "round": round_number,
            "reason": reason,
            "text": text[:4000],
            "critique": critique,
        }
        self._drops[_key(record)] += 1
        self._write({**record, "time": self._drops[_key(record)]})

    def scored(self, candidate: Candidate, split: str, score: Score, *, round_number: int) -> None:
        """A candidate's score on a part of the data."""
        self._write(
            {"type": "score", "id": candidate.id, "split": split, "round": round_number, **score.as_dict()},
        )

    def round_ended(self, round_number: int, best: Candidate, score: Score, beam: list[str], purse: Purse) -> None:
        """The state after a round."""
        self._write(
            {
                "type": "round",
                "round": round_number,
                "best": best.id,
                "beam": beam,
                **score.as_dict(),
                **{f"spent_{name}": value for name, value in asdict(purse.spent).items()},
                "wall_s": purse.wall_s,
            }
        )

    def ended(self, **facts: Any) -> None:
        """The result."""
        self._write({"type": "result", **facts})

    def _write(self, record: dict[str, Any]) -> None:
        key = _key(record)
        if key not in self._written:
            self._written.add(key)
            self._journal.append(record)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    match record["type"]:
        case "candidate":
            return ("candidate", record["id"])
        case "score":
            return ("score", record["id"], record["split"], record["n"] + record["missing"])
        case "round":
            return ("round", record["round"])
        case "dropped":
            return (
                "dropped",
                record["round"],
                *record["parents"],
                record["reason"],
                record["text"],
                record.get("time"),
            )
        case "run":
            return ("run",)
        case other:
            return (other, repr(sorted(record.items(), key=lambda item: item[0])))


@dataclass
class Node:
    """One candidate of a tree that was read."""

    id: str
    parents: list[str]
    round: int
    origin: str
    prompts: dict[str, str]
    critique: str = ""
    note: str = ""
    cost: dict[str, Any] | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """By part of the data, the one on the most examples."""
    children: list[str] = field(default_factory=list[str])


@dataclass
class Tree:
    """A lineage file, read."""

    run: dict[str, Any] = field(default_factory=dict[str, Any])
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    rounds: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    dropped: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    result: dict[str, Any] | None = None

    @property
    def roots(self) -> list[Node]:
        """Candidates without parents."""
        return [node for node in self.nodes.values() if not any(p in self.nodes for p in node.parents)]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "nodes": {name: asdict(node) for name, node in self.nodes.items()}}


def read_tree(directory: Path) -> Tree | None:
    """The tree of a run's folder; `None` when the run made none."""
    if not (directory / FILE).exists():
        return None
    tree = Tree()
    for record in Journal(directory / FILE).records:
        _add(tree, record.pop("type"), record)
    return tree


def _add(tree: Tree, kind: str, record: dict[str, Any]) -> None:
    match kind:
        case "run":
            tree.run = record
        case "choice":
            tree.run["why"] = record["why"]
        case "candidate":
            tree.nodes[record["id"]] = Node(**record)
            if record["parents"] and record["parents"][0] in tree.nodes:
                tree.nodes[record["parents"][0]].children.append(record["id"])
        case "score" if record["id"] in tree.nodes:
            scores = tree.nodes[record.pop("id")].scores
            split = record.pop("split")
            if split not in scores or record["n"] >= scores[split]["n"]:
                scores[split] = record
        case "round":
            tree.rounds.append(record)
        case "dropped":
            tree.dropped.append(record)
        case "result":
            tree.result = record
        case _:
            pass  # written by a later version
