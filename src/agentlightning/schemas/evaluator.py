"""How answers of an agent are checked, as data: what kind of check, and its parameters. Computes nothing."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from agentlightning.schemas.plain import Json, Many

Line = Annotated[str, StringConstraints(min_length=1, max_length=500)]


class EvaluatorData(BaseModel):
    """Base of all evaluators. `threshold` is the least score that counts as right."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    threshold: float = Field(default=1.0, gt=0, le=1)


class ExactEvaluator(EvaluatorData):
    """The answer is `expected` (or one of the texts in it). `take` says which part of the answer counts."""

    kind: Literal["exact"] = "exact"
    take: Literal["all", "last_line", "label"] = "all"
    """`label` is what follows the last `LABEL:` of the answer, with the name in `label`."""
    label: Line = "Answer"
    ignore_case: bool = True


class NumberEvaluator(EvaluatorData):
    """The number after the answer's last `label:` is `expected` within the tolerances."""

    kind: Literal["number"] = "number"
    label: Line = "Answer"
    relative_tolerance: float = Field(default=1e-6, ge=0)
    absolute_tolerance: float = Field(default=1e-9, ge=0)


class SetEvaluator(EvaluatorData):
    """F1 between the answer's items and `expected`, a list of texts.

    Items stand after `label:`, one a line or comma-separated.
    """

    kind: Literal["set"] = "set"
    label: Line = "Answer"


class JsonEvaluator(EvaluatorData):
    """The answer's JSON object: the share of the fields of `expected` that it has right; extra fields cost, too."""

    kind: Literal["json"] = "json"
    number_tolerance: float = Field(default=1e-6, ge=0)
    ignore_case: bool = True
    unordered: bool = True
    """Lists are compared without their order."""


class ChecksEvaluator(EvaluatorData):
    """The share of the case's `checks` that the answer meets."""

    kind: Literal["checks"] = "checks"


class RegexEvaluator(EvaluatorData):
    """The answer is a regular expression (RE2): it has to match all of `expected.match` and none of `expected.reject`.

    The expression is taken from the first code block, else from the last line; it has to match the whole text.
    """

    kind: Literal["regex"] = "regex"


class SqlEvaluator(EvaluatorData):
    """The answer's query is run on a database in memory made by `setup`; its rows have to be those of `expected`.

    `expected` is a query, or the rows themselves. A case with `ordered` set to true compares their order, too.
    """

    kind: Literal["sql"] = "sql"
    setup: Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
    """`CREATE TABLE` and `INSERT` statements of SQLite."""


class PythonEvaluator(EvaluatorData):
    """The answer's Python code block is run in the sandbox, followed by the case's `tests`, which have to pass."""

    kind: Literal["python"] = "python"
    timeout_s: float = Field(default=10.0, gt=0, le=60)


class ToolUsedEvaluator(EvaluatorData):
    """The tools that the agent called have to hold all of `expected`, a list of names, before its answer counts.

    The rest of the case is `checks`, as in the kind of that name.
    """

    kind: Literal["tool_used"] = "tool_used"


class JudgeEvaluator(EvaluatorData):
    """A model reads task, answer and reference and gives 0 to 10 by the rubric; scores are divided by ten."""

    kind: Literal["judge"] = "judge"
    rubric: Annotated[str, StringConstraints(min_length=1, max_length=8_000)]
    threshold: float = Field(default=0.7, gt=0, le=1)


Evaluator = Annotated[
    ExactEvaluator
    | NumberEvaluator
    | SetEvaluator
    | JsonEvaluator
    | ChecksEvaluator
    | RegexEvaluator
    | SqlEvaluator
    | PythonEvaluator
    | ToolUsedEvaluator
    | JudgeEvaluator,
    Field(discriminator="kind"),
]


class Check(BaseModel):
    """One thing that an answer has to have, or must not have. Exactly one of them is given."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    any_of: Many[Line] = ()
    """At least one of these texts stands in the answer, whatever their case."""
    none_of: Many[Line] = ()
    """None of these texts stands in it."""
    pattern: Line | None = None
    """This expression (RE2, `(?i)` for any case) matches somewhere."""
    max_words: int | None = Field(default=None, ge=1)
    min_words: int | None = Field(default=None, ge=1)
    max_line_chars: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            raise ValueError(
                f"a check has exactly one of {', '.join(type(self).model_fields)}; given: {given or 'none'}"
            )
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error
        return self


class EvaluationCase(BaseModel):
    """One task with all that is needed to check an answer to it without a person."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    input: Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
    """The task, as a user would write it."""
    expected: Json = None
    """What is right; its form depends on the evaluator."""
    checks: Many[Check] = ()
    tests: Annotated[str, StringConstraints(max_length=20_000)] = ""
    """Python code with assertions, run after the answer's code."""
    ordered: bool = False
    split: Literal["train", "held_out"] = "train"
    """Held-out cases are never learnt from."""
    reference: Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
    """A right answer in full."""
    wrong: Annotated[str, StringConstraints(max_length=20_000)] = ""
    """An answer that looks right and is not: the evaluator has to refuse it."""


def problem_with(evaluator: Any, case: EvaluationCase) -> str | None:
    """What a case lacks that its evaluator needs; `None` if it can be checked."""
    needs = _NEEDS.get(evaluator.kind)
    return None if needs is None else needs(case)


def _text(case: EvaluationCase) -> str | None:
    ok = isinstance(case.expected, str) or _is_texts(case.expected)
    return None if ok else "expected has to be a text, or a list of texts of which one is right"


def _number(case: EvaluationCase) -> str | None:
    ok = isinstance(case.expected, int | float) and not isinstance(case.expected, bool)
    return None if ok else "expected has to be a number"


def _texts(case: EvaluationCase) -> str | None:
    return None if _is_texts(case.expected) else "expected has to be a list of texts"


def _object(case: EvaluationCase) -> str | None:
    return None if isinstance(case.expected, dict) and case.expected else "expected has to be an object with fields"


def _checks(case: EvaluationCase) -> str | None:
    return None if case.checks else "checks are missing"


def _examples(case: EvaluationCase) -> str | None:
    found = case.expected
    if isinstance(found, dict) and set(found) == {"match", "reject"} and all(map(_is_texts, found.values())):
        return None
    return "expected has to be {match = [texts], reject = [texts]}"


def _rows(case: EvaluationCase) -> str | None:
    ok = isinstance(case.expected, str) or (
        isinstance(case.expected, list) and all(isinstance(row, list) for row in case.expected)
    )
    return None if ok else "expected has to be a query, or a list of rows"


def _tests(case: EvaluationCase) -> str | None:
    return None if "assert" in case.tests else "tests have to hold at least one assertion"


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


_NEEDS = {
    "exact": _text,
    "number": _number,
    "set": _texts,
    "json": _object,
    "checks": _checks,
    "regex": _examples,
    "sql": _rows,
    "python": _tests,
    "tool_used": _texts,
}
