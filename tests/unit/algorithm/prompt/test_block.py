"""Examples at the head of prompts, and reference answers as examples."""

from __future__ import annotations

from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithm.prompt.block import bare, left_out, put_back, split
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.critique import Run, show_runs
from agentlightning.algorithm.prompt.demonstrations import Demonstration, reference_text, with_demonstrations


def candidate(template: str, engine: Any = "f-string") -> Candidate:
    return Candidate({"p": agl.PromptTemplate(template=template, engine=engine)})


SHOWN = [Demonstration("1", "a {x}", "b", 1.0), Demonstration("2", "c", "d", None)]


@pytest.mark.parametrize(("template", "engine"), [("Do {task}.", "f-string"), ("Do {{ task }}.", "jinja")])
def test_examples_come_off_and_go_back_on(template: str, engine: Any) -> None:
    plain = candidate(template, engine)
    texts = with_demonstrations(plain, SHOWN)
    full = plain.changed(texts)
    assert full.placeholders("p") == ("task",)
    assert bare(full) == plain
    assert bare(plain) == plain
    assert full.changed(put_back({"p": template}, full)) == full
    assert put_back({"p": f"Better. {template}"}, full)["p"].endswith(f"End of the examples.\n\nBetter. {template}")
    assert put_back(texts, plain)["p"] == template  # a block that an edit brings along is not the parent's
    assert with_demonstrations(full, []) == {"p": template}


def test_a_critic_sees_the_task_and_not_the_examples() -> None:
    told = candidate("Do {task}.").changed(with_demonstrations(candidate("Do {task}."), SHOWN)).prompts["p"]
    message = told.format(task="this")
    assert split(message)[1] == "Do this."
    assert left_out(message) == "(The examples of the prompt stand here.)\nDo this."
    assert left_out("Do this.") == "Do this."
    calls = [{"messages": [{"role": "user", "content": message}, {"role": "assistant", "content": "done"}]}]
    text = show_runs([Run({"task": "this"}, 0.0, calls)])
    assert "Do this." in text
    assert "Input:" not in text


@pytest.mark.parametrize(
    ("task", "template", "found"),
    [
        ({"q": "a", "expected": " b "}, "{q}", "b"),
        ({"q": "a", "answer": {"n": 1}}, "{q}", '{"n": 1}'),
        ({"answer": "a", "q": 1}, "Is {answer} right?", ""),
        ({"q": "a", "query": "select 1"}, "{q}", ""),
        ({"q": "a", "expected": None}, "{q}", ""),
        ({"q": "a"}, "{q}", ""),
        ("a", "{q}", ""),
    ],
)
def test_reference_answers_are_found_where_they_are_no_input(task: Any, template: str, found: str) -> None:
    assert reference_text(task, candidate(template)) == found
