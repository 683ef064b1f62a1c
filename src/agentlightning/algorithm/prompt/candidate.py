"""A candidate: the texts of all prompts of an agent at once, under an id made from their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from agentlightning.algorithm.prompt.placeholders import fault_of, placeholders, repaired
from agentlightning.kit.errors import BadInputError, ConfigError
from agentlightning.schemas import NamedResources, PromptTemplate

_ID_LENGTH = 12


def content_id(value: Any, length: int = _ID_LENGTH) -> str:
    """A short hash of anything JSON-able; the same content has the same id in every process."""
    packed = orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
    return hashlib.sha256(packed).hexdigest()[:length]


@dataclass(frozen=True)
class Candidate:
    """Prompts by resource name."""

    prompts: Mapping[str, PromptTemplate]
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", dict(sorted(self.prompts.items())))
        object.__setattr__(self, "id", content_id({n: [p.engine, p.template] for n, p in self.prompts.items()}))

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and other.id == self.id

    @classmethod
    def of_resources(cls, resources: NamedResources | None) -> Candidate:
        """All prompt templates among the resources.

        Raises:
            ConfigError: There is none.
            BadInputError: One is malformed.
        """
        prompts = {name: r for name, r in (resources or {}).items() if isinstance(r, PromptTemplate)}
        if not prompts:
            raise ConfigError(
                "There is no PromptTemplate to optimise among the initial resources.",
                hint='Give one, e.g. Trainer(initial_resources={"prompt_template": agl.PromptTemplate(template=...)}).',
            )
        for name, prompt in prompts.items():
            try:
                placeholders(prompt.template, prompt.engine)
            except BadInputError as error:
                raise BadInputError(f"The prompt {name!r}: {error.message}", hint=error.hint) from error
        return cls(prompts)

    @property
    def texts(self) -> dict[str, str]:
        """The bare texts by name."""
        return {name: prompt.template for name, prompt in self.prompts.items()}

    @property
    def length(self) -> int:
        """Characters in all; between equals the shorter one is better."""
        return sum(map(len, self.texts.values()))

    def placeholders(self, name: str) -> tuple[str, ...]:
        """Placeholders of one prompt."""
        prompt = self.prompts[name]
        return placeholders(prompt.template, prompt.engine)

    def changed(self, texts: Mapping[str, str]) -> Candidate:
        """This one with other texts; names it does not have are ignored."""
        prompts = {
            name: PromptTemplate(template=texts.get(name, prompt.template), engine=prompt.engine)
            for name, prompt in self.prompts.items()
        }
        return Candidate(prompts)

    def edited(self, texts: Mapping[str, str]) -> tuple[Candidate | None, str]:
        """As `changed`, but only with exactly this one's placeholders.

        Returns:
            The candidate and what was repaired in it, or `None` and why it was dropped.
        """
        fixed: dict[str, str] = {}
        notes: list[str] = []
        for name, text in texts.items():
            if name not in self.prompts:
                continue
            engine, expected = self.prompts[name].engine, self.placeholders(name)
            fault = fault_of(text, engine, expected)
            if fault is not None:
                better = repaired(text, engine, expected)
                if better is None:
                    return None, f"{name}: {fault}"
                notes.append(f"{name}: {fault}")
                text = better
            fixed[name] = text
        candidate = self.changed(fixed)
        if candidate == self:
            return None, "unchanged"
        return candidate, "; ".join(notes)
