"""What the commands about prompts read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlightning.cli.optimize_inputs import load_prompts
from agentlightning.kit.errors import BadInputError, NotFoundError


def test_a_prompt_is_read_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Say {x}.\n")
    found = load_prompts(None, "agent.py:solve", [str(tmp_path / "p.txt"), f"second={tmp_path / 'p.txt'}"])
    assert {name: prompt.template for name, prompt in found.items()} == {
        "prompt_template": "Say {x}.",
        "second": "Say {x}.",
    }


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_prompt_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(BadInputError, match=r"p\.txt is empty"):
        load_prompts(None, "agent.py:solve", [str(tmp_path / "p.txt")])


def test_a_missing_prompt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nosuch\.txt"):
        load_prompts(None, "agent.py:solve", [str(tmp_path / "nosuch.txt")])
