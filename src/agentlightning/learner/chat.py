"""Chat messages to token ids and generated tokens back to text and tool calls. Torch-free.

Works on any fast Hugging Face tokenizer; how its model writes tool calls is `toolcalls`' business. Knows nothing of
sampling.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import jinja2
import msgspec

from agentlightning.kit.errors import BadInputError
from agentlightning.learner.toolcalls import ToolFormat, detect_format, overlap
from agentlightning.schemas.generation import GenerateRequest

_INCOMPLETE = "\ufffd"
_RENDERED_MAX, _CONVERSATIONS_MAX = 1024, 4096


class Prompt(msgspec.Struct):
    """A request's prompt: `token_ids` (P ints); `text` is the rendered chat, `None` for raw prompts."""

    token_ids: list[int]
    text: str | None = None


class ChatFormat:
    """Renders prompts and reads responses with one tokenizer.

    The model's own tokens are kept: when a conversation continues a response this object has seen, the prompt holds
    the very tokens that were sampled instead of a re-tokenisation of their text, so that the turns of an episode
    join to one training sequence.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._rendered: OrderedDict[bytes, Prompt] = OrderedDict()
        self._conversations: OrderedDict[str, list[int]] = OrderedDict()
        self._encoder = msgspec.msgpack.Encoder()
        self.form = detect_format(tokenizer)
        added = tokenizer.added_tokens_decoder
        tags = {number for number, token in added.items() if str(token) in self.form.tags}
        special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        self._hidden = special - tags
        self._end = self._turn_end()

    @property
    def has_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(self._tokenizer.chat_template)

    def encode(self, request: GenerateRequest) -> Prompt:
        """The token ids of a request's prompt.

        Raises:
            BadInputError: Not exactly one kind of prompt, no chat template, messages the template refuses.
        """
        given = [x for x in (request.messages, request.prompt, request.prompt_token_ids) if x is not None]
        if len(given) != 1:
            raise BadInputError("Give exactly one of messages, prompt and prompt_token_ids.")
        if request.prompt_token_ids is not None:
            return Prompt(request.prompt_token_ids)
        if request.prompt is not None:
            return Prompt(self.plain_ids(request.prompt))
        return self._encode_messages(request.messages or [], request.tools)

    def remember(self, prompt: Prompt, response_ids: list[int]) -> None:
        """Note a finished response, so that a prompt that continues it holds these tokens."""
        if prompt.text is None or self._end is None or not response_ids or response_ids[-1] != self._end[1]:
            return
        text = prompt.text + self._backend.decode(response_ids, skip_special_tokens=False)
        self._conversations[text] = prompt.token_ids + response_ids
        self._conversations.move_to_end(text)
        if len(self._conversations) > _CONVERSATIONS_MAX:
            self._conversations.popitem(last=False)

    def decode(self, token_ids: list[int]) -> str:
        """Text without special tokens (tool-call tags stay)."""
        hidden = self._hidden
        return self._backend.decode([t for t in token_ids if t not in hidden], skip_special_tokens=False)

    def _encode_messages(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Prompt:
        key = self._encoder.encode((messages, tools))
        prompt = self._rendered.get(key)
        if prompt is None:
            prompt = Prompt([], self.render(messages, tools))
            self._rendered[key] = prompt
            if len(self._rendered) > _RENDERED_MAX:
                self._rendered.popitem(last=False)
        assert prompt.text is not None
        known = self._known_prefix(prompt.text)
        if known:
            rest = self.ids(prompt.text[len(known) :])
            return Prompt(self._conversations[known] + rest, prompt.text)
        if not prompt.token_ids:
            prompt.token_ids = self.ids(prompt.text)
        return prompt

    def ids(self, text: str) -> list[int]:
        """The tokens of a piece of text."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def plain_ids(self, text: str) -> list[int]:
        """The tokens of a raw prompt, with what the tokenizer puts before a text."""
        return self._backend.encode(text, add_special_tokens=True).ids

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, asks: bool = True) -> str:
        """Messages as text; `asks` adds the beginning of the assistant's next turn.

        Raises:
            BadInputError: There is no chat template, or it refuses the messages.
        """
        if not self.has_template:
            raise BadInputError(
                "This model's tokenizer has no chat template.",
                hint="Send `prompt` or `prompt_token_ids`, or add a chat_template to tokenizer_config.json.",
            )
        try:
            return self._tokenizer.apply_chat_template(
                [_for_template(m, self.form) for m in messages],
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=asks,
            )
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
            if isinstance(error, BadInputError):
                raise
            raise BadInputError(
                f"The model's chat template refuses these messages: {error}",
                hint="Check roles, their order and that contents are text.",
            ) from error

    def _known_prefix(self, text: str) -> str:
        if self._end is None or not self._conversations:
            return ""
        end, _ = self._end
        stop = len(text)
        while (at := text.rfind(end, 0, stop)) >= 0:
            prefix = text[: at + len(end)]
            if prefix in self._conversations:
                return prefix
            stop = at
        return ""

    def _turn_end(self) -> tuple[str, int] | None:
        # Only where encoding in two pieces equals encoding at once may sampled tokens be spliced in.
        end, end_id = self._tokenizer.eos_token, self._tokenizer.eos_token_id
        if not end or end_id is None:
            return None
        for left, right in (("a b", "\nc d"), ("a", "b")):
            if self.ids(left + end + right) != self.ids(left + end) + self.ids(right):
                return None
        return end, end_id


class Detokenizer:
    """Text of a growing response. Keeps a short window, so that each token costs the same (as vLLM does)."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._ids: list[int] = []
        self._start = self._read = 0
        self.text = ""

    def push(self, token_ids: list[int]) -> str:
        """Add tokens; return `text` so far. Bytes that are no whole character yet wait."""
        self._ids += token_ids
        before = self._chat.decode(self._ids[self._start : self._read])
        after = self._chat.decode(self._ids[self._start :])
        if len(after) > len(before) and not after.endswith(_INCOMPLETE):
            self.text += after[len(before) :]
            self._start, self._read = self._read, len(self._ids)
        return self.text

    def flush(self) -> str:
        """The final text, incomplete characters included."""
        before = self._chat.decode(self._ids[self._start : self._read])
        self.text += self._chat.decode(self._ids[self._start :])[len(before) :]
        self._start = self._read = len(self._ids)
        return self.text


def safe_text(text: str, stops: list[str], form: ToolFormat | None) -> str:
    """The part of a growing text that can be shown: nothing that may turn out a stop string or, in `form`, a call."""
    if form is not None:
        text = form.shown(text)
    held = max((overlap(text, stop) for stop in stops), default=0)
    text = text[: len(text) - held]
    return text.rstrip() if form is not None else text


def cut_at_stop(text: str, stops: list[str]) -> str | None:
    """`text` before the first stop string in it; `None` when there is none."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else None


def _for_template(message: dict[str, Any], form: ToolFormat) -> dict[str, Any]:
    """An OpenAI message as chat templates expect it: text content, tool-call arguments as objects."""
    message = {**message, "content": _text(message.get("content"))}
    if message.get("tool_calls"):
        calls = [_call_for_template(call) for call in message["tool_calls"]]
        message["tool_calls"] = [{**c, "id": form.known_id(c["id"])} if c.get("id") else c for c in calls]
    if message.get("tool_call_id"):
        message["tool_call_id"] = form.known_id(message["tool_call_id"])
    return message


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(part["text"] for part in content)
    raise BadInputError("The local engine reads text only.", hint="Remove images, audio and files.")


def _call_for_template(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return call
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call
