"""What proposers are shown and what their answers mean."""

from __future__ import annotations

import pytest

from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.critique import (
    Run,
    critique_question,
    edit_question,
    merge_question,
    read_edit,
    rewrite_question,
    show_runs,
)
from agentlightning.schemas import PromptTemplate


def candidate(**texts: str) -> Candidate:
    return Candidate({name: PromptTemplate(template=text) for name, text in texts.items()})


ONE = candidate(p="Answer {q}")
TWO = candidate(a="A {q}", b="B")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('Sure.\n<prompt name="p">\nBetter {q}\n</prompt>\nDone.', {"p": "Better {q}"}),
        ("<prompt>Better {q}</prompt>", {"p": "Better {q}"}),
        ('<PROMPT name="other">Better</PROMPT>', {"p": "Better"}),
        ("```text\nBetter {q}\n```", {"p": "Better {q}"}),
        ("Better {q}", {"p": "Better {q}"}),
        ("I cannot do that.", None),
        ('<prompt name="p">\nnever closed {q}', None),
        ('<prompt name="p">\n\n</prompt>', None),
        ("", None),
    ],
)
def test_answers_of_one_prompt(answer: str, found: dict[str, str] | None) -> None:
    assert read_edit(answer, ONE) == found


def test_answers_of_several_prompts() -> None:
    assert read_edit('<prompt name="a">X {q}</prompt><prompt name="zz">Y</prompt>', TWO) == {"a": "X {q}"}
    assert read_edit("X {q}", TWO) is None
    assert read_edit("anything", candidate(p="no placeholders")) is None


def test_a_question_shows_prompts_placeholders_runs_and_rules() -> None:
    call = {"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]}
    following = {"messages": [*call["messages"], {"role": "tool", "content": [{"x": 1}]}]}
    tool = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    runs = [
        Run({"q": "one"}, 0.0, [call, following, {"messages": [tool]}]),
        Run("two", None, [], {"message": "it broke"}),
    ]
    text = critique_question(TWO, runs)[1]["content"]
    for part in ('<prompt name="a">\nA {q}', "Placeholders of a: {q}", "Placeholders of b: none", 'reward="0"'):
        assert part in text
    assert text.count("user: q1") == 1
    assert "it broke" in text
    assert 'reward="none"' in text
    assert '"name": "f"' in text
    assert "Keep every placeholder" in edit_question(TWO, "do better", 1)[1]["content"]
    assert edit_question(TWO, "c", 0) != edit_question(TWO, "c", 1)
    assert "Keep every placeholder" in rewrite_question(TWO, runs, 0)[1]["content"]
    assert merge_question(TWO, ["c1", "c2"])[1]["content"].count("<critique>") == 2


def test_long_runs_are_shortened() -> None:
    shown = show_runs([Run("x" * 100_000, 0.5, [{"messages": [{"role": "user", "content": "y" * 9000}]}])])
    assert len(shown) < 8000
    assert "characters left out" in shown
