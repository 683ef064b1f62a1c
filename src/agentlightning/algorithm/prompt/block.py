"""The block of examples at the head of a prompt: put there, taken off, kept while the rest is edited.

A prompt is an instruction and, perhaps, examples. Whoever edits the instruction sees it bare, and the examples are put
back; so one candidate has both, and neither search undoes what the other found. Knows no search.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agentlightning.algorithm.prompt.candidate import Candidate

_HEAD = "Examples of good answers:"
_END = "End of the examples."
_BLOCK = re.compile(rf"\A{re.escape(_HEAD)}\n.*?\n{re.escape(_END)}\n\n", re.DOTALL)


def written(shown: str, rest: str) -> str:
    """`rest` under a block of examples; bare when there are none."""
    return f"{_HEAD}\n{shown}\n{_END}\n\n{rest}" if shown else rest


def split(text: str) -> tuple[str, str]:
    """The block at the head of a text, empty when there is none, and the rest."""
    found = _BLOCK.match(text)
    return (found[0], text[found.end() :]) if found else ("", text)


def bare(candidate: Candidate) -> Candidate:
    """The same instructions without examples."""
    return candidate.changed({name: split(text)[1] for name, text in candidate.texts.items()})


def put_back(texts: Mapping[str, str], parent: Candidate) -> dict[str, str]:
    """New instructions under the examples of the prompts they come from."""
    blocks = {name: split(text)[0] for name, text in parent.texts.items()}
    return {name: blocks.get(name, "") + split(text)[1] for name, text in texts.items()}


def left_out(message: str) -> str:
    """What a model was told, without the examples: whoever judges the answer needs the task that comes after them."""
    block, rest = split(message)
    return f"(The examples of the prompt stand here.)\n{rest}" if block else message
