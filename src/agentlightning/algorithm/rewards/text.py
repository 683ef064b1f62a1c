"""Rewards that compare texts: exact match, token F1, regular expressions, JSON schemas."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from agentlightning.algorithm.rewards.base import Reward, output_text, reference_of
from agentlightning.kit.errors import ConfigError, MissingExtraError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FENCE = re.compile(r"```(?:\w+)?\s*\n(.*?)```", re.DOTALL)


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces (Rajpurkar et al. 2016, SQuAD)."""
    bare = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(bare.split())


class ExactMatch(Reward):
    """1 when the output is the reference answer (one of them, if it is a list), else 0; `None` without a reference.

    Args:
        key: Where tasks have the reference; by default the usual names (`expected`, `answer`, …).
        normalize: Ignore case, punctuation, articles and spaces.
    """

    name = "exact"

    def __init__(self, key: str | None = None, *, normalize: bool = True) -> None:
        self.key = key
        self.normalize = normalize

    def score(self, task: Any, output: Any) -> float | None:
        """See the class."""
        references = _references(task, self.key)
        if not references:
            return None
        found = self._shape(output_text(output) or "")
        return float(any(found == self._shape(reference) for reference in references))

    def _shape(self, text: str) -> str:
        # A reference of nothing but punctuation would otherwise match anything of that kind.
        return (normalized(text) if self.normalize else "") or text.strip()


class F1(Reward):
    """Harmonic mean of precision and recall over words, the best over the references (Rajpurkar et al. 2016)."""

    name = "f1"

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def score(self, task: Any, output: Any) -> float | None:
        """From 0 to 1; `None` without a reference."""
        references = _references(task, self.key)
        if not references:
            return None
        return max(_f1(normalized(output_text(output) or "").split(), normalized(r).split()) for r in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def _references(task: Any, key: str | None) -> list[str]:
    reference = reference_of(task, key)
    if reference is None:
        return []
    several = reference if isinstance(reference, list | tuple) else [reference]
    return [str(value) for value in several]


class Regex(Reward):
    """1 when the output matches a pattern; with a group, when the group is the reference answer.

    Args:
        pattern: Regular expression, searched for anywhere; `.` also matches line ends.
        group: Group to compare with the reference; `None` only looks whether the pattern is there.
        key: Where tasks have the reference.

    Raises:
        ConfigError: The pattern is none.
    """

    name = "regex"

    def __init__(self, pattern: str, *, group: int | str | None = None, key: str | None = None) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(f"{pattern!r} is no regular expression: {error}.") from error
        self.group = group
        self.exact = ExactMatch(key)

    def score(self, task: Any, output: Any) -> float | None:
        """See the class."""
        found = self.pattern.search(output_text(output) or "")
        if self.group is None:
            return float(found is not None)
        if not _references(task, self.exact.key):
            return None
        return self.exact.score(task, found[self.group]) if found else 0.0


class JsonSchema(Reward):
    """1 when the output is JSON that fits a schema; partial credit for JSON that does not.

    Args:
        schema: The schema; by default the task's entry `schema`.
        partial: What JSON is worth that does not fit.

    Raises:
        MissingExtraError: The package jsonschema is not installed.
    """

    name = "json"

    def __init__(self, schema: Mapping[str, Any] | None = None, *, partial: float = 0.0) -> None:
        self.schema = schema
        self.partial = partial

    def score(self, task: Any, output: Any) -> float | None:
        """`None` when there is no schema."""
        try:
            from jsonschema import Draft202012Validator
        except ImportError as error:
            raise MissingExtraError(
                "JSON schemas need jsonschema.", hint="pip install 'agentlightning[prompts]'"
            ) from error
        schema = self.schema if self.schema is not None else task.get("schema") if isinstance(task, Mapping) else None
        if schema is None:
            return None
        try:
            value = _json_of(output)
        except ValueError:
            return 0.0
        return 1.0 if Draft202012Validator(schema).is_valid(value) else self.partial


def _json_of(output: Any) -> Any:
    if not isinstance(output, str):
        return output
    fenced = _FENCE.search(output)
    return json.loads(fenced[1] if fenced else output)


def code_of(output: Any) -> str:
    """The code in an output: its first fenced block, else all of it."""
    text = output_text(output) or ""
    fenced = _FENCE.search(text)
    return (fenced[1] if fenced else text).strip()
