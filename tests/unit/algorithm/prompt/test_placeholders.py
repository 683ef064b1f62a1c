"""No text runs with other placeholders than its parent's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.algorithm.prompt.candidate import Candidate, content_id
from agentlightning.algorithm.prompt.placeholders import fault_of, literal, placeholders, repaired
from agentlightning.kit.errors import BadInputError, ConfigError
from agentlightning.schemas import LLM, PromptTemplate


@pytest.mark.parametrize(
    ("template", "engine", "expected"),
    [
        ("Hi {name}, {name} on {day:>{width}}", "f-string", ("name", "day", "width")),
        ("{a.b} {c[0]!r} {{literal}}", "f-string", ("a", "c")),
        ("plain", "f-string", ()),
        ("{{ b }} {% if a %}x{% endif %} {% set c = 1 %}{{ c }}", "jinja", ("b", "a")),
    ],
)
def test_placeholders_are_found(template: str, engine: str, expected: tuple[str, ...]) -> None:
    assert placeholders(template, engine) == expected


@pytest.mark.parametrize(
    ("template", "engine", "message"),
    [
        ('{"a": 1}', "f-string", "has no name"),
        ("{}", "f-string", "has no name"),
        ("open {", "f-string", "malformed"),
        ("{% if %}", "jinja", "malformed"),
        ("x", "poml", "cannot be optimised"),
    ],
)
def test_what_is_no_template_is_an_error(template: str, engine: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        placeholders(template, engine)


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("About {question}", "About {question}"),
        ("About {{question}}", "About {question}"),
        ("About { question }", "About {question}"),
        ('Answer {"a": {question}}', 'Answer {{"a": {question}}}'),
        ("Tell me", "Tell me\n\nQuestion: {question}"),
        ("{question} and {topic}", "{question} and {{topic}}"),
    ],
)
def test_a_text_is_repaired(text: str, better: str) -> None:
    assert repaired(text, "f-string", ["question"]) == better
    assert fault_of(better, "f-string", ["question"]) is None


def test_jinja_is_repaired_by_appending_only() -> None:
    assert repaired("Tell me", "jinja", ["the_question"]) == "Tell me\n\nThe question: {{ the_question }}"
    assert repaired("{{ other }}", "jinja", ["question"]) is None
    assert repaired("{% if %}", "jinja", ["question"]) is None


@given(st.text(alphabet="ab{}q \n", max_size=40))
def test_whatever_a_proposer_writes_is_repaired_or_dropped(text: str) -> None:
    better = repaired(text, "f-string", ["q"])
    assert better is None or (placeholders(better) == ("q",) and "X" in better.format(q="X"))


@given(st.text(alphabet="a{}%# '", max_size=20), st.sampled_from(["f-string", "jinja"]))
def test_a_literal_text_comes_out_as_it_was(text: str, engine: str) -> None:
    template = PromptTemplate(template=f"<{literal(text, engine)}>", engine=engine)  # pyright: ignore[reportArgumentType]
    assert template.format() == f"<{text}>"


def candidate(**texts: str) -> Candidate:
    return Candidate({name: PromptTemplate(template=text) for name, text in texts.items()})


def test_the_same_content_has_the_same_id() -> None:
    assert candidate(a="x", b="y") == candidate(b="y", a="x")
    assert candidate(a="x").id != candidate(a="x ").id != candidate(b="x").id
    assert content_id({"b": 1, "a": 2}) == content_id({"a": 2, "b": 1})


def test_edits_are_checked() -> None:
    seed = candidate(first="One {q}", second="Two")
    better, note = seed.edited({"first": "Better {q}", "third": "ignored"})
    assert better is not None
    assert note == ""
    assert better.texts == {"first": "Better {q}", "second": "Two"}
    assert seed.edited({"first": "One {q}"}) == (None, "unchanged")
    fixed, note = seed.edited({"first": "Lost"})
    assert fixed is not None
    assert fixed.texts["first"] == "Lost\n\nQ: {q}"
    assert note == "first: lost {q}"
    jinja = Candidate({"p": PromptTemplate(template="{{ q }}", engine="jinja")})
    assert jinja.edited({"p": "{{ q }} {{ r }}"}) == (None, "p: invented {r}")


def test_candidates_are_made_of_prompts() -> None:
    llm = LLM(endpoint="http://x/v1", model="m")
    found = Candidate.of_resources({"llm": llm, "p": PromptTemplate(template="x {q}")})
    assert list(found.prompts) == ["p"]
    assert found.placeholders("p") == ("q",)
    with pytest.raises(ConfigError, match="no PromptTemplate"):
        Candidate.of_resources({"llm": llm})
    with pytest.raises(BadInputError, match="The prompt 'p'"):
        Candidate.of_resources({"p": PromptTemplate(template="{")})
