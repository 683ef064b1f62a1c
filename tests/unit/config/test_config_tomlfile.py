"""Faults in TOML are told with their line."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict

from agentlightning.config.tomlfile import TomlText
from agentlightning.kit.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 0
    words: list[str] = []


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: dict[str, Inner] = {}
    items: list[Inner | str] = []


TEXT = """# a comment
name = "x"

[inner.one]
size = 1

[inner."two.dots"]
# more
size = "large"
words = [
    "a",
    2,
]
colour = "red"

[[items]]
size = 3

[[items]]
sise = 4
"""


def test_all_faults_are_told_with_line_and_field() -> None:
    with pytest.raises(ConfigError) as caught:
        TomlText(TEXT, "file.toml").parse(Outer)
    message = str(caught.value)
    assert message.startswith("file.toml: line 9: inner.two.dots.size: Input should be a valid integer")
    assert "line 10: inner.two.dots.words[1]: Input should be a valid string" in message
    assert "line 14: inner.two.dots.colour: there is no such setting;" in message
    assert "line 20: items[1].sise: there is no such setting; did you mean 'size'?" in message
    assert message.count("line ") == 4 + message.count("line 19")


def test_a_missing_field_is_told_where_it_should_be() -> None:
    with pytest.raises(ConfigError, match=r"f: line 1: name: Field required"):
        TomlText("\n", "f").parse(Outer)


def test_inline_tables_have_lines_too() -> None:
    with pytest.raises(ConfigError, match=r"f: line 2: inner\.a\.size: "):
        TomlText('name = "x"\ninner = { a = { size = "b" } }', "f").parse(Outer)


def test_what_is_no_toml_says_where() -> None:
    with pytest.raises(ConfigError, match=r"f is no valid TOML: .*line 2"):
        TomlText("a = 1\nb = \n", "f")


def test_a_good_document_is_a_model() -> None:
    parsed = TomlText('name = "x"\nitems = ["a", { size = 2 }]', "f").parse(Outer)
    assert parsed.items == ["a", Inner(size=2)]
