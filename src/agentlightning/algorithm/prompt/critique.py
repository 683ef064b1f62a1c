"""The questions to a proposer, and what its answers mean. Knows no search and no model.

Textual gradients and edits as two questions: Pryzant et al. 2023 ("Automatic Prompt Optimization with 'Gradient
Descent' and Beam Search"). The wording is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentlightning.algorithm.prompt.block import left_out
from agentlightning.algorithm.prompt.candidate import Candidate

Message = dict[str, Any]

_MAX_TASK = 2000
_MAX_MESSAGE = 1500
_MAX_RUN = 6000

_ROLE = (
    "You improve the prompts of an AI agent. You see its prompts and runs of it, each with the task, what the model "
    "was told and answered, and the reward it got. A higher reward is better."
)
_RULES = (
    "Rules for the new text:\n"
    "- Keep every placeholder in braces exactly as it is, each at least once; add no others.\n"
    "- State general rules that also hold for tasks not shown. Do not write down answers of single tasks.\n"
    "- Keep what works. Be concrete and brief.\n"
    "- Answer with every prompt that you change, whole, between tags, and nothing else after it:\n"
    '<prompt name="NAME">\nTEXT\n</prompt>'
)
_CRITIQUE = (
    "What do the prompts lack, or say wrongly, that explains the low rewards? Compare answers with what the tasks "
    "expected, and name the rules that the agent did not follow or could not know. Answer with a list of at most six "
    "short points, most important first. Do not write new prompts."
)
_STYLES = (
    "Change as little as possible: fix the most important point.",
    "Fix all points.",
    "Rewrite the prompt with a clear structure: role, rules, form of the answer.",
    "Fix the points in a way that differs from the obvious one.",
)
_TAGGED = re.compile(r'<prompt(?:\s+name\s*=\s*"([^"]*)")?\s*>(.*?)</prompt>', re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"\A\s*```[\w-]*\n(.*?)\n?```\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Run:
    """What a critic sees of a rollout."""

    task: Any
    reward: float | None
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Model calls as `TraceToMessages` has them."""
    error: dict[str, Any] | None = None


def critique_question(candidate: Candidate, runs: Sequence[Run]) -> list[Message]:
    """Ask what is wrong with the prompts."""
    return _question(f"{show_prompts(candidate)}\n\n{show_runs(runs)}\n\n{_CRITIQUE}")


def edit_question(candidate: Candidate, critique: str, style: int) -> list[Message]:
    """Ask for a better text, given a critique; `style` picks one of several ways to go about it."""
    how = _STYLES[style % len(_STYLES)]
    return _question(
        f"{show_prompts(candidate)}\n\nA critic who saw runs of the agent wrote:\n<critique>\n{critique.strip()}\n"
        f"</critique>\n\nWrite better prompts. {how}\n\n{_RULES}"
    )


def rewrite_question(candidate: Candidate, runs: Sequence[Run], style: int) -> list[Message]:
    """Ask for critique and better text in one."""
    how = _STYLES[style % len(_STYLES)]
    return _question(
        f"{show_prompts(candidate)}\n\n{show_runs(runs)}\n\n{_CRITIQUE.partition(' Do not')[0]} Then write better "
        f"prompts. {how}\n\n{_RULES}"
    )


def merge_question(candidate: Candidate, critiques: Sequence[str]) -> list[Message]:
    """Ask for one text that heeds several critiques."""
    listed = "\n".join(f"<critique>\n{critique.strip()}\n</critique>" for critique in critiques)
    return _question(
        f"{show_prompts(candidate)}\n\nCritics who each saw other runs of the agent wrote:\n{listed}\n\nWrite better "
        f"prompts that heed all of them; where they contradict each other, choose what more of them say.\n\n{_RULES}"
    )


def _question(text: str) -> list[Message]:
    return [{"role": "system", "content": _ROLE}, {"role": "user", "content": text}]


def show_prompts(candidate: Candidate) -> str:
    """The prompts between tags, each with its placeholders."""
    shown: list[str] = []
    for name, prompt in candidate.prompts.items():
        names = candidate.placeholders(name)
        told = ", ".join(f"{{{placeholder}}}" for placeholder in names) or "none"
        shown.append(f'<prompt name="{name}">\n{prompt.template}\n</prompt>\nPlaceholders of {name}: {told}')
    return "The agent's prompts:\n" + "\n".join(shown)


def show_runs(runs: Sequence[Run]) -> str:
    """Runs between tags, worst first."""
    return "Runs of the agent:\n" + "\n".join(_show_run(run) for run in runs)


def _show_run(run: Run) -> str:
    reward = "none" if run.reward is None else f"{run.reward:g}"
    lines = [f'<run reward="{reward}">', f"task: {_short(_plain(run.task), _MAX_TASK)}"]
    if run.error:
        lines.append(f"error: {_short(str(run.error.get('message', run.error)), _MAX_MESSAGE)}")
    lines += _show_calls(run.messages)
    return _short("\n".join(lines), _MAX_RUN) + "\n</run>"


def _show_calls(calls: Sequence[dict[str, Any]]) -> list[str]:
    """Messages of all calls; those that a call shares with the one before are not repeated."""
    lines: list[str] = []
    before: list[Any] = []
    for call in calls:
        messages: list[Any] = call.get("messages") or []
        shared = 0
        while shared < min(len(before), len(messages)) and before[shared] == messages[shared]:
            shared += 1
        for message in messages[shared:]:
            content = message.get("content")
            text = left_out(content) if isinstance(content, str) else _plain(content) if content else ""
            calls_made = message.get("tool_calls")
            if calls_made:
                text = f"{text} {_plain([c.get('function', c) for c in calls_made])}".strip()
            lines.append(f"{message.get('role', '?')}: {_short(text, _MAX_MESSAGE)}")
        before = messages
    return lines


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _short(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … ({len(text) - limit} characters left out) … {text[-half:]}"


def read_edit(answer: str, candidate: Candidate) -> dict[str, str] | None:
    """The new texts in an answer, by prompt name; `None` when there is none.

    An answer without tags counts as the text of the only prompt when it has that prompt's placeholders.
    """
    texts: dict[str, str] = {}
    only = next(iter(candidate.prompts)) if len(candidate.prompts) == 1 else None
    for name, text in _TAGGED.findall(answer):
        key = name if name in candidate.prompts else only
        if key is not None and text.strip():
            texts[key] = text.strip("\n").rstrip()
    if texts:
        return texts
    if only is None or "<prompt" in answer:
        return None
    fenced = _FENCED.match(answer)
    bare = (fenced[1] if fenced else answer).strip()
    expected = candidate.placeholders(only)
    if expected and all(f"{{{name}" in bare for name in expected):
        return {only: bare}
    return None
