"""What an optimisation achieved, honestly: against the starting prompt, on the same examples, with an interval."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.kit.files import write_atomic
from agentlightning.schemas import PromptTemplate

FILE = "best_prompts.json"


@dataclass
class Comparison:
    """Starting prompt and best prompt on the same examples."""

    data: str
    """Name of the data set."""
    held_out: bool
    """Whether nothing was chosen on it; on the validation set a gain is too good on average."""
    n: int
    """Examples on which both have a reward."""
    before: float
    after: float
    gain: tuple[float, float, float]
    """Mean difference with the bounds of its 95 % interval, by pairs."""

    @property
    def is_shown(self) -> bool:
        """Whether the interval lies above zero."""
        return self.gain[1] > 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**self.__dict__, "gain": list(self.gain), "is_shown": self.is_shown}


@dataclass
class OptimizationResult:
    """The best prompts and how much better they are."""

    run_id: str
    directory: Path
    optimizer: str
    best: Candidate
    start: Candidate
    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    """Those on held-out data first."""
    rounds: int = 0
    candidates: int = 1
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    """Proposals that never ran, by reason."""
    stopped_because: str = ""
    why: str = ""
    """Why this optimizer, when it was chosen for the user."""
    spent: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def best_prompts(self) -> dict[str, PromptTemplate]:
        """By resource name."""
        return dict(self.best.prompts)

    @property
    def best_prompt(self) -> PromptTemplate:
        """The only one, or the first by name."""
        return next(iter(self.best.prompts.values()))

    @property
    def gain(self) -> tuple[float, float, float] | None:
        """Mean gain and the bounds of its interval, on held-out data if there is any."""
        return self.comparisons[0].gain if self.comparisons else None

    @property
    def is_improved(self) -> bool:
        """Whether held-out data show that the best prompt is better."""
        return any(c.held_out and c.is_shown for c in self.comparisons)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "run_id": self.run_id,
            "optimizer": self.optimizer,
            "why": self.why,
            "is_improved": self.is_improved,
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "best": {"id": self.best.id, "prompts": prompts_of(self.best)},
            "start": {"id": self.start.id, "prompts": prompts_of(self.start)},
            "rounds": self.rounds,
            "candidates": self.candidates,
            "dropped": self.dropped,
            "stopped_because": self.stopped_because,
            "spent": self.spent,
        }


def prompts_of(candidate: Candidate) -> dict[str, dict[str, str]]:
    """Template and engine by name."""
    return {name: {"template": p.template, "engine": p.engine} for name, p in candidate.prompts.items()}


def write_result(directory: Path, content: dict[str, Any]) -> Path:
    """Write the result file; the best so far is in it from the first score on."""
    path = directory / FILE
    write_atomic(path, orjson.dumps(content, option=orjson.OPT_INDENT_2, default=str))
    return path


def read_prompts(path: Path) -> dict[str, PromptTemplate]:
    """The best prompts of a result file, to give to agents or to the next run."""
    content = orjson.loads(path.read_bytes())
    return {name: PromptTemplate(**prompt) for name, prompt in content["best"]["prompts"].items()}
