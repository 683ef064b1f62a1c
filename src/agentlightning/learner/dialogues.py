"""Dialogues to tokens with a mask over what the assistant says, as the engine would have met them when sampling.

A turn's prompt is rendered with the beginning of the assistant's turn, as it is when the model is asked; tokens of
prompt and answer are made apart, since sampling begins at a border between tokens. Torch-free; knows no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentlightning.kit.errors import BadInputError
from agentlightning.learner.chat import ChatFormat
from agentlightning.schemas.example import Dialogue, EncodedDialogue, TokenExample

Message = dict[str, Any]


def encode_dialogue(chat: ChatFormat, dialogue: Dialogue, ends: Sequence[str]) -> EncodedDialogue:
    """The sequences of a dialogue.

    Turns share a sequence as long as the template writes what came before unchanged; some templates leave out earlier
    thoughts, and each turn then is a sequence of its own.

    Args:
        chat: The model's format.
        dialogue: What to encode.
        ends: The texts of the model's end tokens, the first of which ends an answer that the template leaves open.
    """
    raw = dialogue.plain_text == "raw" or not chat.has_template
    if raw and isinstance(dialogue.prompt, str) and isinstance(dialogue.completion, str):
        return _plain(chat, dialogue.prompt, dialogue.completion, ends)
    prompt, completion = _messages(dialogue.prompt, "user"), _messages(dialogue.completion, "assistant")
    messages = prompt + completion
    turns = [place for place in range(len(prompt), len(messages)) if _is_learned(messages[place])]
    if not turns:
        return EncodedDialogue(problem="no_response")
    sequences: list[_Sequence] = []
    try:
        for place in turns:
            given = chat.render(messages[:place], dialogue.tools) if place else ""
            whole = chat.render(messages[: place + 1], dialogue.tools, asks=False)
            if not whole.startswith(given):
                return EncodedDialogue(problem="template_differs")
            if not sequences or not sequences[-1].continues_to(given):
                sequences.append(_Sequence(chat))
            sequences[-1].add(given, _answer(whole[len(given) :], ends))
    except BadInputError:
        return EncodedDialogue(problem="template_refuses")
    found = [TokenExample(token_ids=s.token_ids, loss_mask=s.loss_mask) for s in sequences if any(s.loss_mask)]
    return EncodedDialogue(examples=found, problem="" if found else "no_response")


class _Sequence:
    """Tokens that grow turn by turn."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._text = ""
        self.token_ids: list[int] = []
        self.loss_mask: list[int] = []

    def continues_to(self, given: str) -> bool:
        return given.startswith(self._text)

    def add(self, given: str, answer: str) -> None:
        for text, mask in ((given[len(self._text) :], 0), (answer, 1)):
            ids = self._chat.ids(text) if text else []
            self.token_ids += ids
            self.loss_mask += [mask] * len(ids)
        if self.loss_mask and self.loss_mask[0]:
            self.loss_mask[0] = 0  # nothing comes before it that could predict it
        self._text = given + answer


def _answer(rendered: str, ends: Sequence[str]) -> str:
    """What the model itself would say of a rendered turn: up to its end token, without the line break behind it."""
    cut = max((at + len(end) for end in ends if (at := rendered.rfind(end)) >= 0), default=0)
    return rendered[:cut] if cut else rendered + (ends[0] if ends else "")


def _plain(chat: ChatFormat, prompt: str, completion: str, ends: Sequence[str]) -> EncodedDialogue:
    if not completion:
        return EncodedDialogue(problem="no_response")
    given = chat.plain_ids(prompt) if prompt else []
    answer = chat.ids(completion + (ends[0] if ends and not completion.endswith(tuple(ends)) else ""))
    mask = [0] * len(given) + [1] * len(answer)
    mask[0] = 0
    if not any(mask):
        return EncodedDialogue(problem="no_response")
    return EncodedDialogue(examples=[TokenExample(token_ids=given + answer, loss_mask=mask)])


def _messages(value: list[Message] | str, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _is_learned(message: Message) -> bool:
    said = message.get("content") or message.get("tool_calls")
    return message.get("role") == "assistant" and bool(said) and message.get("weight") != 0
