"""What a piece of research is: its sources, calls, citations and outcome, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Source:
    """Something that the agent had before its eyes."""

    number: int
    kind: Literal["file", "web", "search", "python"]
    locator: str
    """Path in the workspace, URL, or what was asked."""
    text: str
    """What the model was shown."""
    alias: str = ""
    """The address that was asked for, where it redirected to `locator`."""

    @property
    def marker(self) -> str:
        """As the model cites it."""
        return f"[S{self.number}]"

    @property
    def is_citable(self) -> bool:
        """Whether it was read, and not just listed among the hits of a search."""
        return self.kind in ("file", "web", "python")


@dataclass(frozen=True)
class Call:
    """One use of a tool."""

    tool: str
    arguments: str
    """As JSON, for telling repetitions."""
    is_error: bool
    seconds: float = 0.0


@dataclass
class Research:
    """Everything about one query."""

    query: str
    plan: list[str] = field(default_factory=list[str])
    sources: list[Source] = field(default_factory=list[Source])
    calls: list[Call] = field(default_factory=list[Call])
    answer: str = ""
    """With the list of sources that are cited; empty when there is none."""
    cited: list[Source] = field(default_factory=list[Source])
    flagged: list[str] = field(default_factory=list[str])
    """Citations that were taken out of the answer since nothing of the kind was read."""
    unsupported: list[str] = field(default_factory=list[str])
    """Statements that the verification did not find in the sources."""
    notes: list[str] = field(default_factory=list[str])
    """What went another way than planned, such as a plan that could not be read."""
    model_calls: int = 0
    seconds: float = 0.0
    error: str = ""
    """Why there is no answer."""
    is_outage: bool = False
    """There is no answer because the model server or the program around it failed: this says nothing of the agent."""

    @property
    def is_success(self) -> bool:
        """Whether there is an answer."""
        return bool(self.answer) and not self.error

    @property
    def tools_used(self) -> list[str]:
        """Names of the tools, one for each call."""
        return [call.tool for call in self.calls]

    @property
    def read_locators(self) -> set[str]:
        """What was read: paths and URLs."""
        return {source.locator for source in self.sources if source.kind in ("file", "web")}
